"""Rewards from the parts of a recipe."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from fourstage.errors import InputError
from fourstage.recipe import rewards as sections
from fourstage.rewards import matching, maths, shaping
from fourstage.rewards.apart import Apart
from fourstage.rewards.code.reward import Code
from fourstage.rewards.code.running import Limits
from fourstage.rewards.constraints import Constraints
from fourstage.rewards.contracts import EachAlone, Reward
from fourstage.rewards.importing import own_file
from fourstage.rewards.own import Own
from fourstage.rewards.schemas import JsonSchema
from fourstage.rewards.service import Service
from fourstage.rewards.total import Part, Rewards

# DAPO's buffer of 4096 before a limit of 20480.
_BUFFER_SHARE = 5


def build(parts: Sequence[sections.RewardPart], max_new_tokens: int) -> Rewards:
    """The rewards of `rl.rewards`, or a reward model's alone; nothing is started yet.

    Args:
        max_new_tokens: of a resolved recipe.

    Raises:
        InputError: lengths that do not fit.
    """
    return Rewards(
        [
            Part(
                part.name or part.kind,
                _MAKERS[part.kind](part, max_new_tokens),
                part.weight,
                part.fault_score,
                part.only,
            )
            for part in parts or [sections.ModelPart()]
        ]
    )


def own_files(parts: Sequence[sections.RewardPart]) -> dict[str, str]:
    """File of a person's own function -> sha256: what a stage is made from beside its section.

    A module that is installed has none: its version is not known here.
    """
    found: dict[str, str] = {}
    for part in parts:
        if isinstance(part, sections.PythonPart):
            found |= own_file(part.function)
    return found


def _math(part: Any, most: int) -> Reward:
    if part.verifier == "math_verify":
        return _apart(maths.Formulas(part.extraction, part.truth), part)
    return maths.Numbers(part.extraction, part.truth, part.tolerance)


def _code(part: Any, most: int) -> Reward:
    limits = Limits(part.seconds, part.cpu_seconds, part.memory, part.file_size, part.output)
    return Code(
        limits,
        part.tests,
        part.partial,
        part.unfenced,
        part.packages,
        part.allow_uncontained,
        part.workers or _cores(),
    )


def _http(part: Any, most: int) -> Reward:
    return Service(
        part.url,
        part.batch,
        part.workers,
        part.seconds,
        part.retries,
        part.backoff,
        part.most_bytes,
        part.token_env,
    )


def _length(part: Any, max_new_tokens: int) -> Reward:
    most = part.most or max_new_tokens
    buffer = part.buffer or max(1, most // _BUFFER_SHARE)
    if most > max_new_tokens:
        raise InputError(
            f"rl.rewards, length: most={most} is never reached with "
            f"rl.max_new_tokens={max_new_tokens}: write at most that"
        )
    if buffer > most:
        raise InputError(f"rl.rewards, length: buffer={buffer} is more than most={most}")
    return shaping.Length(most, buffer)


_MAKERS: dict[str, Callable[[Any, int], Reward]] = {
    "model": lambda part, most: shaping.Learned(),
    "math": _math,
    "exact": lambda part, most: matching.Exact(part.place, part.normalise, part.truth),
    "regex": lambda part, most: _apart(matching.Pattern(part.pattern, part.column), part),
    "format": lambda part, most: _apart(matching.Pattern(part.pattern, whole=True), part),
    "choice": lambda part, most: matching.Choice(part.letters, part.extraction, part.truth),
    "json_schema": lambda part, most: _apart(JsonSchema(part.json_schema, part.column), part),
    "constraints": lambda part, most: Constraints(part.constraints, part.column, part.partial),
    "code": _code,
    "python": lambda part, most: Own(part.function, part.messages, part.seconds),
    "http": _http,
    "length": _length,
    "missing_end": lambda part, most: shaping.MissingEnd(),
}


def _apart(reward: EachAlone, part: Any) -> Reward:
    """In as many processes as the part asks for: one unless its work is long."""
    workers = (part.workers or _cores()) if hasattr(part, "workers") else 1
    return Apart(reward, part.seconds, workers)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
