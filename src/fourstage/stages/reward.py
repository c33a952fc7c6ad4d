"""Stage 3: a reward model from comparisons (Bradley-Terry), read at `<|reward|>`.

Starts from the chat model's body with a new scalar head; reads data/reward. Measured by how it
orders held-out pairs, against the ceiling that the noise of the preferences sets.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fourstage.data.batch import Batch
from fourstage.data.sources import PairSource
from fourstage.data.store import Store
from fourstage.errors import InputError
from fourstage.evaluation.alignment import reward_rows
from fourstage.evaluation.estimates import Numbers
from fourstage.evaluation.preferences import pair_accuracy
from fourstage.evaluation.scoring import raw_scores
from fourstage.model.layout import Layout
from fourstage.model.transformer import Transformer
from fourstage.objectives.bradley_terry import BradleyTerry
from fourstage.objectives.objective import Objective
from fourstage.stages.adapting import narrow
from fourstage.stages.context import StageContext
from fourstage.stages.datafiles import held_out_pairs, reference_rows
from fourstage.stages.models import results, save, starting_model
from fourstage.training.guards import GuardFailed, documents_do_not_leak
from fourstage.worlds.calibration import PREFERENCE_SCALE

_WATCHED = 200
# Responses whose scores set the zero and the unit of the reward.
_REFERENCES = 512


class WithLanguage(nn.Module):
    """A scorer that also keeps the language head, for a language loss beside the comparisons."""

    def __init__(self, scorer: Transformer, head: Tensor):
        super().__init__()
        self.scorer = scorer
        self.head = nn.Parameter(head.detach().clone())
        self.config = scorer.config

    def forward(self, tokens: Tensor, layout: Layout) -> Tensor:
        return self.scorer(tokens, layout)

    def scores(self, hidden: Tensor) -> Tensor:
        return self.scorer.scores(hidden)

    def language_logits(self, hidden: Tensor) -> Tensor:
        return nn.functional.linear(hidden, self.head)


def run(context: StageContext) -> dict[str, Any]:
    """Trains the reward model; the content of results.json."""
    section = context.section
    if (context.data / "reward" / "labelled").is_dir():
        raise InputError(
            "data.preferences holds single judgements (label), and a reward model needs "
            "comparisons: give prompt + chosen + rejected; rl.algorithm=kto learns from judgements "
            "without a reward model"
        )
    chat_model = starting_model(context)
    model = chat_model.with_scalar_head(context.seed)
    narrow(context, model)
    with_language = section.language_coefficient > 0
    module = WithLanguage(model, chat_model.output_weight) if with_language else model
    if section.adapter is not None and isinstance(module, WithLanguage):
        module.head.requires_grad_(False)
    held_out = Store.open(context.data / "reward" / "validation")
    source = PairSource(
        Store.open(context.data / "reward" / "train"), section.pairs_per_step, context.seed
    )
    trained = context.train(
        module,
        BradleyTerry(section.centring, section.language_coefficient),
        source,
        guards=[ends_in(context.tokenizer.reward), documents_do_not_leak()],
        validate=lambda: _watch(model, held_out),
    )
    scale = context.measure("scale", lambda: _scale(context, model, chat_model))
    model.reward_mean = scale.metrics.get("reward_mean", 0.0)
    model.reward_std = scale.metrics.get("reward_std", 1.0)
    pairs = held_out_pairs(context, context.recipe.evaluation.pairs)
    drawn_by_gold = context.recipe.data.origin("preferences") == "world"
    scale_of_labels = PREFERENCE_SCALE if drawn_by_gold else None
    accuracy = context.measure(
        "pairs",
        lambda: pair_accuracy(model, context.tokenizer, pairs, scale_of_labels, context.seed),
    )
    numbers = Numbers().update(scale).update(accuracy)
    save(context, model, numbers)
    return results(context, numbers, trained)


def ends_in(token: int):
    """A guard: each row is read at `token`, which stands nowhere else in it."""

    def guard(module: nn.Module, objective: Objective, batch: Batch) -> None:
        marks = (batch.tokens == token).nonzero().squeeze(1)
        if not torch.equal(marks, batch.last_cells):
            raise GuardFailed(
                "first batch: a row does not end in <|reward|>, the cell where its score is read"
            )

    return guard


def _watch(model: Transformer, store: Store) -> dict[str, float]:
    """Loss and accuracy on some held-out pairs, by their labels."""
    rows = [store[index].tokens.tolist() for index in range(2 * min(_WATCHED, len(store) // 2))]
    scores = raw_scores(model, rows).reshape(-1, 2)
    gap = scores[:, 0] - scores[:, 1]
    return {
        "validation_loss": float(np.logaddexp(0.0, -gap).mean()),
        "validation_pair_accuracy": float(((np.sign(gap) + 1) / 2).mean()),
    }


def _scale(context: StageContext, model: Transformer, chat_model: Transformer) -> Numbers:
    """`reward_mean`: raw score of reference responses; `reward_std`: of the chat model's samples.

    So demonstrations score 0 on average (InstructGPT, section 3.5), and a unit is what the policy's
    own responses vary by.
    """
    tasks, rows = reference_rows(context, _REFERENCES)
    mean = raw_scores(model, rows).mean() if rows else 0.0
    chat = context.chat(chat_model)
    prompts = [task.prompt for task in chat.answerable(tasks)]
    drawn = chat.respond(prompts, context.recipe.rl.temperature, "reward scale")
    scores = raw_scores(model, reward_rows(context.tokenizer, drawn))
    std = float(scores.std()) if len(scores) > 1 and scores.std() > 0 else 1.0
    return Numbers().add("reward_mean", float(mean)).add("reward_std", std)
