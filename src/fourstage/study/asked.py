"""What a study of over-optimisation is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fourstage.errors import InputError


@dataclass(frozen=True)
class Asked:
    """What a person wrote.

    Attributes:
        samples: responses to each prompt, N. prompts: held-out ones.
        coefficients: of the KL, each a run of RL. comparisons: each a reward model.
        gold: a reward model that stands for the truth; None asks the prompts' own checker.
        rivals: further reward models that best-of-n is tried by.
        by_each: whether RL is paid by each of the reward models in turn.

    Raises:
        InputError: a value is out of range.
    """

    samples: int = 256
    prompts: int = 64
    coefficients: tuple[float, ...] = ()
    comparisons: tuple[int, ...] = ()
    gold: Path | None = None
    rivals: tuple[Path, ...] = ()
    by_each: bool = False
    device: str = "auto"

    def __post_init__(self) -> None:
        faults = []
        if self.samples < 2:
            faults.append(f"--n {self.samples}: write 2 or more; 256 is usual")
        if self.prompts < 2:
            faults.append(f"--prompts {self.prompts}: write 2 or more; 64 is usual")
        faults += [
            f"--kl {value:g}: write a coefficient above 0; without a KL its distance is not "
            "measured as it trains"
            for value in self.coefficients
            if not 0 < value < float("inf")
        ]
        faults += [
            f"--comparisons {count}: write 1 or more" for count in self.comparisons if count < 1
        ]
        if faults:
            raise InputError(*faults)

    def to_json(self) -> dict[str, Any]:
        return {
            "samples": self.samples,
            "prompts": self.prompts,
            "coefficients": [*self.coefficients],
            "comparisons": [*self.comparisons],
            "by_each": self.by_each,
        }


def numbers(text: str | None, option: str, kind: type = float) -> tuple[Any, ...]:
    """`0.02,0.05` as numbers, each once, in rising order; none where nothing is given.

    Raises:
        InputError: one is no number.
    """
    found = set()
    for part in (text or "").split(","):
        if not part.strip():
            continue
        try:
            found.add(kind(part.strip().replace("_", "")))
        except ValueError as error:
            example = "500,2000" if kind is int else "0.02,0.05,0.2"
            raise InputError(
                f"{option} {part.strip()}: no {'whole ' if kind is int else ''}number; write "
                f"several with commas, such as {option} {example}"
            ) from error
    return tuple(sorted(found))
