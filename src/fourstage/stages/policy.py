"""Policy optimisation: the chat model learns from the numbers that its own responses get."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from typing import Any

from fourstage.data.drawing import text_source
from fourstage.data.store import Store
from fourstage.model.transformer import Transformer
from fourstage.objectives.correction import ICEPOP, TIS, Correction
from fourstage.objectives.critic_first import CriticFirst
from fourstage.objectives.objective import Objective
from fourstage.objectives.policy_gradient import PolicyGradient
from fourstage.recipe import RL
from fourstage.stages import engines, played
from fourstage.stages.context import StageContext
from fourstage.stages.datafiles import sample_tasks
from fourstage.stages.episodes import Players
from fourstage.stages.judging import Judge
from fourstage.stages.policy_guards import guards
from fourstage.stages.rollouts import RolloutSource
from fourstage.stages.samples import answers
from fourstage.tasks import Task
from fourstage.training.contracts import Source
from fourstage.training.trainer import TrainResult

_CORRECTIONS = {"tis": TIS, "icepop": ICEPOP}


def train(
    context: StageContext, players: Players, tasks: Sequence[Task], judge: Judge
) -> TrainResult:
    """Trains the policy of `players` on the numbers that `judge` gives its responses to `tasks`."""
    section, group = context.section, context.group
    source = RolloutSource(
        players,
        context.tokenizer,
        tasks,
        section,
        context.seed,
        _pretraining_mix(context, players.trained.policy),
        group,
        context.say if group.writes else lambda line: None,
        judge,
        engines.started(context),
    )
    rates = {}
    if players.trained.critic is not None:
        rates = {"critic.": section.critic_learning_rate / section.learning_rate}
    with closing(source):
        return context.train(
            players.trained,
            objective_of(section),
            source,
            guards=guards(context),
            sample=lambda step: _samples(context, players, judge),
            rate_multipliers=rates,
        )


def _samples(context: StageContext, players: Players, judge: Judge) -> list[dict[str, Any]]:
    tasks, model = sample_tasks(context), players.trained.policy
    if judge.environments is not None:
        return played.samples(context, model, tasks, judge)
    return answers(context, model, tasks, judge.alone())


def objective_of(section: RL) -> Objective:
    """The objective of `rl` of a resolved recipe."""
    objective = PolicyGradient(
        section.row(),
        section.temperature,
        section.entropy_coefficient,
        correction_of(section),
        section.value_clip,
        section.value_coefficient,
        section.pretraining_mix,
        section.is_on_policy,
    )
    return CriticFirst(objective) if section.value_warmup else objective


def correction_of(section: RL) -> Correction | None:
    """The correction of that name, with the bounds that the section gives."""
    if section.correction is None:
        return None
    known = _CORRECTIONS[section.correction]
    low, high = section.correction_low, section.correction_high
    return Correction(
        known.method,
        section.correction_level or known.level,
        known.low if low is None else low,
        known.high if high is None else high,
    )


def _pretraining_mix(context: StageContext, model: Transformer) -> Source | None:
    """As many cells of pretraining text as a step of pretraining had, beside each minibatch."""
    if not context.section.pretraining_mix:
        return None
    store = Store.open(context.data / "pretrain" / "train")
    longest = context.recipe.model.context or model.config.context
    cells = context.recipe.pretrain.batch_tokens or longest
    return text_source(context.recipe, store, cells, longest)
