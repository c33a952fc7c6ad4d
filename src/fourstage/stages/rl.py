"""Stage 4: reinforcement learning, or learning from preferences, by what `rl.algorithm` names.

Starts from the chat model, with the reward model frozen where one is asked. Policy optimisation
(`stages/policy.py`) and the best of several responses (`stages/distilling.py`) read data/rl; losses
on comparisons (`stages/preference.py`) read data/reward and need no reward model. All are measured
on held-out prompts by gold reward before and after, against the best that exists, by the share of
right answers where a reward can tell, and by the distance moved. Gold is measured only: nothing in
the stage reads it to stop, select or set a thing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fourstage.adapters.adapting import base_of
from fourstage.errors import InputError
from fourstage.evaluation.alignment import (
    gold_ceiling,
    gold_rewards,
    kl_per_response,
    reward_rows,
    spreads,
)
from fourstage.evaluation.drift import beside_demonstrations, drift, familiar, leads
from fourstage.evaluation.estimates import Numbers
from fourstage.evaluation.responses import Response
from fourstage.evaluation.scoring import scores
from fourstage.evaluation.success import task_success
from fourstage.model.actor_critic import ActorCritic
from fourstage.model.transformer import Transformer
from fourstage.recipe.preference import compares, distils, draws, reads_comparisons
from fourstage.stages import distilling, played, policy, preference
from fourstage.stages.adapting import narrow
from fourstage.stages.alarming import SaidAlarms
from fourstage.stages.context import StageContext
from fourstage.stages.datafiles import held_out_tasks, reference_rows, training_tasks
from fourstage.stages.episodes import Players
from fourstage.stages.judging import Judge
from fourstage.stages.models import (
    frozen,
    judges_as_asked,
    language_model,
    results,
    reward_model,
    save,
    scorer,
    scores_for,
    starting_model,
)
from fourstage.stages.watching import Watch, compared_scores, told_of, watcher_of
from fourstage.tasks import Task
from fourstage.training.trainer import TrainResult

# Demonstrations that the policy's responses are scored beside.
_DEMONSTRATIONS = 256
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
    players, watcher = _players(context), watcher_of(context)
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
        told = group.tell(numbers.extra.get("familiar"))
        judge.watch = Watch.of(told, watcher) if told else None
        context.reader = said_alarms = SaidAlarms(context.folder / "metrics.jsonl", context.say)
        trained = _learn(context, players, tasks, judge)
        if group.writes:
            said_alarms.catch_up()
        if compares(section):
            numbers.update(context.measure("order", lambda: preference.order(context, players)))
        for name, compute in (
            ("gold", lambda: _after(context, players, held_out, judge)),
            (
                "success",
                lambda: task_success(context.chat(players.trained.policy), held_out.instructions),
            ),
            ("diversity", lambda: _diversity(context, players, held_out)),
            ("demonstrations", lambda: _beside_demonstrations(context, players)),
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
        judges_as_asked(folder, context.section)
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
    numbers.update(_accuracy("accuracy_sft", context, model, tasks, judge))
    numbers.update(played.measured(context, model, tasks, judge, "_sft"))
    if players.reward_model is not None and responses:
        numbers.update(_familiarity(context, players.reward_model, tasks, responses, judge))
    return numbers


def _familiarity(
    context: StageContext,
    model: Transformer,
    tasks: list[Task],
    responses: list[Response],
    judge: Judge,
) -> Numbers:
    """What the reward model's scores follow before anything is trained on them, and their range."""
    section = context.section
    found = judge.alone().learned(responses).scores
    numbers = leads("_sft", found, tasks, responses)
    if np.isfinite(found).all():
        known = familiar(model, context.tokenizer, responses)
        compared = compared_scores(context, model) if section.step_rewards is None else None
        numbers.extra["familiar"] = told_of(known, found, compared)
    return numbers


def _after(context: StageContext, players: Players, held_out: HeldOut, judge: Judge) -> Numbers:
    """Gold, proxy reward and KL of the same prompts, drawn with the same numbers."""
    tasks, policy = held_out.prompts, players.trained.policy
    responses = context.chat(policy).respond([task.prompt for task in tasks], 1.0, "gold")
    numbers = gold_rewards("gold_reward", tasks, responses)
    numbers.update(judge.alone().measured("", tasks, responses))
    numbers.update(_accuracy("accuracy", context, policy, tasks, judge))
    numbers.update(played.measured(context, policy, tasks, judge, ""))
    numbers.add_means("kl", kl_per_response(policy, _chat_model(context, players), responses))
    numbers.add_means("response_tokens", [len(each.tokens) for each in responses])
    numbers.add_means("finished", [each.finished for each in responses])
    if judge.watch is not None and players.reward_model is not None and responses:
        known = judge.watch.familiar
        numbers.update(drift(players.reward_model, context.tokenizer, tasks, responses, known))
    return numbers


def _beside_demonstrations(context: StageContext, players: Players) -> Numbers:
    """What the reward model says of demonstrations, and of the policy's responses to the same."""
    if players.reward_model is None:
        return Numbers()
    chat, most = context.chat(players.trained.policy), context.recipe.evaluation.prompts
    found, rows = reference_rows(context, min(_DEMONSTRATIONS, most))
    encode = context.tokenizer.chat_prompt
    fits = [n for n, task in enumerate(found) if chat.fits(encode(task.prompt))]
    if not fits:
        return Numbers()
    prompts = [found[n].prompt for n in fits]
    responses = chat.respond(prompts, context.section.temperature, "demonstrations")
    drawn = reward_rows(context.tokenizer, responses)
    model = players.reward_model
    return beside_demonstrations(scores(model, [rows[n] for n in fits]), scores(model, drawn))


def _accuracy(
    name: str, context: StageContext, model: Transformer, tasks: list[Task], judge: Judge
) -> Numbers:
    """The share of right greedy responses; nothing where no reward tells right from wrong."""
    if not judge.checkers:
        return Numbers()
    responses = context.chat(model).respond([task.prompt for task in tasks])
    return judge.alone().accuracy(name, tasks, responses)


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
