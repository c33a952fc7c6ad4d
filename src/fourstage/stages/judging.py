"""What responses are worth: the reward model's score, the other parts of `rl.rewards`, their sum.

The reward model is asked by all processes, each for its share of the responses. All else is asked
once, by the process that writes, and told to the others: a function of one's own sees the whole
batch, a service gets each response once, and every process learns from the same numbers.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fourstage.environments.building import build as environments_of
from fourstage.environments.contracts import told
from fourstage.environments.hosting import Environments
from fourstage.evaluation.alignment import reward_rows
from fourstage.evaluation.estimates import Numbers
from fourstage.evaluation.responses import Response
from fourstage.evaluation.steps import (
    rewards_of_steps,
    step_places,
    step_scores,
    whole_score,
)
from fourstage.model.transformer import Transformer
from fourstage.parallel.group import Group
from fourstage.recipe.rewards import CHECKERS
from fourstage.recipe.rl import PLACING, RL
from fourstage.rewards.building import build
from fourstage.rewards.contracts import Item, Outcome, item_of
from fourstage.rewards.total import Judged, Rewards
from fourstage.stages import playing
from fourstage.stages.watching import Watch, shared_scores
from fourstage.tasks import Task

if TYPE_CHECKING:
    from fourstage.tokenizer import Tokenizer

_MODEL = "model"
# Faults that are said in a run, and characters of each: one may tell of its response, and each then
# is another.
_MOST_FAULTS, _FAULT_LENGTH = 20, 200


@dataclass(frozen=True)
class Learned:
    """What a reward model says of some responses.

    Attributes:
        scores: [responses], without any penalty.
        steps: of each response [steps] the rewards of its steps, which make up its score; None
            where the score is of the whole.
    """

    scores: np.ndarray
    steps: list[np.ndarray] | None = None


@dataclass
class Judge:
    """Gives a number to each response, as `rl.rewards` says.

    Attributes:
        section: `rl` of a resolved recipe.
        reward_model: None where nothing asks it.
        lock: held by the thread that asks the parts or plays with the environment.
        missing_end: what counts in place of its score for a response without an end; None leaves
            the score.
        watch: what its scores are held against, iteration by iteration.
    """

    section: RL
    tokenizer: Tokenizer
    reward_model: Transformer | None
    group: Group = field(default_factory=Group)
    missing_end: float | None = None
    watch: Watch | None = None
    rewards: Rewards = field(init=False)
    environments: Environments | None = field(init=False)
    lock: threading.Lock = field(init=False, default_factory=threading.Lock)

    def __post_init__(self) -> None:
        environment = self.section.environment
        self.environments = environments_of(environment) if environment is not None else None
        self.rewards = build(self.section.rewards, self.section.max_new_tokens or 1)

    def __enter__(self) -> Judge:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.rewards.close()
        if self.environments is not None:
            self.environments.close()

    def start(self, tasks: Sequence[Task], say: Callable[[str], None] = print) -> None:
        """Gets the parts ready, on the process that asks them, and has them look at the rows.

        Raises:
            InputError: a line for each part that cannot work, or cannot judge some rows.
        """
        if self.group.writes and self.section.rewards:
            _try(self.rewards, tasks, say)
        if self.group.writes and self.environments is not None:
            self.environments.start(say, [told(task) for task in tasks[:1]])

    @property
    def has_parts(self) -> bool:
        """Whether anything but a reward model is asked."""
        return any(part.kind != _MODEL for part in self.section.rewards)

    @property
    def checkers(self) -> list[str]:
        """Names of the parts that tell right from wrong, the one that weighs most first."""
        found = [part for part in self.section.rewards if part.kind in CHECKERS]
        found.sort(key=lambda part: -part.weight)
        return [part.name or part.kind for part in found]

    @property
    def can_judge(self) -> bool:
        """Whether anything gives a number; losses on given comparisons may have nothing."""
        return self.reward_model is not None or bool(self.section.rewards)

    def alone(self) -> Judge:
        """The same parts for the process that writes, without the others and the penalty."""
        return self._with(group=Group(), missing_end=None)

    def beside(self, group: Group) -> Judge:
        """The same parts for a thread, which has sums of its own."""
        return self._with(group=group)

    def _with(self, **changes: Any) -> Judge:
        found = replace(self, **changes)
        found.rewards, found.environments = self.rewards, self.environments
        found.lock = self.lock
        return found

    def __call__(self, tasks: Sequence[Task], responses: Sequence[Response]) -> Judged:
        """The sums and the parts of responses to these tasks; all processes call it."""
        played = self.section.environment
        if played is not None:
            by_turn = played.credit == "turn"
            return playing.judged(playing.dialogues(responses), by_turn)
        learned = self.learned(responses) if self.reward_model is not None else None
        items = self._items(tasks, responses, learned)
        if not self.has_parts:
            judged = self.rewards.score(items)
        else:
            here = None
            if self.group.writes:
                with self.lock:
                    here = self.rewards.score(items)
            judged = _judged(self.group.tell(_plain(here) if here else None))
        if learned is None:
            return judged
        placed = self._placed(responses, learned, judged)
        return replace(judged, learned=learned.scores.tolist(), placed=placed)

    def _items(
        self, tasks: Sequence[Task], responses: Sequence[Response], learned: Learned | None
    ) -> list[Item]:
        paid: Sequence[float | None] = [None] * len(responses)
        if learned is not None:
            paid = self.paid(responses, learned.scores).tolist()
        return [
            item_of(task, each.text, self.ended(each), len(each.tokens), score)
            for task, each, score in zip(tasks, responses, paid, strict=True)
        ]

    def learned(self, responses: Sequence[Response]) -> Learned:
        """What the reward model says of each: `(score - reward_mean) / reward_std`, or what
        `rl.step_rewards` makes of its steps; all processes call it."""
        assert self.reward_model is not None
        how: Any = self.section.step_rewards
        if how is None:
            rows = reward_rows(self.tokenizer, responses)
            return Learned(shared_scores(self.reward_model, rows, self.group))
        own = step_scores(self.reward_model, self.tokenizer, self.group.share(responses))
        told = [torch.from_numpy(each) for each in own]
        steps = [each.numpy() for each in self.group.collect(told, len(responses), torch.double)]
        if how not in PLACING:
            return Learned(np.array([whole_score(each, how) for each in steps], np.float64))
        at_steps = [rewards_of_steps(each, how) for each in steps]
        return Learned(np.array([each.sum() for each in at_steps], np.float64), at_steps)

    def paid(self, responses: Sequence[Response], found: np.ndarray) -> np.ndarray:
        """[responses] what training gets of the scores: without an end, the penalty instead."""
        if self.missing_end is None:
            return found
        return np.where([self.ended(each) for each in responses], found, self.missing_end)

    def _placed(
        self, responses: Sequence[Response], learned: Learned, judged: Judged
    ) -> list[list[tuple[int, float]]]:
        """Of each response the rewards of its steps but the last, which is left for the end; none
        of one whose score is not what its steps gave."""
        if learned.steps is None:
            return []
        name, weight = next(
            ((part.name, part.weight) for part in self.rewards.parts if part.is_learned),
        )
        found: list[list[tuple[int, float]]] = []
        for index, each in enumerate(responses):
            counts = judged.outcomes[name][index].score is not None
            counts &= self.missing_end is None or self.ended(each)
            places = step_places(self.tokenizer, each)[:-1] if counts else []
            values = learned.steps[index].tolist()
            found.append([(at, weight * v) for at, v in zip(places, values, strict=False)])
        return found

    def ended(self, response: Response) -> bool:
        """Whether the response ended its turn; the end of a document is no end of a turn."""
        return bool(response.tokens) and response.tokens[-1] == self.tokenizer.end_of_turn

    def numbers(self, judged: Judged, responses: Sequence[Response] = ()) -> dict[str, float]:
        """`reward/NAME` and `reward_faults/NAME` of each part, of a reward model alone its faults,
        if any; and what is watched of it on the responses that were judged."""
        found = judged.metrics()
        if not self.section.rewards and self.environments is None:
            found = {name: value for name, value in found.items() if "faults" in name and value}
        if self.watch is None or self.reward_model is None or not responses:
            return found
        return found | self.watch.numbers(
            judged.learned, responses, self.reward_model, self.tokenizer, self.group
        )

    def measured(
        self, suffix: str, tasks: Sequence[Task], responses: Sequence[Response]
    ) -> Numbers:
        """Means over held-out responses, with intervals: `proxy_reward`, each part's and the
        accuracy by those that check; nothing where there is nobody to judge."""
        if not self.can_judge:
            return Numbers()
        judged = self(tasks, responses)
        found = Numbers().add_means(f"proxy_reward{suffix}", np.array(judged.scores))
        for name, outcomes in judged.outcomes.items() if self.section.rewards else ():
            told = [each.score for each in outcomes if each.score is not None]
            if told:
                found.add_means(f"reward_part{suffix}/{name}", told)
        return found.update(self._accuracy(f"sampled_accuracy{suffix}", judged))

    def accuracy(self, name: str, tasks: Sequence[Task], responses: Sequence[Response]) -> Numbers:
        """The share that is right by the parts that check, which alone are asked."""
        items = [
            item_of(task, each.text, self.ended(each), len(each.tokens))
            for task, each in zip(tasks, responses, strict=True)
        ]
        return self._accuracy(name, self.rewards.only(self.checkers).score(items))

    def _accuracy(self, name: str, judged: Judged) -> Numbers:
        """`name` by the checker that weighs most, and `name/PART` by each of several."""
        found, checkers = Numbers(), self.checkers
        for index, part in enumerate(checkers):
            right = judged.right(part)
            if index == 0:
                found.add_means(name, right)
            if len(checkers) > 1:
                found.add_means(f"{name}/{part}", right)
        return found


def check_rewards(section: RL, tasks: Sequence[Task], say: Callable[[str], None]) -> None:
    """Starts the parts or the environment, has them look at the rows, and ends them.

    Raises:
        InputError: a line for each part that cannot work, or cannot judge some rows; an environment
            that does not begin.
    """
    with build(section.rewards, section.max_new_tokens or 1) as rewards:
        if section.rewards:
            _try(rewards, tasks, say)
    if section.environment is not None:
        environments = environments_of(section.environment)
        try:
            environments.start(say, [told(task) for task in tasks[:1]])
        finally:
            environments.close()


def _try(rewards: Rewards, tasks: Sequence[Task], say: Callable[[str], None]) -> None:
    """Starts the parts, has them look at the rows, and says what they advise.

    Raises:
        InputError: a line for each part that cannot work, or cannot judge some rows.
    """
    rewards.start(say)
    items = [item_of(task, "", True, 0) for task in tasks]
    rewards.check(items)
    for line in rewards.advice(items):
        say(line)


def told_of_faults(faults: Counter[str], responses: int, known: set[str]) -> list[str]:
    """A line for each of the first faults that was not known before; adds it to them."""
    lines = []
    for fault, count in faults.items():
        if fault not in known and len(known) < _MOST_FAULTS:
            known.add(fault)
            short = " ".join(fault.split())[:_FAULT_LENGTH]
            lines.append(f"rl: {count} of {responses} responses have no number: {short}")
    return lines


def _plain(judged: Judged) -> dict[str, Any]:
    """As JSON, in which a number stays the same to the last digit."""
    outcomes = {
        name: [[each.score, each.fault, each.note] for each in found]
        for name, found in judged.outcomes.items()
    }
    return {"scores": judged.scores, "outcomes": outcomes}


def _judged(told: dict[str, Any]) -> Judged:
    outcomes = {
        name: [Outcome(*each) for each in found] for name, found in told["outcomes"].items()
    }
    return Judged(told["scores"], outcomes)
