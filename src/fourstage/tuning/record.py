"""tune.json: what was asked, and every finished trial, written as soon as it ends."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fourstage.errors import InputError
from fourstage.files import read_json, write_json
from fourstage.tuning.grid import Outcome
from fourstage.tuning.trials import forget_checkpoints

NAME = "tune.json"


class Record:
    """The trials of one range test, read at its start and written after each of them.

    Raises:
        InputError: what stands there cannot be read.
    """

    def __init__(self, folder: Path, inputs: Mapping[str, Any]):
        self.path = folder / NAME
        self.content = _read(self.path) or {"inputs": dict(inputs), "amount": None, "trials": []}

    @staticmethod
    def of_another(folder: Path, inputs: Mapping[str, Any]) -> bool:
        """Whether a test of other inputs stands there."""
        found = _read(folder / NAME)
        return found is not None and found["inputs"] != inputs

    @property
    def amount(self) -> int | None:
        """Tokens (pairs) of a trial, once they were chosen."""
        return self.content["amount"]

    @property
    def outcomes(self) -> list[Outcome]:
        return [Outcome.from_json(row) for row in self.content["trials"]]

    def plan(self, amount: int) -> None:
        """Keeps what was chosen by measuring, before the first trial."""
        self.content["amount"] = amount
        write_json(self.path, self.content)

    def add(self, outcome: Outcome) -> None:
        self.content["trials"].append(outcome.to_json())
        write_json(self.path, self.content)
        forget_checkpoints(self.path.parent / outcome.setting.name)

    def finish(self, found: Mapping[str, Any]) -> None:
        """Adds what the trials came to."""
        write_json(self.path, self.content | dict(found))


def _read(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        content = read_json(path)
        _ = content["inputs"], content["amount"], content["trials"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is unreadable ({error}): remove it to begin the trials anew"
        ) from error
    return content
