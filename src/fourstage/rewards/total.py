"""The weighted sum of several rewards, each of which is counted and logged by its name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from fourstage.errors import InputError
from fourstage.rewards.contracts import Item, Outcome, Reward, outcome
from fourstage.rewards.shaping import Learned

# More rows that cannot be judged help nobody.
_SHOWN = 3


@dataclass(frozen=True)
class Part:
    """One reward of a sum.

    Attributes:
        weight: its factor; 0 is logged only.
        fault_score: the number of a response that it has no number for, though it should.
        only: column -> value: of rows that have others it says nothing.
    """

    name: str
    reward: Reward
    weight: float = 1.0
    fault_score: float = -1.0
    only: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_learned(self) -> bool:
        """Whether it is the score of a reward model."""
        return isinstance(self.reward, Learned)

    def judges(self, item: Item) -> bool:
        return all(str(item.columns.get(name)) == str(value) for name, value in self.only.items())

    def counted(self, found: Outcome) -> float:
        """What an outcome adds to the sum."""
        if found.fault:
            return self.weight * self.fault_score
        return self.weight * (found.score if found.score is not None else 0.0)


@dataclass(frozen=True)
class Judged:
    """What came of some items.

    Attributes:
        scores: [items] the weighted sums.
        outcomes: part -> [items].
        learned: [items] a reward model's scores, as it gave them; empty where none is asked.
        placed: [items] of each the parts of its score that belong to tokens before the last one,
            as (token of the response, number); empty where scores are of whole responses.
    """

    scores: list[float]
    outcomes: dict[str, list[Outcome]]
    learned: list[float] = field(default_factory=list)
    placed: list[list[tuple[int, float]]] = field(default_factory=list)

    def followed_by(self, other: Judged) -> Judged:
        """These items, and then others that the same parts judged."""
        before = self.outcomes or {name: [] for name in other.outcomes}
        return Judged(
            [*self.scores, *other.scores],
            {name: [*before[name], *found] for name, found in other.outcomes.items()},
            [*self.learned, *other.learned],
            [*self.placed, *other.placed],
        )

    def metrics(self) -> dict[str, float]:
        """`reward/NAME`, the mean over responses it says something of, and `reward_faults/NAME`.

        A fault counts in the mean as nothing; a part that says nothing of any has no mean.
        """
        numbers: dict[str, float] = {}
        for name, outcomes in self.outcomes.items():
            told = [each.score for each in outcomes if each.score is not None]
            if told:
                numbers[f"reward/{name}"] = sum(told) / len(told)
            numbers[f"reward_faults/{name}"] = float(sum(bool(each.fault) for each in outcomes))
        return numbers

    def right(self, name: str) -> list[bool]:
        """Whether each response got a 1 of a part, or more; those it says nothing of are left out.

        A fault is no right answer.
        """
        return [
            each.score is not None and each.score >= 1
            for each in self.outcomes[name]
            if each.fault or each.score is not None
        ]

    def faults(self) -> Counter[str]:
        """How many responses have each fault, by `NAME: reason`."""
        return Counter(
            f"{name}: {each.fault}"
            for name, outcomes in self.outcomes.items()
            for each in outcomes
            if each.fault
        )


class Rewards:
    """Several rewards as one: what training gets is the sum of weight times number.

    Never ends a run: what goes wrong with a response makes it one of `fault_score`.
    """

    def __init__(self, parts: Sequence[Part]):
        self.parts = list(parts)

    def __enter__(self) -> Rewards:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def start(self, say: Callable[[str], None] = print) -> None:
        """Gets every part ready.

        Raises:
            InputError: a line for each part that cannot work.
        """
        faults: list[str] = []
        for part in self.parts:
            try:
                part.reward.start(say)
            except InputError as error:
                faults += [f"rl.rewards, {part.name}: {fault}" for fault in error.faults]
        if faults:
            self.close()
            raise InputError(*faults)

    def check(self, items: Iterable[Item]) -> None:
        """Looks at the rows before training; their responses may be empty.

        Raises:
            InputError: a part can judge no response to some of its rows, or has no rows.
        """
        items = list(items)
        faults: list[str] = []
        for part in self.parts:
            own = [item for item in items if part.judges(item)]
            if not own:
                faults.append(f"rl.rewards, {part.name}: no row has {_told(part.only)}")
            elif reason := part.reward.at_odds(own):
                faults.append(f"rl.rewards, {part.name}: {reason}")
            faults += _unfit(part, own)
        if faults:
            raise InputError(*faults)

    def advice(self, items: Iterable[Item]) -> list[str]:
        """A line for each part that judges these rows, but perhaps not as a person means it."""
        items = list(items)
        told = [
            (part.name, part.reward.advice([item for item in items if part.judges(item)]))
            for part in self.parts
        ]
        return [f"rl.rewards, {name}: {advice}" for name, advice in told if advice]

    def score(self, items: Sequence[Item]) -> Judged:
        outcomes = {part.name: _of(part, items) for part in self.parts}
        sums = [
            sum(part.counted(outcomes[part.name][index]) for part in self.parts)
            for index in range(len(items))
        ]
        return Judged([float(each) for each in sums], outcomes)

    def only(self, names: Iterable[str]) -> Rewards:
        """The parts of these names, as they were started."""
        chosen = set(names)
        return Rewards([part for part in self.parts if part.name in chosen])

    def close(self) -> None:
        for part in self.parts:
            part.reward.close()


def _of(part: Part, items: Sequence[Item]) -> list[Outcome]:
    """The part's outcomes; of items that are not its own nothing."""
    own = [index for index, item in enumerate(items) if part.judges(item)]
    found = _asked(part, [items[index] for index in own])
    outcomes = [Outcome()] * len(items)
    for index, each in zip(own, found, strict=True):
        outcomes[index] = each
    return outcomes


def _asked(part: Part, items: Sequence[Item]) -> list[Outcome]:
    if not items:
        return []
    try:
        found = part.reward.score(items)
    except Exception as error:
        # A run of days does not end for one answer: told, counted and penalised.
        return [Outcome(fault=f"{type(error).__name__}: {error}")] * len(items)
    if len(found) != len(items):
        fault = f"it gave {len(found)} outcomes for {len(items)} responses"
        return [Outcome(fault=fault)] * len(items)
    # Whatever a part made itself passes the same gate: no infinity gets into training.
    return [each if each.fault else outcome(each.score, each.note) for each in found]


def _unfit(part: Part, items: Sequence[Item]) -> list[str]:
    found = [(item, reason) for item in items if (reason := part.reward.unfit(item))]
    shown = [f"{reason} (prompt {_start(item.asked)!r})" for item, reason in found[:_SHOWN]]
    lines = [f"rl.rewards, {part.name}: {each}" for each in shown]
    if lines:
        lines[-1] += f"; so it is with {len(found):,} of {len(items):,} rows"
    return lines


def _told(only: Mapping[str, Any]) -> str:
    return " and ".join(f"{name}={value}" for name, value in only.items()) or "a prompt"


def _start(text: str) -> str:
    return text if len(text) <= 50 else text[:47] + "..."
