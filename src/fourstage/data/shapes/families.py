"""What shapes have to do with each other, and with the parts of a recipe."""

from __future__ import annotations

from collections.abc import Mapping

# Every shape as it is called within a sentence; where two are as frequent the first one counts.
SHAPES = {
    "text": "a text",
    "strings": "a bare string",
    "messages": "messages",
    "sharegpt": "a ShareGPT conversation",
    "transcript": "a transcript",
    "alpaca": "an alpaca instruction with its output",
    "prompt-response": "a prompt with a response",
    "question-answer": "a question with an answer",
    "verifiable": "a prompt with ground truth",
    "preference": "a comparison of two answers",
    "implicit-prompt": "a comparison without a prompt",
    "ranking": "ranked answers",
    "scored": "scored answers",
    "unpaired": "a labelled answer",
    "stepwise": "an answer in judged steps",
    "prompt": "a prompt alone",
}
# Rows that have all that those of the file's shape have are no faults in it.
_ALSO_FIT = {
    "text": {"transcript"},
    "messages": {"sharegpt"},
    "sharegpt": {"messages"},
    "question-answer": {"verifiable"},
    "verifiable": {"question-answer"},
    "prompt": {"verifiable"},
    "prompt-response": {"scored"},
    "ranking": {"scored"},
    "scored": {"ranking"},
    "implicit-prompt": {"preference"},
}
# The fields of a recipe that take a kind of row; the last two where reward.objective says so, and
# single judgements with `rl.algorithm=kto` too.
STAGES_OF: dict[str, tuple[str, ...]] = {
    "text": ("data.pretrain",),
    "dialogue": ("data.sft", "data.prompts"),
    "comparison": ("data.preferences",),
    "ranking": ("data.preferences",),
    "prompt": ("data.prompts",),
    "unpaired": ("data.preferences",),
    "stepwise": ("data.preferences",),
}
_NEEDS = {
    "text": "text",
    "dialogue": "messages, conversations, prompt + completion or instruction + output",
    "comparison": "prompt + chosen + rejected, or ranked answers",
    "prompt": "prompt",
    "unpaired": "prompt + completion + label",
    "stepwise": "prompt + completions + labels, one for each step",
    "scored": "prompt + response + score, or responses + scores",
}


def settle(shapes: Mapping[str, int]) -> str:
    """The shape of a file: that of most of its rows.

    Args:
        shapes: how many rows there are of each shape, at least one.
    """
    order = {shape: place for place, shape in enumerate(SHAPES)}
    return min(shapes, key=lambda shape: (-shapes[shape], order.get(shape, len(order)), shape))


def fits(shape: str, majority: str) -> bool:
    """Whether a row of one shape may stand in a file whose rows are mostly of another."""
    return shape == majority or shape in _ALSO_FIT.get(majority, ())


def misfit(shape: str, majority: str) -> str:
    """Why a row of one shape is a fault in a file of another."""
    return (
        f"this row is {SHAPES.get(shape, shape)}, most rows of the file are "
        f"{SHAPES.get(majority, majority)}: complete it, or move it to a file of its own"
    )


def needed(kind: str) -> str:
    """What rows of a kind are written with."""
    return _NEEDS[kind]
