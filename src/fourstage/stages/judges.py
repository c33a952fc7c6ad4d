"""The models that reward modelling trains: what is trained beside them, and their scale."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from fourstage.data.batch import Batch
from fourstage.data.comparing import Elements, RewardSource
from fourstage.data.sources import PairSource
from fourstage.data.store import Store
from fourstage.evaluation.alignment import reward_rows
from fourstage.evaluation.estimates import Numbers
from fourstage.evaluation.likelihood import Opinion, Turn, fit_opinion, least_of_rows
from fourstage.evaluation.scoring import Scorer, raw_scores
from fourstage.model.heads import Heads, fold_heads
from fourstage.model.layout import Layout
from fourstage.model.transformer import Transformer
from fourstage.objectives.comparison_losses import Ties, tie_start
from fourstage.parallel.group import Group
from fourstage.stages.context import StageContext
from fourstage.stages.datafiles import reference_rows

if TYPE_CHECKING:
    from fourstage.tokenizer import Tokenizer

# Training comparisons that the weight of likelihoods is fitted on.
_FITTED = 2000
# Responses whose scores set the zero and the unit of the reward.
_REFERENCES = 512


class Judge(nn.Module):
    """A scorer with what is trained beside it: the language head, for a language loss, and how
    likely ties are."""

    def __init__(self, scorer: Transformer, head: Tensor | None = None, tie: float | None = None):
        super().__init__()
        self.scorer = scorer
        self.config = scorer.config
        if head is not None:
            self.head = nn.Parameter(head.detach().clone())
        if tie is not None:
            self.tie = nn.Parameter(torch.tensor([tie]))

    def forward(self, tokens: Tensor, layout: Layout) -> Tensor:
        return self.scorer(tokens, layout)

    def scores(self, hidden: Tensor) -> Tensor:
        return self.scorer.scores(hidden)

    def language_logits(self, hidden: Tensor) -> Tensor:
        return nn.functional.linear(hidden, self.head)


def tie_share(store: Store) -> float:
    """The share of a store's comparisons that are ties."""
    elements, tied, pairs = Elements(store), 0, 0
    if elements.are_plain_pairs:
        return 0.0
    for number in range(len(elements)):
        places = np.array([store.row(row)["place"] for row in elements.rows(number)])
        same = places[:, None] == places[None, :]
        tied += int(np.triu(same, 1).sum())
        pairs += len(places) * (len(places) - 1) // 2
    return tied / max(1, pairs)


def judge_of(
    scorer: Transformer, head: Tensor | None, ties: Ties, store: Store
) -> Transformer | Judge:
    """The module that is trained: the scorer by itself, where nothing is trained beside it."""
    tie = None if ties == "drop" else tie_start(tie_share(store), ties)
    return scorer if head is None and tie is None else Judge(scorer, head, tie)


class References:
    """Responses that set the zero and the unit of the reward, made when they are first needed.

    The zero is the mean over demonstrations (InstructGPT, section 3.5), a unit what the chat
    model's own samples vary by.
    """

    def __init__(self, context: StageContext, chat_model: Transformer):
        self._context, self._chat_model = context, chat_model

    @cached_property
    def demonstrations(self) -> list[list[int]]:
        """Rows of up to 512 demonstrations, or without any of preferred answers."""
        return self._found[1]

    @cached_property
    def samples(self) -> list[list[int]]:
        """Rows of the chat model's own responses to the same prompts, those that fit."""
        context, chat = self._context, self._context.chat(self._chat_model)
        prompts = [self._found[0][index].prompt for index in self.answered]
        drawn = chat.respond(prompts, context.recipe.rl.temperature, "reward scale")
        return reward_rows(context.tokenizer, drawn)

    @cached_property
    def answered(self) -> list[int]:
        """Which demonstration each sample answers the prompt of."""
        chat, encode = self._context.chat(self._chat_model), self._context.tokenizer.chat_prompt
        return [n for n, task in enumerate(self._found[0]) if chat.fits(encode(task.prompt))]

    @cached_property
    def _found(self) -> tuple:
        return reference_rows(self._context, _REFERENCES)


def scale(scorer: Scorer, references: References, heads: Sequence[str] = ()) -> Numbers:
    """`reward_mean`, `reward_std`, and how demonstrations and samples score in that unit.

    Of several heads `reward_heads` {name: {mean, std}} instead, in `extra`.

    Returns:
        Of one score also `sample_score`, the mean of the chat model's samples when demonstrations
        have 0, and `demonstration_over_sample`, how often a demonstration scores above the sample
        for its prompt.
    """
    shown = raw_scores(scorer, references.demonstrations)
    drawn = raw_scores(scorer, references.samples)
    if heads:
        found = {}
        for column, name in enumerate(heads):
            mean, std = _unit(shown[:, column], drawn[:, column])
            found[name] = {"mean": mean, "std": std}
        return Numbers(extra={"reward_heads": found})
    mean, std = _unit(shown, drawn)
    numbers = Numbers().add("reward_mean", mean).add("reward_std", std)
    if len(drawn):
        answered = shown[references.answered]
        numbers.add_means("sample_score", (drawn - mean) / std)
        numbers.add_means("demonstration_over_sample", (np.sign(answered - drawn) + 1) / 2)
    return numbers


def _unit(shown: np.ndarray, drawn: np.ndarray) -> tuple[float, float]:
    mean = float(shown.mean()) if len(shown) else 0.0
    std = float(drawn.std()) if len(drawn) > 1 and drawn.std() > 0 else 1.0
    return mean, std


def settle(scorer: Scorer, numbers: Numbers) -> None:
    """Keeps the zero and the unit beside a scorer; a process that did not measure keeps 0 and 1."""
    scorer.reward_mean = numbers.metrics.get("reward_mean", 0.0)
    scorer.reward_std = numbers.metrics.get("reward_std", 1.0)


def fold(model: Transformer, weights: dict[str, float], numbers: Numbers) -> Heads:
    """Makes one head of several, each in its own unit; the heads as they were."""
    told = numbers.extra.get("reward_heads", {})
    rows = model.score.weight.detach().cpu().clone()
    means = tuple(float(told.get(name, {}).get("mean", 0.0)) for name in weights)
    stds = tuple(float(told.get(name, {}).get("std", 1.0)) for name in weights)
    heads = Heads(weights, rows, means, stds)
    fold_heads(model, heads)
    return heads


def chat_models_opinion(
    scorer: Scorer | None, language: Transformer, tokenizer: Tokenizer, store: Store
) -> Opinion:
    """What the least log-probability of an answer counts beside its score, or without one by
    itself, fitted on training comparisons."""
    elements = Elements(store)
    rows, better, worse = [], [], []
    for number in range(min(_FITTED, len(elements))):
        found = list(elements.rows(number))
        places = [store.row(row).get("place", place) for place, row in enumerate(found)]
        for first, second in combinations(range(len(found)), 2):
            if places[first] != places[second]:
                ordered = (first, second) if places[first] < places[second] else (second, first)
                better.append(len(rows) + ordered[0])
                worse.append(len(rows) + ordered[1])
        rows += [store[row].tokens.tolist() for row in found]
    scores = np.zeros(len(rows)) if scorer is None else raw_scores(scorer, rows)
    least = least_of_rows(language, Turn.of(tokenizer), rows)
    return fit_opinion(scores, least, better, worse)


class Offsets:
    """Gives the documents of a batch what the chat model's opinion of them adds to their scores, as
    `offsets`: 0 of an answer without a mistake, so that its score by itself is not far from the
    reward, where the values of a critic begin that is made from it.

    A reward model that is trained without them learns from comparisons half of which rightness
    decides, which it hardly sees: what it does see then counts for less in it than it should, as
    any effect does in logistic regression where a strong one is left out.

    Args:
        group: processes that each read a part.
    """

    def __init__(self, language: Transformer, turn: Turn, opinion: Opinion, group: Group):
        self.language, self.turn, self.opinion, self.group = language, turn, opinion, group

    def __call__(self, batch: Batch) -> Batch:
        rows = [row.tolist() for row in batch.tokens.split(list(batch.lengths))]
        least = least_of_rows(self.language, self.turn, self.group.share(rows))
        told = self.opinion
        added = told.weight * (told.held(torch.from_numpy(least)) - told.ceiling)
        own = list(added.float().split(1))
        batch.documents["offsets"] = torch.cat(self.group.collect(own, len(rows)))
        return batch


class WithOffsets:
    """A source whose batches have `Offsets`; the chat model is frozen, so a batch is still a
    function of its step."""

    def __init__(self, source: PairSource | RewardSource, offsets: Offsets):
        self.source, self.offsets = source, offsets

    @property
    def most_cells(self) -> int:
        """Cells that no batch has more of."""
        return self.source.most_cells

    def batch(self, step: int) -> Batch:
        return self.offsets(self.source.batch(step))

    def state(self) -> dict[str, Any]:
        return self.source.state()

    def restore(self, state: dict[str, Any]) -> None:
        self.source.restore(state)
