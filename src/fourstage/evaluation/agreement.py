"""How far the members of an ensemble agree: what one seed says that another would not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fourstage.data.batch import Batch, Example
from fourstage.evaluation.estimates import Numbers
from fourstage.evaluation.preferences import in_order, rows_of_pairs
from fourstage.evaluation.resting import correlation
from fourstage.evaluation.scoring import alike, device_of
from fourstage.memory import in_halves
from fourstage.model.ensemble import Ensemble
from fourstage.precision import autocast
from fourstage.tasks import Task

if TYPE_CHECKING:
    from fourstage.tokenizer import Tokenizer


@torch.no_grad()
def member_scores(ensemble: Ensemble, rows: Sequence[Sequence[int]]) -> np.ndarray:
    """[rows, members] normalised scores at the last cells, float64."""
    device = device_of(ensemble)
    rows = [row[-ensemble.config.context :] for row in rows]
    found = np.zeros((len(rows), len(ensemble.members)))

    def work(portion: list[int]) -> None:
        batch = Batch.rows([Example(np.asarray(rows[i])) for i in portion]).to(device)
        with autocast(device):
            hidden = ensemble(batch.tokens, batch.layout)[batch.last_cells]
            found[portion] = ensemble.member_scores(hidden).double().cpu().numpy()

    in_halves(alike([len(row) for row in rows], device), work)
    return found


def agreement(
    ensemble: Ensemble, tokenizer: Tokenizer, pairs: Sequence[Mapping[str, Any]]
) -> Numbers:
    """How members that differ in their seeds alone judge the same held-out pairs.

    Returns:
        `member_agreement`, the share of pairs that two members order alike; `member_correlation`,
        the mean correlation of two members' scores; `member_disagreement`, the mean standard
        deviation over members in units of the reward; `member_accuracy/1` and on, the share of
        labels that each member finds.
    """
    tasks = [Task.from_json(pair["task"]) for pair in pairs]
    rows = rows_of_pairs(tokenizer, [task.prompt for task in tasks], pairs)
    return compared(member_scores(ensemble, rows))


def compared(scores: np.ndarray) -> Numbers:
    """`agreement` from scores [2 x pairs, members], the chosen and the rejected row in turn."""
    members = scores.shape[1]
    gaps = scores[::2] - scores[1::2]
    couples = list(combinations(range(members), 2))
    alike_in = np.mean([np.sign(gaps[:, a]) == np.sign(gaps[:, b]) for a, b in couples], axis=0)
    numbers = Numbers().add_means("member_agreement", alike_in)
    together = [correlation(scores[:, a], scores[:, b]) for a, b in couples]
    numbers.add("member_correlation", float(np.mean(together)))
    numbers.add_means("member_disagreement", scores.std(axis=1))
    labels = np.tile([1.0, 0.0], (len(gaps), 1))
    for member in range(members):
        found = in_order(scores[:, member].reshape(-1, 2), labels)
        numbers.add_means(f"member_accuracy/{member + 1}", found)
    return numbers
