"""Token ids as coloured pieces of text: where each begins and which of them are trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from rich.text import Text

# Two shades of each, so that neighbours can be told apart.
READ = ("grey62 on grey11", "grey62 on grey19")
TRAINED = ("black on green3", "black on spring_green3")
SCORED = ("black on yellow1", "black on gold1")
OPEN, CLOSE = "⟦", "⟧"


class Speaks(Protocol):
    """What is needed of a tokenizer here."""

    def token_text(self, token: int) -> str: ...


def visible(text: str) -> str:
    """A piece of text with its line breaks, tabs and control characters made visible."""
    marks = {"\n": "⏎", "\t": "⇥", "\r": "␍"}
    return "".join(
        marks.get(character, character if character.isprintable() else "�") for character in text
    )


def coloured(
    tokenizer: Speaks, ids: Sequence[int], trained: Sequence[bool], scored: int | None = None
) -> Text:
    """The tokens of one document: read ones grey, trained ones green, the scored one yellow.

    Trained stretches also stand in ⟦ ⟧, for a terminal or a file without colours.

    Args:
        ids, trained: [tokens] the document and whether each token is a target.
        scored: place of the token at which a score is read.
    """
    text, inside = Text(), False
    for place, (token, is_trained) in enumerate(zip(ids, trained, strict=True)):
        if is_trained != inside:
            text.append(OPEN if is_trained else CLOSE, style="dim")
            inside = is_trained
        styles = SCORED if place == scored else TRAINED if is_trained else READ
        text.append(visible(tokenizer.token_text(int(token))), style=styles[place % 2])
    if inside:
        text.append(CLOSE, style="dim")
    return text
