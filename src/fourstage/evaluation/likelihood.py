"""A reward model beside the chat model's own opinion: how unlikely an answer's worst token is.

A chat model that does a task knows a wrong answer when it reads one: some token of it has next to
no probability. A new scalar head finds that only after very many comparisons.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fourstage import tasks as checkers
from fourstage.data.batch import Batch, Example
from fourstage.evaluation.estimates import Numbers
from fourstage.evaluation.preferences import in_order, rows_of_pairs
from fourstage.evaluation.scoring import alike, device_of
from fourstage.memory import in_halves
from fourstage.model.ensemble import Ensemble
from fourstage.model.layout import Layout
from fourstage.model.transformer import Transformer
from fourstage.objectives.logprobs import token_logprobs
from fourstage.precision import autocast
from fourstage.tasks import Task

if TYPE_CHECKING:
    from fourstage.tokenizer import Tokenizer

# Nats below which a token is as unlikely as can be (an answer is wrong once, not by how much), and
# above which it is as likely (right answers differ by the words they choose): those that are tried.
_FLOORS = (-6.0, -8.0, -10.0, -12.0, -16.0)
_CEILINGS = (0.0, -2.0, -3.0, -4.0, -5.0)
_RIDGE = 1e-2


@dataclass(frozen=True)
class Turn:
    """How the tokens of an answer are found in a row.

    Attributes:
        opening: token that an answer's turn begins with. size: tokens of the opening.
        end: token that ends the turn.
    """

    opening: int
    size: int
    end: int

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Turn:
        lead = tokenizer.turn("assistant", "")[0]
        return cls(lead[0], len(lead), tokenizer.end_of_turn)


@dataclass(frozen=True)
class Opinion:
    """How much the chat model's log-probabilities count beside a score.

    Attributes:
        weight: raw score a nat.
        floor, ceiling: nats that an answer's least log-probability is held between.
        log_odds: of a unit of the sum.
    """

    weight: float
    floor: float
    ceiling: float
    log_odds: float = 1.0

    def held(self, least: Tensor) -> Tensor:
        """Least log-probabilities between floor and ceiling."""
        return least.clamp(self.floor, self.ceiling)


class WithLikelihood(nn.Module):
    """`r + weight clip(min_t log p(token t), floor, ceiling)` over the tokens of the last answer.

    Args:
        scorer: gives r, with a score of its own to each row.
        language: the chat model, frozen.

    Attributes:
        reward_mean, reward_std: what the sum is normalised with.
    """

    def __init__(
        self,
        scorer: Transformer | Ensemble,
        language: Transformer,
        turn: Turn,
        opinion: Opinion,
    ):
        super().__init__()
        self.scorer, self.language = scorer, language
        self.turn, self.opinion = turn, opinion
        self.config = scorer.config
        self.reward_mean, self.reward_std = scorer.reward_mean, scorer.reward_std

    def forward(self, tokens: Tensor, layout: Layout) -> Tensor:
        """[cells] -> the scorer's hidden states and, at last cells, the answer's least
        log-probability: [cells, width + 1]."""
        hidden = self.scorer(tokens, layout)
        least = hidden.new_zeros(len(hidden), 1)
        least[layout.last_cells, 0] = self.least(tokens, layout).to(hidden.dtype)
        return torch.cat([hidden, least], dim=-1)

    def scores(self, hidden: Tensor) -> Tensor:
        """[..., width + 1] -> [...], the raw score."""
        return self.scorer.scores(hidden[..., :-1]) + self.opinion.weight * hidden[..., -1].float()

    @torch.no_grad()
    def least(self, tokens: Tensor, layout: Layout) -> Tensor:
        """[documents] log-probability of the least likely token of each last answer, in nats,
        between floor and ceiling."""
        return self.opinion.held(least_logprobs(self.language, tokens, layout, self.turn))


def least_logprobs(language: Transformer, tokens: Tensor, layout: Layout, turn: Turn) -> Tensor:
    """[documents] `min_t log p(token t | those before)`, float32.

    Over the tokens of each document's last answer, its end included: an answer that breaks off is
    unlikely there. 0 of a document without an answer.
    """
    documents, cells = layout.document_ids, torch.arange(len(tokens), device=tokens.device)
    none = torch.full((len(layout.lengths),), -1, device=tokens.device)

    def last(token: int) -> Tensor:
        """[documents] the last cell that holds a token, -1 where none does."""
        at = torch.where(tokens == token, cells, -1)
        return none.scatter_reduce(0, documents, at, "amax")

    begins, ends = last(turn.opening), last(turn.end)
    # Cell t predicts token t + 1.
    first = torch.where(begins < 0, len(tokens), begins + turn.size - 1)
    inside = (cells >= first[documents]) & (cells < ends[documents])
    read = inside.nonzero().squeeze(1)
    hidden = language(tokens, layout)[read]
    logprobs = token_logprobs(
        language.logits,
        hidden,
        tokens[(read + 1).clamp(max=len(tokens) - 1)],
        language.config.vocab_size,
        weight=language.plain_head,
    ).float()
    least = torch.zeros(len(layout.lengths), device=tokens.device)
    return least.scatter_reduce(0, documents[read], logprobs, "amin")


@torch.no_grad()
def least_of_rows(language: Transformer, turn: Turn, rows: Sequence[Sequence[int]]) -> np.ndarray:
    """[rows] `least_logprobs` of rows of tokens, float64."""
    device = device_of(language)
    rows = [row[-language.config.context :] for row in rows]
    found = np.zeros(len(rows))

    def work(portion: list[int]) -> None:
        batch = Batch.rows([Example(np.asarray(rows[i])) for i in portion]).to(device)
        with autocast(device):
            least = least_logprobs(language, batch.tokens, batch.layout, turn)
        found[portion] = least.double().cpu().numpy()

    in_halves(alike([len(row) for row in rows], device), work)
    return found


def fit_opinion(
    scores: np.ndarray, least: np.ndarray, better: Sequence[int], worse: Sequence[int]
) -> Opinion:
    """The weight, floor and ceiling under which comparisons are most likely.

    Args:
        scores, least: [rows] raw scores and `least_of_rows`.
        better, worse: [pairs] rows of the answers that were compared.
    """
    found = []
    for floor, ceiling in itertools.product(_FLOORS, _CEILINGS):
        if floor < ceiling:
            held = least.clip(floor, ceiling)
            gaps = (scores[better] - scores[worse], held[better] - held[worse])
            weight, log_odds = fit_weight(*gaps)
            z = log_odds * (gaps[0] + weight * gaps[1])
            value = -float(np.logaddexp(0, -z).sum())
            found.append((value, Opinion(weight, floor, ceiling, log_odds)))
    return max(found, key=lambda each: each[0])[1]


def fit_weight(
    score_gaps: np.ndarray, least_gaps: np.ndarray, steps: int = 50
) -> tuple[float, float]:
    """The weight under which comparisons are most likely, and the log-odds of a unit of the sum.

    Maximises `sum log sigmoid(a score_gap + b least_gap)` by Newton's method with halved steps; a
    small ridge towards (1, 0) keeps it finite where the pairs can be told apart. The weight is
    b / a, in the scorer's raw unit and at least 0; a are the log-odds.

    Args:
        score_gaps, least_gaps: [pairs] of the better answer less the worse one.
    """
    gaps = torch.from_numpy(np.stack([score_gaps, least_gaps], 1)).double()
    start = torch.tensor([1.0, 0.0], dtype=torch.float64)

    def value(weights: Tensor) -> float:
        return float(
            F.logsigmoid(gaps @ weights).sum()
            - 0.5 * _RIDGE * (weights - start) @ (weights - start)
        )

    weights = start
    for _ in range(steps):
        p = torch.sigmoid(gaps @ weights)
        slope = gaps.T @ (1 - p) - _RIDGE * (weights - start)
        curvature = (gaps * (p * (1 - p))[:, None]).T @ gaps + _RIDGE * torch.eye(2).double()
        step = torch.linalg.solve(curvature, slope)
        while value(weights + step) < value(weights) and float(step.abs().max()) > 1e-9:
            step = step / 2
        weights = weights + step
    unit = max(float(weights[0]), 1e-3)
    weight = float(weights[1]) / unit
    if weight < 0:
        return 0.0, fit_weight(score_gaps, np.zeros_like(least_gaps))[1]
    return weight, unit


def known_to_the_chat_model(
    language: Transformer, tokenizer: Tokenizer, pairs: Sequence[Mapping[str, Any]]
) -> Numbers:
    """What the chat model itself says of held-out pairs whose gold is known.

    Returns:
        `likelihood_right_wrong_accuracy`, also by kind: how often the right answer's least likely
        token is likelier than the wrong one's. Where it is high and `right_wrong_accuracy` low, the
        reward model has not found what its own body knows.
    """
    tasks = [Task.from_json(pair["task"]) for pair in pairs]
    rows = rows_of_pairs(tokenizer, [task.prompt for task in tasks], pairs)
    least = least_of_rows(language, Turn.of(tokenizer), rows).reshape(-1, 2)
    right = np.array(
        [
            [checkers.success(task, pair[side]) for side in ("chosen", "rejected")]
            for task, pair in zip(tasks, pairs, strict=True)
        ],
        float,
    )
    mixed = right[:, 0] != right[:, 1]
    kinds = [task.kind for task, is_mixed in zip(tasks, mixed, strict=True) if is_mixed]
    found = in_order(least[mixed], right[mixed])
    return Numbers().add_means("likelihood_right_wrong_accuracy", found, kinds)
