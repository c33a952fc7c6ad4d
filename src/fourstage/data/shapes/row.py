"""A row that was understood, and the two ways in which one is not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from fourstage.tasks import Messages


class Malformed(ValueError):
    """A row that cannot be used: the reason, without its place."""


class Unteachable(Malformed):
    """A well-formed comparison that teaches nothing: a bad row, yet no reason to mistrust its file.

    Of HH-RLHF's comparisons it is one in three hundred.
    """


@dataclass(frozen=True)
class Row:
    """A row that was understood.

    Attributes:
        kind: what it can teach: "text", "dialogue", "comparison", "ranking", "unpaired",
            "stepwise" or "prompt".
        where: its place, for messages.
        text: of a text row, as it stands; of a transcript, too.
        messages: a whole conversation, or what stands before the answer(s). Tools stand in the
            system message between `<tools>` and `</tools>`, calls and results between
            `<tool_call>` and `<tool_response>` tags, reasoning between `<think>` and `</think>`.
        chosen, rejected: the two answers of a comparison.
        margin: by how much the chosen answer is better, where that is told.
        shape: the form it was written in, one of `SHAPES`.
        trained: for each of the messages of a dialogue, whether it is trained on.
        responses: of a ranking; of a multiple choice its choices; of an answer its judged steps.
        scores: of each response, higher is better; of a dialogue that of its answer.
        head: which head of a reward model the row is about.
        attributes: scores by the names of several heads.
        category: what the row is counted under when it is held out.
        ranks: of each response, 1 is best and ties are equal.
        label: whether the answer of an unpaired row is a good one.
        answer: the ground truth that an answer can be checked by, of several the first; for code
            the program of tests.
        columns: the row as it was read, for rewards that look at more of it; None where none does.
    """

    kind: str
    where: str
    text: str = ""
    messages: Messages | None = None
    chosen: str = ""
    rejected: str = ""
    margin: float | None = None
    shape: str = ""
    trained: tuple[bool, ...] = ()
    responses: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    ranks: tuple[float, ...] = ()
    label: bool | None = None
    answer: str | None = None
    head: str = ""
    attributes: Mapping[str, float] = field(default_factory=dict)
    category: str = ""
    columns: dict[str, Any] | None = None

    def as_text(self) -> str:
        """The row as plain text, for pretraining: of several answers the best."""
        if self.text:
            return self.text
        parts = [message["content"] for message in self.messages or []]
        if self.kind == "ranking":
            parts.append(self.responses[self.standings().index(1)])
        elif self.kind == "stepwise":
            parts += self.responses
        return "\n".join(part for part in [*parts, self.chosen] if part)

    def conversation(self, answer: str) -> Messages:
        return [*(self.messages or []), {"role": "assistant", "content": answer}]

    def pairs(self) -> list[Row]:
        """The comparisons that a row holds: each better answer of a ranking with each worse one.

        Ties and equal answers are left out. The margin is the difference of the scores.
        """
        if self.kind == "comparison":
            return [self]
        if self.kind != "ranking":
            return []
        places = self.standings()
        order = sorted(range(len(places)), key=lambda index: places[index])
        return [
            self._pair(better, worse)
            for better, worse in combinations(order, 2)
            if places[better] != places[worse]
            and self.responses[better].strip() != self.responses[worse].strip()
        ]

    def standings(self) -> list[int]:
        """The place of each response of a ranking, from 1; ties share theirs."""
        return _standings(self.scores, self.ranks)

    def _pair(self, better: int, worse: int) -> Row:
        return Row(
            "comparison",
            self.where,
            messages=self.messages,
            chosen=self.responses[better],
            rejected=self.responses[worse],
            margin=self.scores[better] - self.scores[worse] if self.scores else None,
            shape="preference",
            head=self.head,
            category=self.category,
        )


def _standings(scores: Sequence[float], ranks: Sequence[float]) -> list[int]:
    """The place of each response, from 1; ties share theirs. Scores go before ranks."""
    values = [-score for score in scores] or list(ranks)
    return [1 + sum(other < value for other in values) for value in values]
