"""What the checkpoints of the rl stage hold of its rollouts; the files are only read."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from fourstage.data.batch import Batch
from fourstage.errors import InputError
from fourstage.files import read_json
from fourstage.training.tensorfiles import rejoin

# A folder that is still being written has another name.
_STEP = re.compile(r"step-(\d{8,})")


def load_rollout(run: Path, step: int | None = None) -> tuple[int, Batch]:
    """The rollouts that the checkpoint of `step` (else the newest) of `rl` holds, and its step.

    A run that is at work may be looked at.

    Raises:
        InputError: there is no such checkpoint, or it holds no rollouts.
    """
    folder = Path(run) / "rl" / "checkpoints"
    names = (_STEP.fullmatch(path.name) for path in folder.glob("step-*"))
    found = {int(name[1]): folder / name[0] for name in names if name}
    if not found:
        raise InputError(f"{folder}: no checkpoint of rl yet; run the rl stage of this run first")
    has = ", ".join(str(each) for each in sorted(found))
    step = max(found) if step is None else step
    if step not in found:
        raise InputError(f"--step {step}: rl has checkpoints of steps {has}; write one of them")
    try:
        source = read_json(found[step] / "state.json")["source"]
        if "rollouts" not in source:
            raise InputError(
                f"{found[step]}: rl learns from given comparisons and draws nothing; write "
                f"`fourstage inspect batch {run} --stage rl`"
            )
        if source["rollouts"] is None:
            raise InputError(
                f"{found[step]}: no rollouts were held at step {step}; choose another --step "
                f"({has})"
            )
        tensors = load_file(found[step] / "source.safetensors")
        held = rejoin(source["rollouts"], tensors)
    except FileNotFoundError as error:
        raise InputError(
            f"{found[step]}: gone or incomplete ({error.filename}); choose another --step ({has})"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{found[step]}: holds no rollouts ({error}); choose another --step ({has})"
        ) from error
    return step, Batch.from_state({name: torch.as_tensor(v) for name, v in held.items()})
