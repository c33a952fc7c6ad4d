"""Stage 4: reinforcement learning, or learning from preferences, by what `rl.algorithm` names.

Starts from the chat model, with the reward model frozen where one is asked. Policy optimisation
(`stages/policy.py`) and the best of several responses (`stages/distilling.py`) read data/rl; losses
on comparisons (`stages/preference.py`) read data/reward and need no reward model. All are measured
on held-out prompts by gold reward before and after, against the best that exists, and by the
distance moved. Gold is measured only: nothing in the stage reads it to stop, select or set a thing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from fourstage.adapters.adapting import base_of
from fourstage.errors import InputError
from fourstage.evaluation.alignment import gold_ceiling, gold_rewards, kl_per_response, spreads
from fourstage.evaluation.estimates import Numbers
from fourstage.evaluation.success import task_success
from fourstage.model.actor_critic import ActorCritic
from fourstage.model.transformer import Transformer
from fourstage.recipe.preference import compares, distils, draws, reads_comparisons
from fourstage.stages import distilling, played, policy, preference
from fourstage.stages.adapting import narrow
from fourstage.stages.context import StageContext
from fourstage.stages.datafiles import held_out_tasks, training_tasks
from fourstage.stages.episodes import Players
from fourstage.stages.judging import Judge
from fourstage.stages.models import (
    frozen,
    language_model,
    results,
    reward_model,
    save,
    scorer,
    scores_for,
    starting_model,
)
from fourstage.tasks import Task
from fourstage.training.trainer import TrainResult

# Prompts that diversity is measured on, and responses to each.
_DIVERSITY_PROMPTS, _DIVERSITY_RESPONSES = 64, 4


@dataclass(frozen=True)
class HeldOut:
    """What the stage is measured on: prompts for rewards and KL, instructions for success."""

    prompts: list[Task]
    instructions: list[Task]


def run(context: StageContext) -> dict[str, Any]:
    """Trains the policy; the content of results.json."""
    section, group = context.section, context.group
    players = _players(context)
    tasks = _trainable(context, players.trained.policy) if draws(section) else []
    held_out = _held_out(context, players.trained.policy)
    with Judge(
        section,
        context.tokenizer,
        players.reward_model,
        group,
        missing_end=section.missing_end_penalty,
    ) as judge:
        judge.start([*tasks, *held_out.prompts], context.say)
        numbers = Numbers().update(
            context.measure("before", lambda: _before(context, players, held_out, judge))
        )
        trained = _learn(context, players, tasks, judge)
        if compares(section):
            numbers.update(context.measure("order", lambda: preference.order(context, players)))
        for name, compute in (
            ("gold", lambda: _after(context, players, held_out, judge)),
            (
                "success",
                lambda: task_success(context.chat(players.trained.policy), held_out.instructions),
            ),
            ("diversity", lambda: _diversity(context, players, held_out)),
        ):
            numbers.update(context.measure(name, compute))
    save(context, players.trained.policy, numbers)
    return results(context, numbers, trained)


def _learn(context: StageContext, players: Players, tasks: list[Task], judge: Judge) -> TrainResult:
    """Trains the policy by what `rl.algorithm` names."""
    if compares(context.section):
        return preference.train(context, players, tasks, judge)
    if distils(context.section):
        return distilling.train(context, players, tasks, judge)
    return policy.train(context, players, tasks, judge)


def _players(context: StageContext) -> Players:
    """Policy and reference from the chat model; the critic, a model of its own, from the reward
    model, its head rescaled so that values start in the unit of the rewards.

    Without a reward model the critic is the chat model with a head of its own. A policy with an
    adapter is its own reference, without it: both have the same frozen weights.
    """
    section, critic = context.section, None
    policy = starting_model(context)
    judge = _reward_model(context)
    if section.needs_critic and judge is not None:
        critic = scorer(context.parents["reward_model"], context)
        with torch.no_grad():
            critic.score.weight /= judge.reward_std
    elif section.needs_critic:
        critic = policy.with_scalar_head(context.seed)
    narrow(context, policy, *([critic] if critic else []))
    reference = None
    if section.needs_reference and section.adapter is not None:
        reference = frozen(base_of(policy))
    elif section.needs_reference:
        reference = frozen(language_model(context.parents["from"], context))
    return Players(ActorCritic(policy, critic), reference, judge)


def _reward_model(context: StageContext) -> Transformer | None:
    """The reward model; where given comparisons need none, the run's own for measuring, if any."""
    folder = context.parents.get("reward_model")
    if folder is not None:
        return reward_model(folder, context)
    if not reads_comparisons(context.section):
        return None
    own = context.run / "reward" / "model"
    is_usable = (own / "config.json").is_file() and scores_for(own, context)
    return reward_model(own, context) if is_usable else None


def _trainable(context: StageContext, model: Transformer) -> list[Task]:
    """The prompts that leave room for a whole response, its end and `<|reward|>`.

    Raises:
        InputError: none does.
    """
    room = model.config.context - 2 - context.section.max_new_tokens
    tasks = training_tasks(context)
    fitting = [t for t in tasks if len(context.tokenizer.chat_prompt(t.prompt)) <= room]
    if len(fitting) < len(tasks):
        context.say(
            f"rl: {len(tasks) - len(fitting)} of {len(tasks)} prompts are too long, left out"
        )
    if not fitting:
        raise InputError(
            f"rl.max_new_tokens={context.section.max_new_tokens} leaves no room for a prompt in "
            f"the context of {model.config.context}: write a smaller one"
        )
    return fitting


def _held_out(context: StageContext, model: Transformer) -> HeldOut:
    evaluation, chat = context.recipe.evaluation, context.chat(model)
    return HeldOut(
        chat.answerable(held_out_tasks(context, "rl", evaluation.prompts)),
        chat.answerable(held_out_tasks(context, "sft", evaluation.instructions)),
    )


def _chat_model(context: StageContext, players: Players) -> Transformer:
    """The model that the stage began with: the reference, unless that is another one by now."""
    if players.reference is not None and not context.section.reference_reset:
        return players.reference
    return frozen(language_model(context.parents["from"], context))


def _before(context: StageContext, players: Players, held_out: HeldOut, judge: Judge) -> Numbers:
    """The chat model's own gold and proxy reward at temperature 1, and the best gold there is."""
    tasks = held_out.prompts
    # Nothing is trained yet, so that the policy is the chat model.
    model = players.reference or players.trained.policy
    responses = context.chat(model).respond([t.prompt for t in tasks], 1.0, "gold")
    numbers = gold_ceiling(tasks).update(gold_rewards("gold_reward_sft", tasks, responses))
    numbers.update(judge.alone().measured("_sft", tasks, responses))
    return numbers.update(played.measured(context, model, tasks, judge, "_sft"))


def _after(context: StageContext, players: Players, held_out: HeldOut, judge: Judge) -> Numbers:
    """Gold, proxy reward and KL of the same prompts, drawn with the same numbers."""
    tasks, policy = held_out.prompts, players.trained.policy
    responses = context.chat(policy).respond([task.prompt for task in tasks], 1.0, "gold")
    numbers = gold_rewards("gold_reward", tasks, responses)
    numbers.update(judge.alone().measured("", tasks, responses))
    numbers.update(played.measured(context, policy, tasks, judge, ""))
    numbers.add_means("kl", kl_per_response(policy, _chat_model(context, players), responses))
    numbers.add_means("response_tokens", [len(each.tokens) for each in responses])
    return numbers.add_means("finished", [each.finished for each in responses])


def _diversity(context: StageContext, players: Players, held_out: HeldOut) -> Numbers:
    """How much several responses to one prompt differ: base (as plain text), chat model, policy."""
    prompts = [task.prompt for task in held_out.prompts[:_DIVERSITY_PROMPTS]]
    size = _DIVERSITY_RESPONSES
    repeated = [prompt for prompt in prompts for _ in range(size)]
    numbers = Numbers()
    base = context.run / "pretrain" / "model"
    if base.is_dir():
        chat = context.chat(frozen(language_model(base, context)))
        numbers.update(spreads(chat.as_text(repeated, 1.0, "diversity"), size, "_base"))
    models = {"_sft": _chat_model(context, players), "_rl": players.trained.policy}
    for suffix, model in models.items():
        responses = context.chat(model).respond(repeated, 1.0, "diversity")
        numbers.update(spreads(responses, size, suffix))
    return numbers
