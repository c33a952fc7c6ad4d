"""A run is opened by one process at a time; signals end it in words, with what is done kept."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Generator
from pathlib import Path
from types import FrameType

from fourstage.devices import resolve_device
from fourstage.errors import Interrupted
from fourstage.parallel.group import Group
from fourstage.pipeline.lock import clear_unfinished, locked
from fourstage.pipeline.runner import Runner, Say
from fourstage.recipe import STAGES, Recipe


def run(
    recipe: Recipe,
    out: Path,
    *,
    redo: bool = False,
    only: str | None = None,
    say: Say = print,
) -> None:
    """Runs the stages of `recipe` into the folder `out`, each that is not finished and unchanged.

    Args:
        redo: take raw data that changed since the run read it, and repeat what was made from it.
        only: one stage; what it is made from must be finished.

    Raises:
        InputError: the run is in use, its raw data changed, or the recipe does not fit the data.
        MachineError: the machine failed; what was finished stays.
        Interrupted: a signal came; what was done is saved.
    """
    with _opened(recipe, Path(out), say) as runner:
        runner.go([only] if only else recipe.needed(), redo)


def prepare(
    recipe: Recipe,
    out: Path,
    *,
    redo: bool = False,
    only: str | None = None,
    say: Say = print,
) -> None:
    """Prepares the tokenizer and the data that need no trained model; trains nothing.

    Args:
        only: "tokenizer", or the data of one stage.

    Raises:
        InputError: the run is in use, or its data are missing, unreadable, malformed or too small.
    """
    with _opened(recipe, Path(out), say) as runner:
        stages = [only] if only in STAGES else [] if only else recipe.needed()
        runner.prepare(stages, redo)


@contextlib.contextmanager
def _opened(recipe: Recipe, out: Path, say: Say) -> Generator[Runner]:
    """The run, locked against other processes, with signals taken as interruptions."""
    device = resolve_device(recipe.device)
    group = Group.from_environment(device)
    speak = say if group.writes else lambda line: None
    lock = locked(out) if group.writes else contextlib.nullcontext()
    with lock, _signals_are_interruptions(out):
        if group.writes:
            clear_unfinished(out)
        yield Runner(recipe, out, group, speak)
    # Not where a process has failed: it tells the others through the group, and cannot wait.
    group.close()


@contextlib.contextmanager
def _signals_are_interruptions(out: Path) -> Generator[None]:
    """Outside of training a signal stops at once: what is finished is on the disk already."""
    words = f"stopped; run the same command again to go on (what is done stands in {out})"

    def stop(number: int, _: FrameType | None) -> None:
        raise Interrupted(words)

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread, where Python lets nobody watch signals
        yield
        return
    try:
        yield
    except KeyboardInterrupt as error:
        raise Interrupted(words) from error
    finally:
        signal.signal(signal.SIGTERM, before)
