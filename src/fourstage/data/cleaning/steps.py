"""The steps of cleaning by name, in the order in which they are taken."""

from __future__ import annotations

from collections.abc import Iterable

from fourstage.errors import InputError, nearest

STEPS = {
    "unicode": "repairs text that was decoded by the wrong table, composes characters (NFC)",
    "control": "removes control and invisible characters; drops text that could not be decoded",
    "boilerplate": "leaves out lines of notices, menus, buttons and paging",
    "language": "tells the language; drops those that are not wanted",
    "repetition": "drops text that repeats itself (Gopher, table A1)",
    "gopher": "drops what is no running text (Gopher, A.1.1)",
    "terminal": "leaves out lines that do not end a sentence (C4)",
    "c4": "leaves out lines of a word or two and on policies; drops pages of few sentences (C4)",
    "fineweb": "drops lists and pages of fragments (FineWeb)",
    "quality": "drops what a classifier finds less good than a sample of good text",
    "pii": "masks e-mail addresses, phone numbers, card and identity numbers, secrets",
}
# Without `terminal`: it loses three tenths of the tokens, and the other rules of C4 alone train
# better models (Penedo et al. 2024, section 3.5).
PRESETS = {
    "raw": (),
    "light": ("unicode", "control"),
    "web": (
        "unicode",
        "control",
        "boilerplate",
        "language",
        "repetition",
        "gopher",
        "c4",
        "fineweb",
        "pii",
    ),
}


def expand(given: str | Iterable[str]) -> tuple[str, ...]:
    """The steps that names of presets and of steps stand for, each once, in their order.

    Args:
        given: one name, or several, as in `["light", "pii"]`.

    Raises:
        InputError: a name is neither a step's nor a preset's.
    """
    wanted: set[str] = set()
    for name in [given] if isinstance(given, str) else given:
        if name in PRESETS:
            wanted.update(PRESETS[name])
        elif name in STEPS:
            wanted.add(name)
        else:
            raise InputError(
                f"data.clean={name}: no such step{nearest(name, [*PRESETS, *STEPS])}; write "
                f"one of {', '.join(PRESETS)}, or a list of {', '.join(STEPS)}"
            )
    return tuple(step for step in STEPS if step in wanted)
