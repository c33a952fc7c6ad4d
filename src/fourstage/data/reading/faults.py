"""What can be wrong with a raw file, and how it is told."""

from __future__ import annotations

from collections.abc import Iterable

from fourstage.errors import InputError

# More faults than these help nobody.
_MOST_FAULTS = 5


class _FileFault(InputError):
    """A fault of a whole file (or member of an archive).

    Attributes:
        name: the file, members as `archive.zip/inner/name.jsonl`.
        why: what is wrong with it and what to do, without its name.
    """

    def __init__(self, name: str, why: str):
        self.name, self.why = name, why
        super().__init__(f"{name}: {why}")

    def __reduce__(self) -> tuple[type[_FileFault], tuple[str, str]]:
        return type(self), (self.name, self.why)


class Damaged(_FileFault):
    """The file is broken or cut: what could still be read of it is not the whole."""


class Unreadable(_FileFault):
    """The file is whole but no text or rows that can be read with certainty."""


def raise_faults(faults: Iterable[str]) -> None:
    """Raises the first faults together, and how many more there are.

    Raises:
        InputError: there is any.
    """
    faults = list(faults)
    if not faults:
        return
    shown = faults[:_MOST_FAULTS]
    if len(faults) > len(shown):
        shown.append(f"... and {len(faults) - len(shown)} more faults of this kind")
    raise InputError(*shown)
