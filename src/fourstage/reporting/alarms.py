"""Alarms of reinforcement learning: what its numbers say is going wrong, and what to do about it.

Read from the rows of metrics.jsonl alone, so a run at work and one of last year are judged alike.
Bounds are rules of thumb: an alarm says where to look, and stops nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from fourstage.reporting.numbers import figures, is_number

# Iterations that a mean is taken over, and how far back growth is measured.
_FEW, _BEFORE = 3, 10
_RUNAWAY, _LEAST_KL = 3.0, 10.0
_ENTROPY_LEFT, _VARIETY_LEFT = 0.2, 0.5
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

Rows = Sequence[dict[str, Any]]
# Where among the iterations something is first seen, and what.
Seen = tuple[int, str]


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


def alarms(rows: Rows) -> list[Alarm]:
    """The alarms of a stage's rows, in the order of their steps; none but of reinforcement
    learning."""
    iterations = [row for row in rows if is_number(row.get("iteration"))]
    found = []
    for name, (sees, remedy) in _ALARMS.items():
        # Losses on given comparisons draw nothing, and have no iterations.
        looked_at = _compared(rows) if name in _OF_COMPARISONS else iterations
        seen = sees(looked_at)
        if seen is not None:
            row = looked_at[seen[0]]
            tokens = row["tokens"] if is_number(row.get("tokens")) else None
            found.append(Alarm(name, row["step"], tokens, seen[1], remedy))
    return sorted(found, key=lambda alarm: alarm.step)


def _means(rows: Rows, name: str) -> list[float | None]:
    """Of each iteration, the mean over it and the few before; None where one lacks the number."""
    values = [row.get(name) for row in rows]
    known = [float(value) if is_number(value) else None for value in values]
    found: list[float | None] = [None] * len(known)
    for end in range(_FEW, len(known) + 1):
        few = [value for value in known[end - _FEW : end] if value is not None]
        found[end - 1] = fmean(few) if len(few) == _FEW else None
    return found


def _beyond(
    rows: Rows, name: str, is_bad: Callable[[float], bool], words: Callable[[float], str]
) -> Seen | None:
    """The first mean that is bad by itself."""
    for index, mean in enumerate(_means(rows, name)):
        if mean is not None and is_bad(mean):
            return index, words(mean)
    return None


def _since_the_start(
    rows: Rows, name: str, is_bad: Callable[[float, float], bool], unit: str, digits: int
) -> Seen | None:
    """The first mean that is bad beside that of the first few iterations."""
    means = _means(rows, name)
    first = next((mean for mean in means if mean is not None), None)
    for index, mean in enumerate(means):
        if mean is None or first is None or index < 2 * _FEW - 1:
            continue
        if is_bad(mean, first):
            return index, f"{figures(mean, digits)} {unit}, {figures(first, digits)} at first"
    return None


def _kl(rows: Rows) -> Seen | None:
    means = _means(rows, "kl")
    for index in range(_BEFORE, len(means)):
        now, then = means[index], means[index - _BEFORE]
        if now is not None and then is not None and now > max(_LEAST_KL, _RUNAWAY * then):
            return index, (
                f"KL {figures(now, 1)} nats a response, {figures(then, 1)} ten iterations before"
            )
    return None


def _entropy(rows: Rows) -> Seen | None:
    unit = "nats a token of entropy"
    return _since_the_start(rows, "entropy", lambda now, at: now < _ENTROPY_LEFT * at, unit, 3)


def _length(rows: Rows) -> Seen | None:
    unit = "tokens a response"
    return _since_the_start(rows, "length", lambda now, at: now > _LENGTH_GROWTH * at, unit, 0)


def _variety(rows: Rows) -> Seen | None:
    unit = "distinct-2"
    return _since_the_start(rows, "distinct_2", lambda now, at: now < _VARIETY_LEFT * at, unit, 2)


def _gold(rows: Rows) -> Seen | None:
    return _parted(rows, "gold", "gold", _GOLD_LOST)


def _watch(rows: Rows) -> Seen | None:
    return _parted(rows, "watch_reward", "the reward model that only watches", _WATCH_LOST)


def _parted(rows: Rows, name: str, words: str, lost: float) -> Seen | None:
    """A number below its best while the reward is above what it was then."""
    best: tuple[float, float] | None = None
    pairs = zip(_means(rows, name), _means(rows, "reward"), strict=True)
    for index, (value, reward) in enumerate(pairs):
        if value is None or reward is None:
            continue
        if best is not None and value < best[0] - lost and reward > best[1]:
            return index, (
                f"{words} {figures(value, 3)} after {figures(best[0], 3)}, while the reward rose "
                f"from {figures(best[1], 3)} to {figures(reward, 3)}"
            )
        best = max(best or (value, reward), (value, reward))
    return None


def _unfamiliar(rows: Rows) -> Seen | None:
    return _since_the_start(
        rows,
        "proxy_unfamiliar",
        lambda now, at: now > max(_UNFAMILIAR, 2 * at),
        "of scores where the reward model's training comparisons hardly have any",
        2,
    )


def _disagreement(rows: Rows) -> Seen | None:
    words = "members of the reward model disagree {:.1f} times as much as before".format
    return _beyond(rows, "proxy_disagreement", lambda ratio: ratio > _DISAGREEMENT, words)


def _compared(rows: Rows) -> Rows:
    """Rows of a loss on given comparisons."""
    return [
        row for row in rows if _OF_A_COMPARISON & row.keys() and not is_number(row.get("iteration"))
    ]


def _displaced(rows: Rows) -> Seen | None:
    def words(worth: float) -> str:
        return f"the chosen answers are worth {figures(worth, 1)}, far less likely than at first"

    return _beyond(rows, "reward_chosen", lambda worth: worth < _FAR_BELOW, words)


def _overfitted(rows: Rows) -> Seen | None:
    lowest = None
    for index, row in enumerate(rows):
        loss = row.get("validation_loss")
        if not is_number(loss):
            continue
        if lowest is not None and loss > _OVERFITTED * lowest > 0:
            return index, f"validation loss {figures(loss, 3)} after {figures(lowest, 3)}"
        lowest = loss if lowest is None else min(lowest, loss)
    return None


def _clips(rows: Rows) -> Seen | None:
    # Narrow clips of whole responses (GSPO) bite most of the time, and are meant to.
    far = [row for row in rows if not is_number(m := row.get("ratio_deviation")) or m > _MOVED]
    seen = _beyond(far, "clip_fraction", lambda share: share > _CLIPPED, "{:.0%} clipped".format)
    return seen and (next(i for i, row in enumerate(rows) if row is far[seen[0]]), seen[1])


def _dead(rows: Rows) -> Seen | None:
    words = "{:.0%} of groups teach nothing".format
    return _beyond(rows, "dead_groups", lambda share: share > _DEAD, words)


def _critic(rows: Rows) -> Seen | None:
    seen = _beyond(
        rows[_CRITIC_PATIENCE:],
        "explained_variance",
        lambda value: value < 0,
        lambda value: f"explained variance {figures(value, 2)}",
    )
    return seen and (seen[0] + _CRITIC_PATIENCE, seen[1])


def _faults(rows: Rows) -> Seen | None:
    names = dict.fromkeys(name for row in rows for name in row if name.startswith(_FAULTS))
    found = []
    for name in names:
        few = [float(bool(row.get(name))) for row in rows]
        for end in range(_FEW, len(few) + 1):
            if all(few[end - _FEW : end]):
                count = figures(rows[end - 1][name], 0)
                found.append((end - 1, f"{count} faults of {name.removeprefix(_FAULTS)}"))
                break
    return min(found, default=None)


def _corrected(rows: Rows) -> Seen | None:
    words = "{:.0%} of tokens outside of the correction's band".format
    return _beyond(rows, "correction_fraction", lambda share: share > _CORRECTED, words)


_ALARMS: dict[str, tuple[Callable[[Rows], Seen | None], str]] = {
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
NAMES = tuple(_ALARMS)
