"""Alarms of reinforcement learning: what its numbers say is going wrong, and what to do about it.

Read from the rows of metrics.jsonl alone, one after another, so that a run at work and one of last
year are judged alike. Bounds are rules of thumb: an alarm says where to look, and stops nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from fourstage.reporting.numbers import figures, is_number

# Iterations that a mean is taken over, and how far back growth is measured.
_FEW, _BEFORE = 3, 10
_RUNAWAY, _LEAST_KL = 3.0, 10.0
_ENTROPY_LEFT, _VARIETY_LEFT = 0.2, 0.5
_ALIKE, _APART = 0.8, 0.5
_LENGTH_GROWTH = 2.0
_CLIPPED, _MOVED = 0.3, 0.1
_DEAD = 0.8
_CRITIC_PATIENCE = 5
_GOLD_LOST = 0.05
_CORRECTED = 0.1
_UNFAMILIAR, _DISAGREEMENT, _WATCH_LOST = 0.25, 2.0, 0.1
_FAR_BELOW, _OVERFITTED = -10.0, 1.1
_FAULTS = "reward_faults/"
# Any of these is in a row of a loss on comparisons.
_OF_A_COMPARISON = {"reward_chosen", "reward_desirable", "validation_preference_loss"}

Row = Mapping[str, Any]
# Is given each row that concerns it, in order; says what it sees in one, or None.
Look = Callable[[Row], str | None]


@dataclass(frozen=True)
class Alarm:
    """One thing that goes wrong, told once, where it is first seen.

    Attributes:
        step, tokens: where that is; tokens may be unknown.
        what: the number, and what it is compared with.
        remedy: what to do.
    """

    name: str
    step: float
    tokens: float | None
    what: str
    remedy: str


def alarms(rows: Iterable[Row]) -> list[Alarm]:
    """The alarms of a stage's rows, in the order of their steps; none but of reinforcement
    learning."""
    lookout = Lookout()
    return [alarm for row in rows for alarm in lookout(row)]


class Lookout:
    """Looks at the rows of a stage one by one; what is kept of them does not grow."""

    def __init__(self) -> None:
        self._looks = {name: begin() for name, (begin, _) in _ALARMS.items()}
        self._iteration: float | None = None

    def __call__(self, row: Row) -> list[Alarm]:
        """The alarms that are first seen in this row."""
        raised = []
        for name in self._concerned(row):
            what = self._looks[name](row)
            if what is not None:
                del self._looks[name]
                tokens = row["tokens"] if is_number(row.get("tokens")) else None
                raised.append(Alarm(name, row["step"], tokens, what, _ALARMS[name][1]))
        return raised

    def _concerned(self, row: Row) -> list[str]:
        """The alarms not raised yet that look at the row.

        All rows of an iteration tell the same of what it drew, so that most look at its first
        alone; clips are of updates, of which every row has others. Losses on given comparisons draw
        nothing, and have no iterations: every row counts.
        """
        iteration = row.get("iteration")
        if not is_number(iteration):
            names = _OF_COMPARISONS if _OF_A_COMPARISON & row.keys() else ()
        elif iteration == self._iteration:
            names = _OF_UPDATES
        else:
            names = [name for name in self._looks if name not in _OF_COMPARISONS]
            self._iteration = iteration
        return [name for name in names if name in self._looks]


def _mean(name: str) -> Callable[[Row], float | None]:
    """The mean of a number over a row and the few before; None where one lacks it."""
    last: deque[float | None] = deque(maxlen=_FEW)

    def mean(row: Row) -> float | None:
        value = row.get(name)
        last.append(float(value) if is_number(value) else None)
        known = [value for value in last if value is not None]
        return fmean(known) if len(known) == _FEW else None

    return mean


def _beyond(name: str, is_bad: Callable[[float], bool], words: Callable[[float], str]) -> Look:
    """The first mean that is bad by itself."""
    mean = _mean(name)

    def look(row: Row) -> str | None:
        now = mean(row)
        return words(now) if now is not None and is_bad(now) else None

    return look


def _since_the_start(
    name: str, is_bad: Callable[[float, float], bool], unit: str, digits: int
) -> Look:
    """The first mean that is bad beside that of the first few iterations."""
    mean, first, seen = _mean(name), None, 0

    def look(row: Row) -> str | None:
        nonlocal first, seen
        now, seen = mean(row), seen + 1
        first = now if first is None else first
        if now is None or first is None or seen < 2 * _FEW or not is_bad(now, first):
            return None
        return f"{figures(now, digits)} {unit}, {figures(first, digits)} at first"

    return look


def _kl() -> Look:
    mean = _mean("kl")
    means: deque[float | None] = deque(maxlen=_BEFORE + 1)

    def look(row: Row) -> str | None:
        means.append(mean(row))
        now, then = means[-1], means[0]
        if len(means) <= _BEFORE or now is None or then is None:
            return None
        if now <= max(_LEAST_KL, _RUNAWAY * then):
            return None
        return f"KL {figures(now, 1)} nats a response, {figures(then, 1)} ten iterations before"

    return look


def _entropy() -> Look:
    unit = "nats a token of entropy"
    return _since_the_start("entropy", lambda now, at: now < _ENTROPY_LEFT * at, unit, 3)


def _length() -> Look:
    unit = "tokens a response"
    return _since_the_start("length", lambda now, at: now > _LENGTH_GROWTH * at, unit, 0)


def _variety() -> Look:
    """Answers become alike: over all prompts, or those to the same one."""
    over_all = _since_the_start(
        "distinct_2", lambda now, at: now < _VARIETY_LEFT * at, "distinct-2", 2
    )
    # Where a task has one right answer they begin alike, and may well end the same.
    to_one = _since_the_start(
        "self_overlap", lambda now, at: now > _ALIKE and at < _APART, "self-overlap", 2
    )

    def look(row: Row) -> str | None:
        seen = [over_all(row), to_one(row)]
        return ", ".join(filter(None, seen)) or None

    return look


def _gold() -> Look:
    return _parted("gold", "gold", _GOLD_LOST)


def _watch() -> Look:
    return _parted("watch_reward", "the reward model that only watches", _WATCH_LOST)


def _parted(name: str, words: str, lost: float) -> Look:
    """A number below its best while the reward is above what it was then."""
    mean, mean_reward = _mean(name), _mean("reward")
    best: tuple[float, float] | None = None

    def look(row: Row) -> str | None:
        nonlocal best
        value, reward = mean(row), mean_reward(row)
        if value is None or reward is None:
            return None
        if best is not None and value < best[0] - lost and reward > best[1]:
            return (
                f"{words} {figures(value, 3)} after {figures(best[0], 3)}, while the reward rose "
                f"from {figures(best[1], 3)} to {figures(reward, 3)}"
            )
        best = max(best or (value, reward), (value, reward))
        return None

    return look


def _unfamiliar() -> Look:
    return _since_the_start(
        "proxy_unfamiliar",
        lambda now, at: now > max(_UNFAMILIAR, 2 * at),
        "of scores where the reward model's training comparisons hardly have any",
        2,
    )


def _disagreement() -> Look:
    words = "members of the reward model disagree {:.1f} times as much as before".format
    return _beyond("proxy_disagreement", lambda ratio: ratio > _DISAGREEMENT, words)


def _displaced() -> Look:
    def words(worth: float) -> str:
        return f"the chosen answers are worth {figures(worth, 1)}, far less likely than at first"

    return _beyond("reward_chosen", lambda worth: worth < _FAR_BELOW, words)


def _overfitted() -> Look:
    lowest: float | None = None

    def look(row: Row) -> str | None:
        nonlocal lowest
        loss = row.get("validation_loss")
        if not is_number(loss):
            return None
        if lowest is not None and loss > _OVERFITTED * lowest > 0:
            return f"validation loss {figures(loss, 3)} after {figures(lowest, 3)}"
        lowest = loss if lowest is None else min(lowest, loss)
        return None

    return look


def _clips() -> Look:
    clipped = _beyond("clip_fraction", lambda share: share > _CLIPPED, "{:.0%} clipped".format)

    def look(row: Row) -> str | None:
        # Narrow clips of whole responses (GSPO) bite most of the time, and are meant to.
        moved = row.get("ratio_deviation")
        return None if is_number(moved) and moved <= _MOVED else clipped(row)

    return look


def _dead() -> Look:
    words = "{:.0%} of groups teach nothing".format
    return _beyond("dead_groups", lambda share: share > _DEAD, words)


def _critic() -> Look:
    def words(value: float) -> str:
        return f"explained variance {figures(value, 2)}"

    worse, seen = _beyond("explained_variance", lambda value: value < 0, words), 0

    def look(row: Row) -> str | None:
        nonlocal seen
        seen += 1
        return worse(row) if seen > _CRITIC_PATIENCE else None

    return look


def _faults() -> Look:
    in_a_row: dict[str, int] = {}

    def look(row: Row) -> str | None:
        failed = [name for name in row if name.startswith(_FAULTS) and row[name]]
        for name in [*in_a_row]:
            if name not in failed:
                del in_a_row[name]
        for name in failed:
            in_a_row[name] = in_a_row.get(name, 0) + 1
        long = [name for name in failed if in_a_row[name] == _FEW]
        told = [f"{figures(row[name], 0)} faults of {name.removeprefix(_FAULTS)}" for name in long]
        return min(told, default=None)

    return look


def _corrected() -> Look:
    words = "{:.0%} of tokens outside of the correction's band".format
    return _beyond("correction_fraction", lambda share: share > _CORRECTED, words)


_ALARMS: dict[str, tuple[Callable[[], Look], str]] = {
    "kl": (
        _kl,
        "the policy runs away: raise rl.kl_coefficient, set rl.kl_target, or lower "
        "rl.learning_rate",
    ),
    "entropy": (
        _entropy,
        "the policy stops exploring: set rl.entropy_coefficient, raise rl.clip_high, or lower "
        "rl.learning_rate",
    ),
    "length": (
        _length,
        "look whether longer answers are better ones; if not: rl.algorithm=dr-grpo, rl.overlong="
        "penalty, or a part `length`",
    ),
    "over-optimisation": (
        _gold,
        "the rewards are exploited: stop earlier, raise rl.kl_coefficient, or train a better "
        "reward model",
    ),
    "watcher": (
        _watch,
        "the two reward models part: stop earlier, raise rl.kl_coefficient, or train the one that "
        "pays on answers of this policy (fourstage label)",
    ),
    "unfamiliar": (
        _unfamiliar,
        "the reward model is asked about answers unlike those it learned from: have some of these "
        "compared (fourstage label) and train it again, or raise rl.kl_coefficient",
    ),
    "disagreement": (
        _disagreement,
        "the reward is a guess there: raise reward.caution or rl.kl_coefficient",
    ),
    "displacement": (
        _displaced,
        "chosen answers fall with the rejected ones: raise rl.preference.beta, write "
        "rl.preference.nll_coefficient=1, or lower rl.learning_rate",
    ),
    "over-fitting": (
        _overfitted,
        "comparisons are learned by heart: lower rl.epochs or rl.learning_rate",
    ),
    "clips": (_clips, "updates are too large: lower rl.learning_rate, or take fewer rl.epochs"),
    "dead groups": (
        _dead,
        "prompts are too easy or too hard: choose others, raise rl.group, or set "
        "rl.dynamic_sampling",
    ),
    "critic": (
        _critic,
        "the critic is worse than a constant: set rl.value_warmup, raise rl.critic_learning_rate, "
        "or take an algorithm without one",
    ),
    "diversity": (
        _variety,
        "answers become alike: raise rl.kl_coefficient or rl.entropy_coefficient; read "
        "samples.jsonl",
    ),
    "faults": (_faults, "rl.rewards or rl.environment keeps failing: the output says why"),
    "correction": (
        _corrected,
        "sampler and trainer disagree: use the same precision for both, or rl.correction=icepop; "
        "with rl.behind=1 updates are too large for rollouts that lag: lower rl.learning_rate",
    ),
}
_OF_COMPARISONS = ("displacement", "over-fitting")
_OF_UPDATES = ("clips",)
NAMES = tuple(_ALARMS)
