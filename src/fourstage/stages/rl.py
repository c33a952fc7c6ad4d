"""Stage 4: reinforcement learning against the reward model, by PPO or GRPO; or by preferences.

Starts from the chat model, with the reward model frozen; reads data/rl. Losses on comparisons
(`stages/preference.py`) read data/reward and need no reward model; `stages/distilling.py` imitates
the best responses. All are measured on held-out prompts by gold reward before and after, against
the best that exists, and by the distance moved. Gold is measured only: nothing in the stage reads
it to stop, select or set anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fourstage.adapters.adapting import base_of
from fourstage.data.batch import Batch
from fourstage.data.drawing import text_source
from fourstage.data.store import Store
from fourstage.errors import InputError
from fourstage.evaluation.alignment import (
    gold_ceiling,
    gold_rewards,
    kl_per_response,
    proxy_rewards,
)
from fourstage.evaluation.diversity import diversity
from fourstage.evaluation.estimates import Numbers
from fourstage.evaluation.success import task_success
from fourstage.model.actor_critic import ActorCritic
from fourstage.model.transformer import Transformer
from fourstage.objectives.grpo import GRPO
from fourstage.objectives.logprobs import logprobs
from fourstage.objectives.objective import Objective
from fourstage.objectives.ppo import PPO
from fourstage.precision import product_dtype, trains_in_fp8
from fourstage.recipe import RL
from fourstage.recipe.preference import compares, distils, draws
from fourstage.stages import distilling, preference
from fourstage.stages.adapting import narrow
from fourstage.stages.context import StageContext
from fourstage.stages.datafiles import held_out_tasks, sample_tasks, training_tasks
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
from fourstage.stages.rollouts import Players, RolloutSource
from fourstage.stages.samples import answers
from fourstage.tasks import Task
from fourstage.training.contracts import Source
from fourstage.training.guards import GuardFailed, first_ratio_is_one
from fourstage.training.trainer import TrainResult

# Prompts and responses to each that diversity is measured on.
_DIVERSITY_PROMPTS, _DIVERSITY_RESPONSES = 64, 4
# By device, of fp32 products; and of those that are rounded, which depend on what is beside them:
# rollouts are computed in other portions than updates.
_RATIO_TOLERANCE = {"cpu": 1e-5, "mps": 1e-4}
_RATIO_TOLERANCE_BF16, _RATIO_TOLERANCE_FP8 = 0.1, 1.0


@dataclass(frozen=True)
class HeldOut:
    """What the stage is measured on: prompts for rewards and KL, instructions for success."""

    prompts: list[Task]
    instructions: list[Task]


def run(context: StageContext) -> dict[str, Any]:
    """Trains the policy; the content of results.json."""
    section = context.section
    players = _players(context)
    held_out = _held_out(context, players.reference)
    before = context.measure("before", lambda: _before(context, players, held_out))
    trained = _learn(context, players)
    numbers = Numbers().update(before)
    if compares(section):
        numbers.update(context.measure("order", lambda: preference.order(context, players)))
    for name, compute in (
        ("gold", lambda: _after(context, players, held_out)),
        (
            "success",
            lambda: task_success(context.chat(players.trained.policy), held_out.instructions),
        ),
        ("diversity", lambda: _diversity(context, players, held_out)),
    ):
        numbers.update(context.measure(name, compute))
    save(context, players.trained.policy, numbers)
    return results(context, numbers, trained)


def _learn(context: StageContext, players: Players) -> TrainResult:
    """Trains the policy by what `rl.algorithm` names."""
    section = context.section
    tasks = _trainable(context, players.reference) if draws(section) else []
    if compares(section):
        return preference.train(context, players, tasks, [trains_responses], _tolerance(context))
    if distils(section):
        return distilling.train(context, players, tasks, [trains_responses])
    source = RolloutSource(
        players,
        context.tokenizer,
        tasks,
        section,
        context.seed,
        _pretraining_mix(context, players.reference),
        context.group,
        context.say if context.group.writes else lambda line: None,
    )
    return context.train(
        players.trained,
        objective_of(section),
        source,
        guards=_guards(context),
        sample=lambda step: answers(
            context, players.trained.policy, sample_tasks(context), players.reward_model
        ),
        rate_multipliers={"critic.": section.critic_learning_rate / section.learning_rate},
    )


def _players(context: StageContext) -> Players:
    """Policy and reference from the chat model; the critic, a model of its own, from the reward
    model, its head rescaled so that values start in the unit of the rewards.

    A policy with an adapter is its own reference, without it: both have the same frozen weights.
    """
    policy = starting_model(context)
    judge = _judge(context)
    critic = None
    if context.section.algorithm == "ppo":
        assert judge is not None, "PPO has a reward model"
        critic = scorer(context.parents["reward_model"], context)
        with torch.no_grad():
            critic.score.weight /= judge.reward_std
    narrow(context, policy, *([critic] if critic else []))
    if context.section.adapter is not None:
        reference = frozen(base_of(policy))
    else:
        reference = frozen(language_model(context.parents["from"], context))
    return Players(ActorCritic(policy, critic), reference, judge)


def _judge(context: StageContext) -> Transformer | None:
    """The reward model; where the stage needs none, the run's own for measuring, if it has one."""
    folder = context.parents.get("reward_model")
    if folder is not None:
        return reward_model(folder, context)
    own = context.run / "reward" / "model"
    is_usable = (own / "config.json").is_file() and scores_for(own, context)
    return reward_model(own, context) if is_usable else None


def objective_of(section: RL) -> Objective:
    """PPO or GRPO with the coefficients of `rl` of a resolved recipe."""
    if section.algorithm == "grpo":
        return GRPO(
            section.clip_range, section.clip_range, section.kl_coefficient, section.temperature
        )
    return PPO(
        section.clip_range,
        section.value_clip,
        section.value_coefficient,
        section.temperature,
        section.pretraining_mix,
    )


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


def _pretraining_mix(context: StageContext, model: Transformer) -> Source | None:
    """As many cells of pretraining text as a step of pretraining had, beside each minibatch."""
    if not context.section.pretraining_mix or context.section.algorithm != "ppo":
        return None
    store = Store.open(context.data / "pretrain" / "train")
    longest = context.recipe.model.context or model.config.context
    cells = context.recipe.pretrain.batch_tokens or longest
    return text_source(context.recipe, store, cells, longest)


def _guards(context: StageContext) -> list:
    def policy_logprobs(module: nn.Module, batch: Batch) -> Tensor:
        assert isinstance(module, ActorCritic)
        return logprobs(module.policy, batch, context.section.temperature)

    return [trains_responses, first_ratio_is_one(policy_logprobs, _tolerance(context))]


def _tolerance(context: StageContext) -> float:
    """How far a probability ratio may be from 1 where nothing has changed."""
    if trains_in_fp8():
        return _RATIO_TOLERANCE_FP8
    if product_dtype(context.device) is not None:
        return _RATIO_TOLERANCE_BF16
    return _RATIO_TOLERANCE.get(context.device.type, _RATIO_TOLERANCE_BF16)


def trains_responses(module: nn.Module, objective: Objective, batch: Batch) -> None:
    """A guard: the trained cells are those that predict a response's tokens, all and only they.

    Raises:
        GuardFailed: a token of a prompt is trained, or one of a response is not.
    """
    first = batch.documents["prompt_tokens"] - 1
    responses = batch.positions >= first[batch.document_ids]
    text = batch.streams.get("mix_weights", torch.zeros_like(batch.streams["loss_weights"]))
    if bool(((batch.streams["loss_weights"] != 0) != (responses & (text == 0))).any()):
        raise GuardFailed("first minibatch: the trained tokens are not those of the responses")


def _before(context: StageContext, players: Players, held_out: HeldOut) -> Numbers:
    """The chat model's own gold and proxy reward at temperature 1, and the best gold there is."""
    tasks = held_out.prompts
    responses = context.chat(players.reference).respond([t.prompt for t in tasks], 1.0, "gold")
    numbers = gold_ceiling(tasks).update(gold_rewards("gold_reward_sft", tasks, responses))
    if players.reward_model is None:
        return numbers
    scorer, tokenizer = players.reward_model, context.tokenizer
    return numbers.update(proxy_rewards("proxy_reward_sft", scorer, tokenizer, responses))


def _after(context: StageContext, players: Players, held_out: HeldOut) -> Numbers:
    """Gold, proxy reward and KL of the same prompts, drawn with the same numbers."""
    tasks, policy = held_out.prompts, players.trained.policy
    responses = context.chat(policy).respond([task.prompt for task in tasks], 1.0, "gold")
    numbers = gold_rewards("gold_reward", tasks, responses)
    if players.reward_model is not None:
        scorer, tokenizer = players.reward_model, context.tokenizer
        numbers.update(proxy_rewards("proxy_reward", scorer, tokenizer, responses))
    numbers.add_means("kl", kl_per_response(policy, players.reference, responses))
    numbers.add_means("response_tokens", [len(each.tokens) for each in responses])
    return numbers.add_means("finished", [each.finished for each in responses])


def _diversity(context: StageContext, players: Players, held_out: HeldOut) -> Numbers:
    """How much several responses to one prompt differ: base (as plain text), chat model, policy."""
    prompts = [task.prompt for task in held_out.prompts[:_DIVERSITY_PROMPTS]]
    repeated = [prompt for prompt in prompts for _ in range(_DIVERSITY_RESPONSES)]
    numbers = Numbers()
    base = context.run / "pretrain" / "model"
    if base.is_dir():
        chat = context.chat(frozen(language_model(base, context)))
        numbers.update(_spread(chat.as_text(repeated, 1.0, "diversity"), "_base"))
    for suffix, model in (("_sft", players.reference), ("_rl", players.trained.policy)):
        numbers.update(_spread(context.chat(model).respond(repeated, 1.0, "diversity"), suffix))
    return numbers


def _spread(responses: Sequence[Any], suffix: str) -> Numbers:
    size = _DIVERSITY_RESPONSES
    groups = [responses[i : i + size] for i in range(0, len(responses), size)]
    return diversity([[each.tokens for each in group] for group in groups], suffix)
