"""Texts of a model as a terminal and a page show them: nothing in them can hide or act."""

from __future__ import annotations

import unicodedata

from fourstage.tasks import Messages


def harmless(text: str) -> str:
    """`text` with control characters made visible, but for line ends and tabs.

    A completion could otherwise move the cursor, clear the screen, or turn the direction of what
    stands after it.
    """
    return "".join(map(_harmless, text))


def _harmless(character: str) -> str:
    if character in "\n\t":
        return character
    if character < " ":
        return chr(0x2400 + ord(character))
    # Controls, marks of direction, lone surrogates; joiners are part of scripts and emoji.
    kind = unicodedata.category(character)
    if kind in ("Cc", "Cs") or (kind == "Cf" and character not in "\u200c\u200d\u00ad"):
        return f"<U+{ord(character):04X}>"
    return character


def turns_of(prompt: str | Messages) -> Messages:
    """A prompt as messages."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def shown_turns(prompt: str | Messages) -> Messages:
    """The same, as they are shown."""
    return [{"role": e["role"], "content": harmless(e["content"])} for e in turns_of(prompt)]
