"""Transcripts: conversations written as one text, as in Anthropic's HH-RLHF.

Turns begin with `\\n\\nHuman:` and `\\n\\nAssistant:` (Bai et al. 2022, arXiv:2204.05862), or with
`### Human:` and `### Assistant:`.
"""

from __future__ import annotations

import re

from fourstage.data.shapes.row import Malformed
from fourstage.data.shapes.turns import Turn, assistant, user

_TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant):|\s*### ?(Human|Assistant):")
_BEGINNING = re.compile(r"\s*(?:### ?)?(?:Human|Assistant):")


def begins_transcript(text: str) -> bool:
    """Whether a text is meant as a transcript: it begins with someone's turn."""
    return _BEGINNING.match(text) is not None


def holds_turns(text: str) -> bool:
    """Whether there are turns of a transcript anywhere in a text."""
    return begins_transcript(text) or _TURN.search(text) is not None


def read_transcript(text: str, key: str) -> list[Turn]:
    """The turns of a transcript, the last of which may be an empty one of the assistant.

    Raises:
        Malformed: it does not begin with a turn, has none of `Human:`, or does not end in one of
            `Assistant:`.
    """
    before, *parts = _TURN.split(text.strip())
    if before.strip():
        raise Malformed(f"{key} has text in front of its first turn: begin with 'Human:'")
    # Each turn is split into its two possible names, of which one is None, and what is said.
    turns = [
        (user if (name or other) == "Human" else assistant)(words.strip())
        for name, other, words in zip(parts[::3], parts[1::3], parts[2::3], strict=True)
    ]
    if not any(turn.role == "user" for turn in turns):
        raise Malformed(f"{key} has no turn of 'Human:'")
    if turns[-1].role != "assistant":
        raise Malformed(f"{key} does not end in a turn of 'Assistant:'")
    empty = next((n for n, turn in enumerate(turns[:-1], 1) if not turn.content), None)
    if empty:
        raise Malformed(f"{key} has an empty turn, its turn {empty}")
    return turns
