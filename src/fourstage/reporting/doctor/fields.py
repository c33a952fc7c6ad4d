"""Where in a recipe files can be given: whole folders where all that is in them fits the same."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from fourstage.reporting.doctor.examining import Findings


def fitting(findings: Sequence[Findings], folders: Sequence[str]) -> list[tuple[str, list[str]]]:
    """(path, fields of a recipe that it can be given to), in the order of the files.

    Args:
        folders: those that were looked at whole; only such a one, or one in it, stands for files.
    """
    within: dict[str, set[tuple[str, ...]]] = {}
    for each in findings:
        for folder in _above(each.path, folders):
            within.setdefault(folder, set()).add(tuple(each.stages))
    places: dict[str, list[str]] = {}
    for each in findings:
        if each.stages:
            alike = (folder for folder in _above(each.path, folders) if len(within[folder]) == 1)
            places[next(alike, each.path)] = each.stages
    return list(places.items())


def _above(path: str, folders: Sequence[str]) -> Iterator[str]:
    """The folders in which a file lies, from the one that was looked at inwards."""
    for folder in folders:
        start = folder.rstrip("/")
        if path.startswith(f"{start}/"):
            yield folder
            for inner in os.path.dirname(path)[len(start) + 1 :].split("/"):
                if inner:
                    start = f"{start}/{inner}"
                    yield start
            return
