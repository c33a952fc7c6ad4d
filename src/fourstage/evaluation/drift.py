"""How a reward model fares on the policy's own responses, as training moves them away.

Its accuracy was measured on answers that it was trained beside. The policy goes where scores are
high, which is where they are least tested (Gao et al., *Scaling Laws for Reward Model
Overoptimization*, 2022).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fourstage import tasks as checkers
from fourstage.evaluation.agreement import member_scores
from fourstage.evaluation.alignment import reward_rows
from fourstage.evaluation.calibration import area_under_curve
from fourstage.evaluation.estimates import Numbers
from fourstage.evaluation.likelihood import WithLikelihood
from fourstage.evaluation.responses import Response
from fourstage.evaluation.resting import correlation
from fourstage.evaluation.scoring import Scorer, scores
from fourstage.model.ensemble import Ensemble
from fourstage.tasks import Task

if TYPE_CHECKING:
    from fourstage.tokenizer import Tokenizer

# The share of familiar responses whose scores count as high.
_HIGH = 0.05


@dataclass(frozen=True)
class Familiar:
    """What scores looked like on responses of the model that RL began with.

    Attributes:
        high: the score that one in twenty of them passes.
        disagreement: mean deviation over the members of an ensemble; 0 of a single model.
    """

    high: float
    disagreement: float


def familiar(reward_model: Scorer, tokenizer: Tokenizer, responses: Sequence[Response]) -> Familiar:
    """The scores of responses that were drawn before the first update.

    Raises:
        ValueError: there are no responses.
    """
    if not responses:
        raise ValueError("what is familiar takes at least one response")
    rows = reward_rows(tokenizer, responses)
    high = float(np.quantile(scores(reward_model, rows), 1 - _HIGH))
    return Familiar(high, disagreement(reward_model, rows))


def drift(
    reward_model: Scorer,
    tokenizer: Tokenizer,
    tasks: Sequence[Task],
    responses: Sequence[Response],
    before: Familiar,
) -> Numbers:
    """The reward model on the policy's responses as they are now.

    Returns:
        `proxy_high_share`, how many score as only one in twenty did before RL (0.05 is no shift);
        those of `leads`; of an ensemble `proxy_disagreement`, its members' deviation over what it
        was.
    """
    rows = reward_rows(tokenizer, responses)
    found = scores(reward_model, rows)
    numbers = Numbers().add_means("proxy_high_share", found > before.high)
    numbers.update(leads("", found, tasks, responses))
    if before.disagreement:
        ratio = disagreement(reward_model, rows) / before.disagreement
        numbers.add("proxy_disagreement", ratio)
    return numbers


def leads(
    suffix: str, found: np.ndarray, tasks: Sequence[Task], responses: Sequence[Response]
) -> Numbers:
    """How well scores [responses] lead, which gets worse as a policy leaves what they know.

    Returns:
        `proxy_length_correlation`; where gold is known `proxy_gold_correlation`, and
        `proxy_right_wrong`, how often a right response scores above a wrong one: 0.5 is blind.
    """
    lengths = np.array([len(each.tokens) for each in responses], np.float64)
    numbers = Numbers().add(f"proxy_length_correlation{suffix}", correlation(found, lengths))
    judged = [i for i, task in enumerate(tasks) if task.facts.get("checker")]
    if not judged:
        return numbers
    golds = np.array([checkers.gold(tasks[i], responses[i].text) for i in judged])
    right = np.array([checkers.success(tasks[i], responses[i].text) for i in judged])
    numbers.add(f"proxy_gold_correlation{suffix}", correlation(found[judged], golds))
    if right.any() and not right.all():
        numbers.add(f"proxy_right_wrong{suffix}", area_under_curve(found[judged], right))
    return numbers


def beside_demonstrations(shown: np.ndarray, drawn: np.ndarray) -> Numbers:
    """Demonstrations against a policy's responses to the same prompts, by their scores [prompts].

    Returns:
        `demonstration_score`, `policy_score`, and `demonstration_over_policy`, how often a
        demonstration scores above the response. A policy far above the demonstrations of people has
        found what the reward model likes and they do not do.
    """
    numbers = Numbers().add_means("demonstration_score", shown).add_means("policy_score", drawn)
    return numbers.add_means("demonstration_over_policy", (np.sign(shown - drawn) + 1) / 2)


def disagreement(reward_model: Scorer, rows: Sequence[Sequence[int]]) -> float:
    """Mean deviation over the members of an ensemble; 0 of a single model."""
    inner = reward_model.scorer if isinstance(reward_model, WithLikelihood) else reward_model
    if not isinstance(inner, Ensemble):
        return 0.0
    return float(member_scores(inner, rows).std(axis=1).mean())
