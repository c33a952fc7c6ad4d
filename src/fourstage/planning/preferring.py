"""Rules of the `rl` stage where it learns from comparisons, or from the best of its responses."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from fourstage.errors import InputError
from fourstage.objectives.preferences import PREFERENCES
from fourstage.planning import rules
from fourstage.planning.facts import RowTokens
from fourstage.planning.flops import Work
from fourstage.planning.judging import Readers
from fourstage.planning.published import through
from fourstage.planning.rules import Derived, Ruled, two_digits
from fourstage.recipe import Recipe
from fourstage.recipe.preference import (
    DistilSection,
    PreferenceSection,
    compares,
    has_reference,
    reads_comparisons,
)
from fourstage.recipe.rl import RL

if TYPE_CHECKING:
    from fourstage.planning.resolve import _Filling

# Where nothing is known of a file yet.
_USUAL_COMPARISONS = 20_000
# Below SFT's rate, since a chat model goes on from a few of its own answers.
_IMITATING = ("bon", "raft")
# parameters -> beta of DPO where others wrote the answers.
_GIVEN_BETA = ((1e6, 0.3), (1e9, 0.1))


def rate(params: float, stage: RL) -> Ruled:
    """A tenth of SFT's rate, half as much on answers that others wrote; SFT's for a loss that is to
    replace it, and policy optimisation's for one that imitates the model's own best answers: SFT's
    rate undoes the chat model there."""
    algorithm = stage.algorithm
    if algorithm in _IMITATING:
        ruled = rules.rl_rate(params)
        return Ruled(ruled.value, f"policy optimisation's, from own answers too: {ruled.rule}")
    sft = rules.sft_rate(params)
    if algorithm == "orpo":
        return Ruled(sft.value, f"SFT's, since {algorithm} has its loss: {sft.rule}")
    if reads_comparisons(stage):
        rule = "a twentieth of SFT's rate: 1e-4 at 1M parameters to Zephyr's 5e-7 from 1.3B on"
        return Ruled(two_digits(sft.value / 20), rule)
    rule = "a tenth of SFT's rate: 2e-4 at 1M parameters to DPO's 1e-6 from 1.3B on"
    return Ruled(two_digits(sft.value / 10), rule)


def beta(params: float, stage: RL) -> Ruled:
    """That of the loss's paper, but more for DPO on given comparisons with a small model: at its
    rate, 0.1 leads so far from the reference that it unlearns its tasks."""
    known = PREFERENCES[stage.algorithm]
    if known.loss == "dpo" and reads_comparisons(stage):
        value = through(_GIVEN_BETA, params, beyond=False)
        rule = f"0.3 at 1M parameters to 0.1 from 1B on ({known.source})"
        return Ruled(two_digits(value), rule)
    return Ruled(known.beta, f"of {known.name}: {known.source}")


def fill(filling: _Filling) -> None:
    """Fills `rl` of a recipe that compares or distils."""
    stage = filling.recipe.rl
    if compares(stage):
        _preference(filling)
    else:
        _distil(filling)
    if reads_comparisons(stage):
        _given(filling)
    else:
        _drawn(filling)
    filling.fill("rl.max_new_tokens", filling.config.context // 4, "a quarter of the context")
    filling.rate("rl", lambda params: rate(params, stage))


def course(filling: _Filling) -> None:
    """What the stage has in common with others, where its rule is another."""
    stage = filling.recipe.rl
    if reads_comparisons(stage) or stage.algorithm == "bon":
        filling.by_rule(
            "rl.schedule", Ruled("linear", "to zero: one pass over what stays as it is")
        )


def _nested(filling: _Filling, part: str, name: str, value: Any, rule: str) -> Any:
    """As `filling.fill`, in a section of `rl`."""
    held = filling.values["rl"][part]
    if held[name] is None and value is not None:
        held[name] = value
        filling.derived.append(Derived(f"rl.{part}.{name}", value, rule))
    return held[name]


def _preference(filling: _Filling) -> None:
    stage, name = filling.recipe.rl, filling.recipe.rl.algorithm
    told = stage.preference or PreferenceSection()
    filling.values["rl"]["preference"] = told.model_dump(mode="json")
    if name == "kto":
        _nested(filling, "preference", "beta", 0.1, "Ethayarajh et al., 2024")
        return
    known = PREFERENCES[name]
    ruled = beta(filling.params, stage)
    _nested(filling, "preference", "beta", ruled.value, ruled.rule)
    for key in ("label_smoothing", "gamma", "nll_coefficient"):
        value = getattr(known, key) or None
        _nested(filling, "preference", key, value, f"of {name}: {known.source}")


def _given(filling: _Filling) -> None:
    """Steps over comparisons that are there."""
    stage, rows = filling.recipe.rl, filling.rows
    ruled = rules.pairs_per_step(filling.params)
    pairs = _nested(filling, "preference", "pairs_per_step", ruled.value, ruled.rule)
    facts = filling.facts
    there = facts.preferences or facts.comparisons or filling.values["data"]["comparisons"]
    limits = [
        math.ceil(stage.epochs * (there or _USUAL_COMPARISONS) / pairs),
        math.ceil(stage.tokens / (2 * rows.compared * pairs)) if stage.tokens else None,
    ]
    steps = min(limit for limit in limits if limit)
    filling._set_steps("rl", max(1, steps), "epochs x comparisons / pairs_per_step")


def _distil(filling: _Filling) -> None:
    stage = filling.recipe.rl
    told = stage.distil or DistilSection()
    filling.values["rl"]["distil"] = told.model_dump(mode="json")
    n = 16 if stage.algorithm == "bon" else 8
    rule = "best of 16 (WebGPT took 4 to 64)" if n == 16 else "1 of 8 is kept (RAFT)"
    n = _nested(filling, "distil", "n", stage.group or n, rule)
    filling.fill("rl.group", n, "distil.n")
    if told.rounds and stage.rollout_batch is None:
        episodes = stage.episodes or rules.episodes(filling.params).value
        size = max(1, round(episodes / told.rounds / n)) * n
        filling.fill("rl.rollout_batch", size, "episodes / distil.rounds")


def _drawn(filling: _Filling) -> None:
    """Steps over responses that are drawn, iteration by iteration."""
    stage = filling.recipe.rl
    group = filling.fill("rl.group", 8, "the best of 8 answers against the worst (RLHF Workflow)")
    batch = stage.rollout_batch or filling.values["rl"]["rollout_batch"]
    if batch is None:
        wanted = rules.rollout_batch(filling.params)
        size = max(group, min(wanted.value, stage.episodes or wanted.value) // group * group)
        batch = filling.fill("rl.rollout_batch", size, wanted.rule)
    units = batch // group * (stage.distil.keep if stage.distil else 1)
    each = rules.pairs_per_step(filling.params)
    rule = f"{each.value} to learn from a step: {each.rule}"
    count = filling.fill("rl.minibatches", max(1, units // each.value), rule)
    # KTO compares with responses to other prompts of the step.
    least = count * (2 if stage.algorithm == "kto" else 1)
    if batch % group or least > units:
        raise InputError(
            f"rl.rollout_batch={batch} in groups of {group} gives {units} to learn from in "
            f"rl.minibatches={count}: write a multiple of {group}, such as {least * group}"
        )
    an_iteration = stage.epochs * count
    rounds = stage.distil.rounds if stage.distil else None
    limits = [
        stage.episodes,
        rounds and rounds * batch,
        stage.steps and math.ceil(stage.steps / an_iteration) * batch,
        stage.tokens and math.ceil(stage.tokens / (filling.rows.prompt + filling.rows.response)),
    ]
    usual = rules.episodes(filling.params)
    episodes = min((limit for limit in limits if limit), default=usual.value)
    rule = "rounds, steps or tokens asked for" if any(limits) else usual.rule
    filling.fill("rl.episodes", episodes, rule)
    steps = max(1, math.ceil(episodes / batch)) * an_iteration
    filling._set_steps("rl", steps, "episodes / rollout_batch x epochs x minibatches")


def work(recipe: Recipe, rows: RowTokens) -> Work:
    """What the updates of such a stage compute; of a resolved recipe."""
    section = recipe.rl
    steps = section.steps or 0
    if reads_comparisons(section):
        told = section.preference or PreferenceSection()
        tokens = steps * 2 * (told.pairs_per_step or 0) * rows.compared
        asked = 1 if has_reference(section) else 0
        # Strangers are read by both models, and none of them is trained.
        strangers = 1 if section.algorithm == "kto" else 0
        scored = tokens * (asked + strangers * (1 + asked))
        return Work(trained=tokens, scored=scored, document_tokens=rows.compared, updates=steps)
    batch, group = section.rollout_batch or 1, section.group or 1
    iterations = math.ceil(steps / (section.epochs * (section.minibatches or 1)))
    episodes, cells = iterations * batch, rows.prompt + rows.response - 1
    learned = 2 if compares(section) else (section.distil or DistilSection()).keep
    trained = episodes * learned / group * cells * section.epochs
    read = episodes * cells * (0 if section.algorithm == "bon" else 2)
    if compares(section) and has_reference(section):
        read += trained * (3 if section.algorithm == "kto" else 1)
    readers = Readers.of(recipe)
    return Work(
        trained=trained,
        scored=read + episodes * (rows.prompt + readers.language * cells),
        scored_scalar=episodes * cells * (readers.scalar + int(section.watch_model is not None)),
        generated=episodes * rows.response,
        document_tokens=cells,
        updates=steps,
    )


def batch(recipe: Recipe) -> tuple[int, str]:
    """What a step of such a stage takes."""
    section = recipe.rl
    told = section.preference or PreferenceSection()
    if reads_comparisons(section):
        return told.pairs_per_step or 0, "pairs"
    units = (section.rollout_batch or 0) // (section.group or 1)
    keep = section.distil.keep if section.distil else 1
    return units * keep // (section.minibatches or 1), "pairs" if compares(section) else "responses"
