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
    return Familiar(high, _disagreement(reward_model, rows))


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
        `proxy_length_correlation`; of an ensemble `proxy_disagreement`, its members' deviation over
        what it was. Where gold is known `proxy_gold_correlation`, and `proxy_right_wrong`, how
        often a right response scores above a wrong one: 0.5 is blind. Both fall as the policy
        leaves what the reward model knows.
    """
    rows = reward_rows(tokenizer, responses)
    found = scores(reward_model, rows)
    numbers = Numbers().add_means("proxy_high_share", found > before.high)
    lengths = np.array([len(each.tokens) for each in responses], np.float64)
    numbers.add("proxy_length_correlation", correlation(found, lengths))
    if before.disagreement:
        ratio = _disagreement(reward_model, rows) / before.disagreement
        numbers.add("proxy_disagreement", ratio)
    judged = [i for i, task in enumerate(tasks) if task.facts.get("checker")]
    if not judged:
        return numbers
    golds = np.array([checkers.gold(tasks[i], responses[i].text) for i in judged])
    right = np.array([checkers.success(tasks[i], responses[i].text) for i in judged])
    numbers.add("proxy_gold_correlation", correlation(found[judged], golds))
    if right.any() and not right.all():
        numbers.add("proxy_right_wrong", area_under_curve(found[judged], right))
    return numbers


def _disagreement(reward_model: Scorer, rows: Sequence[Sequence[int]]) -> float:
    if not isinstance(reward_model, Ensemble):
        return 0.0
    return float(member_scores(reward_model, rows).std(axis=1).mean())
