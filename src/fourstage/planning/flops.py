"""Floating-point operations of each stage, and what share of a machine's peak they reach."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from fourstage.model.config import ModelConfig
from fourstage.planning.facts import RowTokens
from fourstage.planning.judging import Readers
from fourstage.recipe.preference import learns_otherwise
from fourstage.recipe.schema import Recipe, Stage

# What the stages look at as they learn and at their end (stages/*.py).
_WATCHED = 200
_SHOWN = 6
_RESPONSE_BITS = 500
_REFERENCES = 512
_FITTED = 2000
_DEMONSTRATIONS = 256
_DIVERSITY = 64 * 4
_EXAMPLES_SHOWN = 3
# training/optimisers/muon.py
_MUON_ITERATIONS = 5


def six_nd(params: float, tokens: float) -> float:
    """Training operations without attention: 6 a parameter and token (Kaplan et al., 2020)."""
    return 6.0 * params * tokens


def mean_context(document_tokens: float) -> float:
    """Cells a token attends to on average in a document of so many tokens, itself included."""
    return (document_tokens + 1) / 2


def training_flops(
    config: ModelConfig,
    tokens: float,
    document_tokens: float,
    head: bool = True,
    trained_share: float = 1.0,
) -> float:
    """Forward and backward operations on `tokens` in documents of `document_tokens` each.

    Without `head` those of a reward model or a critic, whose head is one number wide. Weights that
    are frozen have no gradient: 4 operations each in place of 6.
    """
    return (2 + trained_share) * forward_flops(config, tokens, document_tokens, head)


def forward_flops(
    config: ModelConfig, tokens: float, document_tokens: float, head: bool = True
) -> float:
    return tokens * config.forward_flops_per_token(mean_context(document_tokens), head)


def muon_flops(config: ModelConfig) -> float:
    """Operations of an update by Muon: five Newton-Schulz iterations on each matrix of the blocks.

    One of rows m <= columns n takes two products of m x m x n and one of m x m x m an iteration.
    """
    queries, keys = config.query_width, config.key_width
    one_block = [*2 * [(config.width, queries)], *2 * [(config.width, keys)]]
    one_block += (config.experts or 1) * config.mlp_matrices * [(config.width, config.mlp_width)]
    a_block = 0.0
    for sides in one_block:
        m, n = sorted(sides)
        a_block += 4 * m * m * n + 2 * m**3
    return _MUON_ITERATIONS * config.layers * a_block


@dataclass(frozen=True)
class Work:
    """What a stage computes, in tokens through a model.

    Attributes:
        trained: tokens forward and backward through a language model.
        trained_scalar: the same through a model with a scalar head (reward model, critic).
        scored, scored_scalar: tokens forward alone.
        generated: tokens drawn one at a time, many rows side by side.
        waited: decoding steps of a handful of rows, which cost their latency.
        document_tokens: mean length of a document, which attention's share follows from.
        updates: optimiser steps. by_muon: those that Muon makes, of policy and critic each.
        trained_share: share of the weights that these change.
    """

    trained: float = 0.0
    trained_scalar: float = 0.0
    scored: float = 0.0
    scored_scalar: float = 0.0
    generated: float = 0.0
    waited: float = 0.0
    document_tokens: float = 256.0
    updates: float = 0.0
    by_muon: float = 0.0
    trained_share: float = 1.0

    def training_flops(self, config: ModelConfig) -> float:
        """Operations of the updates, as the trainer counts them."""
        length, share = self.document_tokens, self.trained_share
        return training_flops(config, self.trained, length, True, share) + training_flops(
            config, self.trained_scalar, length, False, share
        )

    def scoring_flops(self, config: ModelConfig) -> float:
        """Operations of what is only read."""
        length = self.document_tokens
        return forward_flops(config, self.scored, length) + forward_flops(
            config, self.scored_scalar, length, head=False
        )

    def update_flops(self, config: ModelConfig) -> float:
        """Operations of the optimiser, which are few but for Muon's; every device makes them."""
        return self.by_muon * muon_flops(config)

    def flops(self, config: ModelConfig) -> float:
        """All operations."""
        drawn = forward_flops(config, self.generated, self.document_tokens)
        trained = self.training_flops(config) + self.update_flops(config)
        return trained + self.scoring_flops(config) + drawn


def rl_work(
    episodes: float,
    prompt_tokens: float,
    response_tokens: float,
    epochs: float,
    updates: float,
    has_critic: bool,
    has_reference: bool = True,
    readers: Readers | None = None,
    watched_by: int = 0,
) -> Work:
    """Rollouts are drawn, scored by policy, reference and reward model (and valued), then trained.

    `readers` are what the reward model is made of, a single model unless said; `watched_by` reward
    models look on.


    The critic is a model of the policy's size, so PPO trains two where GRPO trains one. A row of n
    tokens is n - 1 cells: the last token is predicted and not read. What groups drawn again and
    other rewards take is not known before.
    """
    cells = episodes * (prompt_tokens + response_tokens - 1)
    readers = readers or Readers(1)
    language = (2 if has_reference else 1) + readers.language
    scorers = int(has_critic) + readers.scalar + watched_by
    return Work(
        trained=cells * epochs,
        trained_scalar=cells * epochs if has_critic else 0.0,
        scored=cells * language + episodes * prompt_tokens,
        scored_scalar=cells * scorers,
        generated=episodes * response_tokens,
        document_tokens=prompt_tokens + response_tokens - 1,
        updates=updates,
    )


def training_work(recipe: Recipe, stage: str, rows: RowTokens) -> Work:
    """What the updates of a stage of a resolved recipe compute, rollouts included."""
    work, section = _passes(recipe, stage, rows), recipe.stage(stage)
    if section.optimiser != "muon" or section.adapter is not None:
        return work
    return replace(work, by_muon=work.updates * (2 if work.trained and work.trained_scalar else 1))


def _passes(recipe: Recipe, stage: str, rows: RowTokens) -> Work:
    from fourstage.planning import preferring

    section = recipe.stage(stage)
    steps = section.steps or 0
    if stage == "reward":
        reward = recipe.reward
        updates = steps * reward.ensemble
        answers = (reward.pairs_per_step or 0) * reward.rows_together
        tokens = updates * answers * rows.compared
        return Work(
            trained_scalar=tokens,
            scored=tokens if reward.likelihood else 0.0,
            document_tokens=rows.compared,
            updates=updates,
        )
    if stage != "rl":
        length = rows.document if stage == "pretrain" else rows.demonstration
        tokens = steps * (section.batch_tokens or 0)
        if stage == "pretrain":
            tokens = recipe.pretrain.drawn_tokens()
        return Work(trained=tokens, document_tokens=length - 1, updates=steps)
    rl = recipe.rl
    if learns_otherwise(rl):
        return preferring.work(recipe, rows)
    iterations = steps / (rl.epochs * (rl.minibatches or 1))
    episodes = math.ceil(iterations) * (rl.rollout_batch or 0)
    epochs = rl.epochs * iterations / math.ceil(iterations or 1)
    return rl_work(
        episodes,
        rows.prompt,
        rows.response,
        epochs,
        steps,
        has_critic=rl.needs_critic,
        has_reference=rl.needs_reference,
        readers=Readers.of(recipe),
        watched_by=int(rl.watch_model is not None),
    )


def measuring_work(
    recipe: Recipe, stage: str, rows: RowTokens, held_out: int | None = None
) -> Work:
    """What watching a stage of a resolved recipe as it learns and measuring it compute.

    Args:
        held_out: rows of a person's own that there are to measure on, where they were counted.
    """
    return _MEASURED[stage](recipe, rows, held_out)


def _at_most(wanted: int, held_out: int | None) -> int:
    return wanted if held_out is None else min(wanted, held_out)


def _times(section: Stage, name: str) -> int:
    """How often something is done that is due every so many steps, and at the last one."""
    every = getattr(section, f"{name}_every")
    return math.ceil((section.steps or 0) / every) if every else 0


def _longest(recipe: Recipe, rows: RowTokens) -> float:
    """Tokens of a response that does not end by itself: of a base model, or the last of several."""
    return min(recipe.rl.max_new_tokens or 0, max(rows.document, 2 * rows.response))


def _checked(recipe: Recipe) -> int:
    """Instructions a program can check: people's own come without a checker."""
    return 0 if recipe.data.origin("sft") == "files" else recipe.evaluation.instructions


def _of_pretraining(recipe: Recipe, rows: RowTokens, held_out: int | None) -> Work:
    section, documents = recipe.pretrain, recipe.evaluation.documents
    read = documents + _times(section, "validate") * min(_WATCHED, documents)
    return Work(
        scored=read * rows.document,
        waited=(_times(section, "sample") + 1) * _longest(recipe, rows),
        document_tokens=rows.document,
    )


def _of_sft(recipe: Recipe, rows: RowTokens, held_out: int | None) -> Work:
    """Before, through the template and with worked examples, where a base model finds no end;
    after, through the template."""
    section, checked = recipe.sft, _checked(recipe)
    rest = max(20, (recipe.data.demonstrations or 20 * _RESPONSE_BITS) // 20)
    rest = rest if held_out is None else held_out
    read = _times(section, "validate") * min(_WATCHED, rest) + 2 * min(_RESPONSE_BITS, rest)
    prompts = 3 * rows.prompt + _EXAMPLES_SHOWN * rows.demonstration
    return Work(
        scored=read * rows.demonstration + checked * prompts,
        generated=checked * (2 * _longest(recipe, rows) + rows.response),
        waited=(_times(section, "sample") + 1) * _longest(recipe, rows),
        document_tokens=rows.demonstration,
    )


def _of_reward(recipe: Recipe, rows: RowTokens, held_out: int | None) -> Work:
    """Held-out pairs, also under others' prompts; the scale, on references and on samples."""
    pairs = _at_most(recipe.evaluation.pairs, held_out)
    reward = recipe.reward
    watched = 2 * _times(reward, "validate") * min(_WATCHED, pairs)
    whole = 2 * _REFERENCES + 4 * pairs
    # Each member has a scale of its own, and once more all of them have one together.
    read = reward.ensemble * (watched + whole)
    read += reward.ensemble * 2 * _REFERENCES if reward.ensemble > 1 else 0
    language = 0
    if reward.likelihood:
        # The weight is fitted on comparisons, once before there is a score and once on what all
        # read, and there is a scale anew; what is watched has offsets.
        fitted = 2 * min(_FITTED, recipe.data.comparisons or _FITTED)
        language = 2 * fitted + whole + reward.ensemble * watched
        read += reward.ensemble * (fitted + 2 * _REFERENCES)
    return Work(
        scored=language * rows.compared,
        scored_scalar=read * rows.compared,
        generated=_REFERENCES * rows.response,
        document_tokens=rows.compared,
    )


def _of_rl(recipe: Recipe, rows: RowTokens, held_out: int | None) -> Work:
    """Gold and proxy before and after, KL, success; diversity of base, chat model and policy."""
    prompts, checked = _at_most(recipe.evaluation.prompts, held_out), _checked(recipe)
    whole = rows.prompt + rows.response
    diverse = min(_DIVERSITY, 4 * prompts)
    readers, shown = Readers.of(recipe), 0
    if readers.models:
        # Demonstrations beside the policy's answers; training comparisons, before.
        shown = min(_DEMONSTRATIONS, prompts)
    # Each answer is scored as what is paid, and once more for what is familiar.
    judged = 4 * prompts + 2 * shown + (_REFERENCES if readers.models else 0)
    return Work(
        scored=(2 * prompts + readers.language * judged) * whole,
        scored_scalar=readers.scalar * judged * whole,
        generated=(2 * prompts + checked + 2 * diverse + shown) * rows.response
        + diverse * _longest(recipe, rows),
        waited=(_times(recipe.rl, "sample") + 1) * _longest(recipe, rows),
        document_tokens=whole,
    )


_MEASURED = {
    "pretrain": _of_pretraining,
    "sft": _of_sft,
    "reward": _of_reward,
    "rl": _of_rl,
}


def utilisation(flops: float, seconds: float, peak_flops: float, devices: int = 1) -> float:
    """Share of the peak that `flops` in `seconds` reach (MFU; Chowdhery et al., PaLM, 2022)."""
    return flops / (seconds * peak_flops * devices)
