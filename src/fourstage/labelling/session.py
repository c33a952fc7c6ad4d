"""A labeller's way through a set: what is asked next, blind and in a shuffled order."""

from __future__ import annotations

from dataclasses import dataclass

from fourstage.labelling.drawing import Item
from fourstage.labelling.labels import Label, LabelFile, by_item
from fourstage.labelling.ranks import ranks_of
from fourstage.randomness import python_random


@dataclass(frozen=True)
class Question:
    """Which of the completions in `shown` is best?

    Attributes:
        shown: their numbers in the order in which they are seen, which tells nothing.
        number: of the prompt among `total` ones, from 1.
        version: of the labels that it was asked after.
    """

    item: Item
    shown: tuple[int, ...]
    number: int
    total: int
    version: int

    @property
    def texts(self) -> list[str]:
        return [self.item.completions[each] for each in self.shown]


class Session:
    """Asks one labeller about the items of a set, one after another.

    With more than two completions the best is picked, then the best of the rest: K - 1 questions
    rank K of them, where comparing all pairs takes K (K - 1) / 2.

    Args:
        name: of the labeller. Two of them see a pair in orders of their own: what both prefer for
            its place would otherwise count as agreement.
    """

    def __init__(self, items: list[Item], labels: LabelFile, name: str, seed: int):
        self.items, self.labels, self.name, self.seed = items, labels, name, seed

    @property
    def done(self) -> int:
        """Items with nothing left to ask."""
        labelled = by_item(self.labels.labels)
        return sum(_answered(item, labelled.get(item.id, [])) for item in self.items)

    def question(self) -> Question | None:
        """What is asked now; None at the end."""
        labelled = by_item(self.labels.labels)
        for number, item in enumerate(self.items, 1):
            given = labelled.get(item.id, [])
            if not _answered(item, given):
                picked = {label.best for label in given}
                shown = tuple(each for each in self._order(item) if each not in picked)
                return Question(item, shown, number, len(self.items), self.labels.version)
        return None

    def answer(self, question: Question, verdict: str, place: int | None = None) -> None:
        """Writes a label down.

        Args:
            verdict: "best", "tie", "bad" or "skip".
            place: from 0, of the best one among those shown.
        """
        best = None if place is None else question.shown[place]
        self.labels.add(Label(question.item.id, question.shown, verdict, best))

    def undo(self) -> bool:
        """Takes the last answer back, also one of an earlier session; False where there is none."""
        return self.labels.undo() is not None

    def _order(self, item: Item) -> list[int]:
        order = list(range(len(item.completions)))
        python_random(self.seed, "shown", self.name, item.id).shuffle(order)
        return order


def _answered(item: Item, given: list[Label]) -> bool:
    return ranks_of(item, given) is not None or any(label.verdict == "skip" for label in given)
