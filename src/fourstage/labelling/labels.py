"""The labels of one labeller: a line each, on the disk before the next question is asked.

    {"item", "shown": [1, 0], "verdict": "best", "best": 1}     of what was shown, which is best
    {"item", "shown": [0, 1], "verdict": "tie"}                 tie, bad (all of them) or skip
    {"item", "shown", "verdict", "best"?, "said": [..., ...]}   by a judge, asked both ways round
    {"undo": true}                                              takes back the last that stands

Numbers are those of the item's completions, whatever the order in which they were shown.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fourstage.errors import InputError
from fourstage.files import explained

VERDICTS = ("best", "tie", "bad", "skip")
# What a judge said to one order: which it prefers by its place, or nothing that can be read.
SAID = ("first", "second", "tie", "malformed")
ENDING = ".labels.jsonl"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@dataclass(frozen=True)
class Label:
    """One answer of a labeller.

    Attributes:
        item: id of the prompt and its completions.
        shown: the completions that were compared, in the order in which they were seen.
        verdict: one of `VERDICTS`.
        best: the completion that was picked, of the verdict "best".
        said: a judge's answers to the order shown and to the swapped one, each of `SAID`.
    """

    item: str
    shown: tuple[int, ...]
    verdict: str
    best: int | None = None
    said: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.verdict not in VERDICTS or len(set(self.shown)) != len(self.shown):
            raise ValueError(f"no label: {self.verdict!r} of {self.shown}")
        if len(self.shown) < 2 or (self.verdict == "best") != (self.best in self.shown):
            raise ValueError(f"a label of {self.shown} whose best is {self.best}")
        if self.said and (len(self.said) != 2 or not set(self.said) <= set(SAID)):
            raise ValueError(f"a judge's two answers are {self.said}")

    def to_json(self) -> dict[str, Any]:
        row: dict[str, Any] = {"item": self.item, "shown": [*self.shown], "verdict": self.verdict}
        if self.best is not None:
            row["best"] = self.best
        if self.said:
            row["said"] = [*self.said]
        return row

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Label:
        """Raises KeyError, TypeError or ValueError for a row that is no label."""
        shown = tuple(int(each) for each in row["shown"])
        said = tuple(row.get("said", ()))
        return cls(str(row["item"]), shown, row["verdict"], row.get("best"), said)


def checked_name(name: str, option: str) -> str:
    """A name that files are called after.

    Raises:
        InputError: it is not made of letters, digits, dots, `-` and `_`.
    """
    if not _NAME.fullmatch(name):
        raise InputError(
            f"{option} {name!r}: write up to 64 letters, digits, dots, - or _, a letter or a digit "
            "first"
        )
    return name


def read_labels(path: Path) -> list[Label]:
    """The labels that stand, in their order; a last line that a kill cut short is none.

    Raises:
        InputError: a line is no label.
    """
    return _read(path)[0]


def labellers(folder: Path) -> dict[str, Path]:
    """name -> file of everyone who has labelled the set in `folder`, by name."""
    found = sorted(folder.glob(f"*{ENDING}"))
    return {path.name.removesuffix(ENDING): path for path in found}


class LabelFile:
    """The labels of one labeller while they are at work: nobody else may write them meanwhile.

    Attributes:
        labels: those that stand.
        version: grows with every line, so that a page can tell an old question from the new one.

    Raises:
        InputError: another process writes it, or it holds a line that is no label.
        MachineError: it cannot be written.
    """

    def __init__(self, path: Path):
        self.path = path
        with explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            self._descriptor = os.open(path, flags, 0o644)
        try:
            lock(
                self._descriptor,
                f"{path} is being written by another process: end it, or write --labeller NAME "
                "with another name",
            )
            self.labels, self.version, whole = _read(path)
            with explained(path):
                os.ftruncate(self._descriptor, whole)
        except BaseException:
            self.close()
            raise

    def add(self, label: Label) -> None:
        self._append(label.to_json())
        self.labels.append(label)

    def undo(self) -> Label | None:
        """Takes back the last label; None where there is none."""
        if not self.labels:
            return None
        self._append({"undo": True})
        return self.labels.pop()

    def _append(self, row: dict[str, Any]) -> None:
        """Writes a line whole or not at all: what a full disk cut short is taken away again."""
        line = json.dumps(row).encode() + b"\n"
        before = os.fstat(self._descriptor).st_size
        with explained(self.path):
            try:
                written = 0
                while written < len(line):
                    written += os.write(self._descriptor, line[written:])
                os.fsync(self._descriptor)
            except BaseException:
                os.ftruncate(self._descriptor, before)
                raise
        self.version += 1

    def close(self) -> None:
        """Frees the file for others."""
        os.close(self._descriptor)

    def __enter__(self) -> LabelFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def lock(descriptor: int, refusal: str) -> None:
    """Holds an open file until it is closed; the system frees it when its holder dies.

    A file system without locks (Lustre without `flock`) is taken as it is.

    Raises:
        InputError: another process holds it.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise InputError(refusal) from error
    except OSError as error:
        if error.errno not in _WITHOUT_LOCKS:
            raise


def _read(path: Path) -> tuple[list[Label], int, int]:
    """Labels that stand, lines there are, and bytes of whole lines."""
    content = path.read_bytes() if path.exists() else b""
    whole = content.rfind(b"\n") + 1
    labels: list[Label] = []
    lines = content[:whole].split(b"\n")[:-1]
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            if row.get("undo") is True:
                labels.pop()
            else:
                labels.append(Label.from_json(row))
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise InputError(f"{path}:{number}: no label ({error}): mend or remove it") from error
    return labels, len(lines), whole


def by_item(labels: Sequence[Label]) -> dict[str, list[Label]]:
    """item -> its labels, in their order."""
    found: dict[str, list[Label]] = {}
    for label in labels:
        found.setdefault(label.item, []).append(label)
    return found
