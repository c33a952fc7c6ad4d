"""Whether blocks are compiled: decided and tried before the first step, kept for those after it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fourstage.compiled import compile_blocks, restore_blocks, why_not
from fourstage.memory import is_out_of_memory
from fourstage.parallel.group import Group

if TYPE_CHECKING:
    from fourstage.training.fitting import Measured

_KEY = "compile"


class Compilation:
    """Compiles what a trainer trains, where it is asked for, can be done, and works.

    `auto` is on for CUDA; on a CPU, where it costs a minute and gains little, off. Compiled code
    rounds otherwise than the blocks as written: what a stage began with is kept in run.json.

    Args:
        asked: auto, on or off.
        modules: those that train; threads have copies of their own.
        say: prints a line.
    """

    def __init__(
        self,
        asked: str,
        modules: list[nn.Module],
        device: torch.device,
        group: Group,
        stage: str,
        measured: Measured,
        say: Callable[[str], None],
    ):
        self.asked, self.modules, self.device = asked, modules, device
        self.group, self.stage, self.measured, self.say = group, stage, measured, say
        self.is_on = False

    def settle(self, try_out: Callable[[], Any]) -> None:
        """Compiles, and says so; goes on as written, and says why, where it does not work.

        Args:
            try_out: one pass forward and backward, whose random draws count for nothing.
        """
        began = self._noted()
        self.is_on = self._wanted() and began is not False
        reason = self._agreed(why_not(self.modules[0], self.device)) if self.is_on else ""
        if self.is_on and not reason:
            for module in self.modules:
                compile_blocks(module)
            reason = self._agreed(self._fault(try_out))
        if reason:
            self.close()
            ending = "; from here on the last digits differ" if began else ""
            self.say(f"{self.stage}: blocks are not compiled: {reason}{ending}")
        elif self.is_on:
            self.say(f"{self.stage}: blocks are compiled")
        self.measured.note(**{_KEY: {**self._holds_for(), "taken": self.is_on}})

    def close(self) -> None:
        """Goes back to the blocks as they are written."""
        self.is_on = False
        for module in self.modules:
            restore_blocks(module)

    def _wanted(self) -> bool:
        return self.asked == "on" or (self.asked == "auto" and self.device.type == "cuda")

    def _holds_for(self) -> dict[str, Any]:
        return {"asked": self.asked, "device": self.device.type}

    def _noted(self) -> bool | None:
        """What the stage began with; None where it begins now, or something else is asked for."""
        found = self.measured.found.get(_KEY, {})
        same = self._holds_for().items() <= found.items()
        return bool(found["taken"]) if same else None

    def _fault(self, try_out: Callable[[], Any]) -> str:
        """Why compiled code does not run, in a clause; empty where it does."""
        devices = [self.device] if self.device.type == "cuda" else []
        reason = ""
        with torch.random.fork_rng(devices=devices):
            try:
                try_out()
            # Whatever a compiler raises is no fault of the run: it goes on without.
            except Exception as error:
                if not is_out_of_memory(error):
                    reason = _in_a_line(error)
        return reason

    def _agreed(self, reason: str) -> str:
        """The reason, or that another process has one: all compile or none."""
        fails = self.group.any(bool(reason))
        return reason or ("another process cannot" if fails else "")


def _in_a_line(error: Exception) -> str:
    """What a compiler says, out of what torch wraps it in."""
    inner = getattr(error, "inner_exception", None) or error
    first = next(iter(str(inner).strip().splitlines()), "no message")
    return f"{type(inner).__name__}: {first[:200]}"
