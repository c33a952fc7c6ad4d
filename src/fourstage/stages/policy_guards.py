"""What is looked at before the first update of policy optimisation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fourstage.data.batch import Batch
from fourstage.model.actor_critic import ActorCritic
from fourstage.objectives.logprobs import logprobs
from fourstage.objectives.objective import Objective
from fourstage.precision import product_dtype, trains_in_fp8
from fourstage.stages.context import StageContext
from fourstage.training.contracts import Guard
from fourstage.training.guards import GuardFailed, first_ratio_is_one

# By device, of fp32 products; and of those that are rounded, which depend on what is beside them:
# rollouts are computed in other portions than updates.
_RATIO_TOLERANCE = {"cpu": 1e-5, "mps": 1e-4}
_RATIO_TOLERANCE_BF16, _RATIO_TOLERANCE_FP8 = 0.1, 1.0
# As drawn, a token at a time, log-probabilities come from products of other shapes.
_AS_DRAWN = 10.0


def guards(context: StageContext) -> list[Guard]:
    """That the right cells are trained, and that the policy is the one of the rollouts."""

    def policy_logprobs(module: nn.Module, batch: Batch) -> Tensor:
        assert isinstance(module, ActorCritic)
        return logprobs(module.policy, batch, context.section.temperature)

    tolerance = ratio_tolerance(context.device)
    if context.section.is_on_policy:
        tolerance *= _AS_DRAWN
    return [trains_responses, first_ratio_is_one(policy_logprobs, tolerance)]


def ratio_tolerance(device: torch.device) -> float:
    """How far a probability ratio may be from 1 where nothing has changed."""
    if trains_in_fp8():
        return _RATIO_TOLERANCE_FP8
    if product_dtype(device) is not None:
        return _RATIO_TOLERANCE_BF16
    return _RATIO_TOLERANCE.get(device.type, _RATIO_TOLERANCE_BF16)


def trains_responses(module: nn.Module, objective: Objective, batch: Batch) -> None:
    """A guard: the trained cells are those that predict a response's tokens, all and only they.

    Raises:
        GuardFailed: a token of a prompt is trained, or one of a response is not.
    """
    first = batch.documents["prompt_tokens"] - 1
    responses = batch.positions >= first[batch.document_ids]
    if "observed" in batch.streams:
        responses &= batch.streams["observed"] == 0
    if "left_out" in batch.documents:
        responses &= batch.documents["left_out"][batch.document_ids] == 0
    weights = batch.streams["loss_weights"]
    text = batch.streams.get("mix_weights", weights.new_zeros(batch.cells))
    if bool(((weights != 0) != (responses & (text == 0))).any()):
        raise GuardFailed("first minibatch: the trained tokens are not those of the responses")
