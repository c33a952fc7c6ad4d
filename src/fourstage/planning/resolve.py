"""Fills every field that a recipe leaves out, and says by which rule."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from fourstage.errors import InputError
from fourstage.model.config import ModelConfig
from fourstage.planning import preferring, rules, shaping
from fourstage.planning.architecture import SIZES, options_of
from fourstage.planning.facts import (
    DataFacts,
    RowTokens,
    row_tokens,
    sft_tokens,
    training_text_tokens,
)
from fourstage.planning.flops import muon_flops, training_flops
from fourstage.planning.rules import Derived, Ruled, shown
from fourstage.planning.steps import Fit, largest_fit, planned_share
from fourstage.recipe import STAGES, Recipe, recipe_from
from fourstage.recipe.preference import draws, learns_otherwise
from fourstage.recipe.ramp import BatchRamp, StepCells

# A micro-batch on a CPU: beyond it nothing gets faster, and what is stored leaves the caches.
_CPU_MICRO_BATCH = 4096


def resolve(recipe: Recipe, facts: DataFacts | None = None) -> tuple[Recipe, list[Derived]]:
    """The recipe with its open fields filled, and each filled value with its rule.

    A field stays open where None is a meaning of its own: `from`, `tokenizer.path`, `data.*` paths
    (made from the text), `rl.kl_target` (fixed coefficient), what the row of `rl.algorithm` or its
    correction says, `epochs` where tokens or steps are given, and `tokens` and `batch_tokens` of
    the stages that count pairs or episodes.

    Raises:
        InputError: the sizes given do not fit one another.
    """
    filling = _Filling(recipe, facts or DataFacts())
    shaping.fill(filling)
    filling.data()
    filling.pretrain()
    filling.sft()
    filling.reward()
    filling.rl()
    for stage in STAGES:
        filling.course(stage)
    return recipe_from(filling.values), filling.derived


def model_config(recipe: Recipe, vocab_size: int | None = None) -> ModelConfig:
    """The shape of a resolved recipe; `vocab_size` is the tokenizer's, where it is known.

    Raises:
        InputError: the sizes do not fit one another.
    """
    section = recipe.model.model_dump()
    sizes = {name: section[name] for name in (*SIZES, "context")}
    sizes["head_width"] = sizes["head_width"] or 0
    options = options_of(section, sizes["layers"], sizes["context"])
    vocabulary = vocab_size or recipe.tokenizer.vocab_size or 0
    return ModelConfig(vocab_size=vocabulary, **sizes, **options)


class _Filling:
    """The values as they fill up, one section after the other."""

    def __init__(self, recipe: Recipe, facts: DataFacts):
        self.recipe = recipe
        self.facts = facts
        self.values = recipe.to_dict()
        self.derived: list[Derived] = []
        self.config: ModelConfig
        self.params: float
        # Parameters at the width that learning rates are for.
        self.rated: float

    def fill(self, key: str, value: Any, rule: str) -> Any:
        """Sets `key` where it is open; returns what holds then."""
        section, name = key.split(".")
        if self.values[section][name] is None and value is not None:
            self.values[section][name] = value
            self.derived.append(Derived(key, value, rule))
        return self.values[section][name]

    def by_rule(self, key: str, ruled: Ruled) -> Any:
        return self.fill(key, ruled.value, ruled.rule)

    @property
    def rows(self) -> RowTokens:
        return row_tokens(recipe_from(self.values))

    def rate(self, stage: str, rule: Callable[[float], Ruled]) -> float:
        """The learning rate of a stage by its rule, for the width that rates are for."""
        ruled = rule(self.rated)
        if self.values["model"]["base_width"] is not None:
            carried = f"; {shown(int(self.rated))} parameters at base_width, carried on by muP"
            ruled = Ruled(ruled.value, ruled.rule + carried)
        if self.recipe.stage(stage).adapter is not None:
            ruled = rules.adapter_rate(ruled)
        return self.by_rule(f"{stage}.learning_rate", ruled)

    def data(self) -> None:
        """Where each part comes from, and how many rows are made."""
        data = self.recipe.data
        if data.pretrain == "world":
            for part in ("sft", "preferences", "prompts"):
                self.fill(f"data.{part}", "world", "the text is the embedded world's")
        counts = (
            ("sft", "demonstrations", 31_000, 6_000),
            ("preferences", "comparisons", 30_000, 3_000),
            ("prompts", "rl_prompts", 10_000, 4_000),
        )
        for part, key, from_world, from_text in counts:
            origin = data.origin(part)
            if key == "demonstrations" and origin == "world" and self.recipe.sft.tokens:
                wanted = math.ceil(self.recipe.sft.tokens / self.rows.demonstration)
                self.fill("data.demonstrations", wanted, "sft.tokens, each seen once")
            elif origin == "world":
                self.fill(f"data.{key}", from_world, "what the prototype of the world needed")
            elif origin == "made":
                self.fill(f"data.{key}", from_text, "enough for a small model, made in seconds")

    def pretrain(self) -> None:
        stage = self.recipe.pretrain
        available = training_text_tokens(self.recipe, self.facts, self.config.vocab_size)
        limits = [stage.tokens, stage.epochs and available and stage.epochs * available]
        if not any(limits) and not stage.steps:
            optimal = rules.pretraining_tokens(self.params, available)
            limits = [self.by_rule("pretrain.tokens", optimal)]
        tokens = min((limit for limit in limits if limit), default=None)
        context = self.config.context
        sized = rules.batch_tokens(self.params, tokens, context)
        batch = self.by_rule("pretrain.batch_tokens", sized)
        course = StepCells(batch, self._ramp(batch))
        self._steps("pretrain", tokens, course)
        total = course.begin(self.values["pretrain"]["steps"])
        if self.recipe.data.pretrain == "world":
            documents = math.ceil(1.1 * total / self.rows.document)
            self.fill("world.documents", documents, "each is seen once at most")
        read = training_flops(self.config, batch, self.rows.document)
        own_work = muon_flops(self.config) / read
        ruled = rules.optimiser(self.params, stage.source_model is None, own_work)
        optimiser = self.by_rule("pretrain.optimiser", ruled)
        self.rate("pretrain", partial(rules.learning_rate, optimiser=optimiser))

    def _ramp(self, batch: int) -> BatchRamp | None:
        """The ramp asked for, if it is one for this batch and context.

        Raises:
            InputError: the batch starts below the context, or above what it grows to.
        """
        ramp, least = self.recipe.pretrain.batch_ramp, min(self.config.context, batch)
        if ramp is None or least <= ramp.from_tokens <= batch:
            return ramp
        raise InputError(
            f"pretrain.batch_ramp.from_tokens={ramp.from_tokens} is no start of a ramp: write a "
            f"number from {least} (model.context) to {batch} (pretrain.batch_tokens)"
        )

    def _steps(self, stage: str, tokens: float | None, course: StepCells) -> None:
        """Steps that reach `tokens`, never more than the steps given."""
        given = self.values[stage]["steps"]
        if tokens is None:
            self.fill(f"{stage}.tokens", course.begin(given), "steps x batch_tokens")
            return
        steps = max(1, course.steps_for(tokens))
        self.fill(f"{stage}.tokens", int(tokens), "epochs x the tokens of the data")
        grows = course.least < course.batch_tokens
        self._set_steps(
            stage, steps, "tokens / batch_tokens" + (", more while it grows" if grows else "")
        )

    def _set_steps(self, stage: str, steps: int, rule: str) -> None:
        given = self.values[stage]["steps"]
        if given is not None and given > steps:
            self.values[stage]["steps"] = None
            rule += f", reached before the {given:,} steps asked for"
        self.fill(f"{stage}.steps", steps, rule)

    def sft(self) -> None:
        stage, rows = self.recipe.sft, self.rows
        made = self.values["data"]["demonstrations"]
        known = sft_tokens(self.facts, self.config.vocab_size, self.config.context)
        available = known or (made and made * rows.demonstration)
        epochs: float | None = stage.epochs
        if not (stage.tokens or stage.epochs or stage.steps):
            endless = self.recipe.data.origin("sft") == "world"
            epochs = self.fill(
                "sft.epochs", 1.0 if endless else 3.0, "1 over the world, 3 over other data"
            )
        # Where nothing is known of a file yet, the 10,000 demonstrations that are usual.
        by_epochs = epochs and epochs * (available or 10_000 * rows.demonstration)
        tokens = min((limit for limit in (stage.tokens, by_epochs) if limit), default=None)
        likely = tokens or 1e9
        batch = self.by_rule("sft.batch_tokens", rules.fine_tuning_batch(self.params, likely))
        self._steps("sft", tokens, StepCells(batch))
        self.rate("sft", rules.sft_rate)

    def reward(self) -> None:
        stage, rows = self.recipe.reward, self.rows
        pairs = self.by_rule("reward.pairs_per_step", rules.pairs_per_step(self.params))
        there = self.facts.comparisons or self.values["data"]["comparisons"] or 20_000
        epochs: float | None = stage.epochs
        if not (stage.tokens or stage.epochs or stage.steps):
            epochs = self.fill("reward.epochs", 1.0, "InstructGPT: more than one overfits")
        limits = [
            math.ceil(epochs * there / pairs) if epochs else None,
            math.ceil(stage.tokens / (stage.rows_together * rows.compared * pairs))
            if stage.tokens
            else None,
        ]
        steps = min((limit for limit in limits if limit), default=None)
        if steps is not None:
            self._set_steps("reward", max(1, steps), "epochs x comparisons / pairs_per_step")
        self.rate("reward", rules.reward_rate)

    def rl(self) -> None:
        stage, rows = self.recipe.rl, self.rows
        if learns_otherwise(stage):
            preferring.fill(self)
            return
        row = stage.row()
        group = self.by_rule("rl.group", rules.group(row))
        batch = stage.rollout_batch
        if batch is None:
            wanted = rules.rollout_batch(self.params)
            size = max(group, min(wanted.value, stage.episodes or wanted.value) // group * group)
            batch = self.fill("rl.rollout_batch", size, wanted.rule)
        count = self.by_rule("rl.minibatches", rules.minibatches(batch))
        if count > batch:
            raise InputError(
                f"rl.minibatches={count} cuts rl.rollout_batch={batch} into more parts than it has "
                f"responses: write at most {batch}"
            )
        an_iteration = stage.epochs * count
        limits = [
            stage.episodes,
            stage.steps and math.ceil(stage.steps / an_iteration) * batch,
            stage.tokens and math.ceil(stage.tokens / (rows.prompt + rows.response)),
        ]
        usual = rules.episodes(self.params)
        episodes = min((limit for limit in limits if limit), default=usual.value)
        rule = "steps or tokens asked for" if any(limits) else usual.rule
        self.fill("rl.episodes", episodes, rule)
        steps = max(1, math.ceil(episodes / batch)) * an_iteration
        self._set_steps("rl", steps, "episodes / rollout_batch x epochs x minibatches")
        self.fill("rl.max_new_tokens", self.config.context // 4, "a quarter of the context")
        self.fill("rl.kl_coefficient", row.kl_coefficient, f"{row.name}'s: {row.source}")
        if stage.behind or stage.engine is not None:
            why = "weighs what other weights or another engine drew (AReaL, 2025)"
            self.fill("rl.correction", "tis", why)
        if stage.overlong == "penalty":
            longest = self.values["rl"]["max_new_tokens"]
            self.by_rule("rl.overlong_buffer", rules.overlong_buffer(longest))
        rate = self.rate("rl", rules.rl_rate)
        if row.needs_critic:
            self.fill("rl.critic_learning_rate", rate, "the policy's")

    def course(self, stage: str) -> None:
        """What every stage has: schedule, decay, micro-batch, and how often to write."""
        steps = self.values[stage]["steps"]
        self.by_rule(f"{stage}.optimiser", rules.optimiser(self.params, is_new=False))
        if stage == "rl":
            preferring.course(self)
        kind = self.by_rule(f"{stage}.schedule", rules.schedule(stage, self.params))
        self.by_rule(f"{stage}.final_fraction", rules.final_fraction(kind))
        self.by_rule(f"{stage}.warmup_steps", rules.warmup_steps(steps))
        adapter = self.recipe.stage(stage).adapter
        self.by_rule(f"{stage}.weight_decay", rules.weight_decay(stage, adapter is not None))
        if adapter is not None and adapter.alpha is None:
            ruled = rules.adapter_alpha(adapter)
            self.values[stage]["adapter"]["alpha"] = ruled.value
            self.derived.append(Derived(f"{stage}.adapter.alpha", *ruled))
        self._micro_batch(stage)
        moments = (("validate", 10), ("sample", 10), ("checkpoint", 10))
        for name, times in moments:
            self.fill(f"{stage}.{name}_every", rules.every(steps, times), f"{times} times a stage")
        if stage == "rl":
            rl = self.values["rl"]
            if draws(self.recipe.rl):
                self.fill("rl.log_every", rl["epochs"] * rl["minibatches"], "each iteration")
        self.fill(f"{stage}.log_every", rules.every(steps, 200), "200 times a stage")

    def _micro_batch(self, stage: str) -> None:
        device = self.facts.device if self.recipe.device == "auto" else self.recipe.device
        batch = self.values[stage]["batch_tokens"] or math.inf
        if device == "cpu":
            size, rule = _CPU_MICRO_BATCH, "what stays in a CPU's caches"
        else:
            fit = largest_fit(self.config, recipe_from(self.values), stage, self.facts)
            size = fit.micro_batch_tokens
            rule = _what_fits(planned_share(self.recipe, stage), fit)
        self.fill(
            f"{stage}.micro_batch_tokens", int(max(self.config.context, min(batch, size))), rule
        )


def _what_fits(share: float, fit: Fit) -> str:
    again = ", with blocks computed again in the backward pass" if fit.recompute == "block" else ""
    return f"what fits {share:.0%} of a device's memory{again}"
