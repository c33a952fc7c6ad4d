"""Loss and gradients of every objective against plain loops over sequences and tokens."""

from __future__ import annotations

import math

import pytest
import torch

from fourstage.data.batch import Batch
from fourstage.model.layout import Layout
from fourstage.objectives.bradley_terry import BradleyTerry
from fourstage.objectives.grpo import GRPO
from fourstage.objectives.next_token import NextToken
from fourstage.objectives.ppo import PPO
from objectives_support import (
    ScorerWithLanguage,
    assert_same_update,
    gradients,
    group_batch,
    language_batch,
    pair_batch,
    rollout_batch,
    tiny_actor_critic,
    tiny_model,
    update,
)


def documents_of(batch: Batch) -> list[Batch]:
    return [batch.select([i]) for i in range(len(batch.lengths))]


def hidden_alone(model, document: Batch) -> torch.Tensor:
    """A document through the model by itself."""
    return model(document.tokens, Layout(document.lengths))


def logprob_rows(model, document: Batch, temperature: float) -> torch.Tensor:
    logits = model.logits(hidden_alone(model, document)) / temperature
    return torch.log(torch.exp(logits) / torch.exp(logits).sum(-1, keepdim=True))


def number(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


def reference_update(module, loss: torch.Tensor):
    module.zero_grad()
    loss.backward()
    return loss.item(), gradients(module)


def test_next_token_equals_a_loop_over_tokens():
    model, batch = tiny_model(), language_batch()
    total, count = 0.0, 0
    for document in documents_of(batch):
        rows = logprob_rows(model, document, 1.0)
        for t in range(document.cells):
            if document.streams["loss_weights"][t]:
                total = total - rows[t, document.targets[t]]
                count += 1
    expected = reference_update(model, total / count)
    assert_same_update(update(NextToken(), model, [batch], batch), expected, 1e-10)


def test_z_loss_draws_the_denominator_of_the_softmax_to_one():
    model, batch, coefficient = tiny_model(), language_batch(), 0.3
    total, squares, count = 0.0, 0.0, 0
    for document in documents_of(batch):
        logits = model.logits(hidden_alone(model, document))
        normalisers = torch.log(torch.exp(logits).sum(-1))
        for t in range(document.cells):
            if document.streams["loss_weights"][t]:
                total = total + normalisers[t] - logits[t, document.targets[t]]
                squares = squares + normalisers[t] ** 2
                count += 1
    expected = reference_update(model, (total + coefficient * squares) / count)
    objective = NextToken(coefficient)
    assert_same_update(update(objective, model, [batch], batch), expected, 1e-10)
    _, metrics = objective.sums(model, batch)
    told = {name: float(value / number) for name, (value, number) in metrics.items()}
    assert told["nll"] == pytest.approx(float(total.detach()) / count)
    assert told["z_loss"] == pytest.approx(coefficient * float(squares.detach()) / count)


@pytest.mark.parametrize("centring", [0.0, 0.01])
@pytest.mark.parametrize("with_margins", [False, True])
def test_bradley_terry_equals_a_loop_over_pairs(centring, with_margins):
    model, batch = tiny_model("scalar"), pair_batch()
    if not with_margins:
        del batch.documents["margins"]
    scores = [model.scores(hidden_alone(model, d)[-1]) for d in documents_of(batch)]
    total = 0.0
    for i in range(0, len(scores), 2):
        margin = batch.documents["margins"][i] if with_margins else 0.0
        difference = scores[i] - scores[i + 1] - margin
        total = total - torch.log(1 / (1 + torch.exp(-difference)))
        total = total + centring * (scores[i] + scores[i + 1]) ** 2
    expected = reference_update(model, total / (len(scores) // 2))
    assert_same_update(update(BradleyTerry(centring), model, [batch], batch), expected, 1e-10)


def test_the_language_term_of_a_reward_model_is_of_chosen_responses_alone():
    model, batch = ScorerWithLanguage(), pair_batch()
    objective = BradleyTerry(language_coefficient=0.3)
    plain = update(BradleyTerry(), model, [batch], batch)[0]
    total, count = 0.0, 0
    for document in documents_of(batch)[::2]:
        rows = torch.log_softmax(model.language_logits(hidden_alone(model, document)), -1)
        for t in range(document.cells):
            if document.streams["loss_weights"][t]:
                total = total - rows[t, document.targets[t]].item()
                count += 1
    found, _ = update(objective, model, [batch], batch)
    assert math.isclose(found, plain + 0.3 * total / count, rel_tol=1e-10)
    assert objective.counts(batch)["language"] == count


def test_a_language_term_without_a_language_head_is_refused():
    batch = pair_batch()
    with pytest.raises(ValueError, match="language_logits"):
        BradleyTerry(language_coefficient=0.1).sums(tiny_model("scalar"), batch)


def test_documents_that_are_no_pairs_are_refused():
    batch = pair_batch(3)
    with pytest.raises(ValueError, match="two documents a group"):
        BradleyTerry().sums(tiny_model("scalar"), batch.select([0, 1, 2]))
    batch.documents["group"] = torch.tensor([0, 0, 0, 0, 1, 1])
    with pytest.raises(ValueError, match="not a pair"):
        BradleyTerry().sums(tiny_model("scalar"), batch)


def ppo_reference(module, batch: Batch, temperature: float, value_clip: float | None):
    """The formulas of PPO, a token at a time with Python's own min, max and conditions."""
    policy_total, value_total, count = 0.0, 0.0, 0
    for document in documents_of(batch):
        s = document.streams
        rows = logprob_rows(module.policy, document, temperature)
        values = module.critic.scores(hidden_alone(module.critic, document))
        for t in range(document.cells):
            if not s["loss_weights"][t]:
                continue
            count += 1
            advantage = s["advantages"][t]
            ratio = torch.exp(rows[t, document.targets[t]] - s["old_logprobs"][t])
            bounded = min(max(ratio, number(0.8)), number(1.2))
            policy_total = policy_total + max(-advantage * ratio, -advantage * bounded)
            error = (values[t] - s["returns"][t]) ** 2
            if value_clip is not None:
                old = s["old_values"][t]
                held = min(max(values[t], old - value_clip), old + value_clip)
                error = max(error, (held - s["returns"][t]) ** 2)
            value_total = value_total + 0.5 * error
    return policy_total / count + 0.1 * value_total / count


@pytest.mark.parametrize("value_clip", [None, 0.2])
def test_ppo_equals_a_loop_over_tokens(value_clip):
    module, batch = tiny_actor_critic(), rollout_batch()
    expected = reference_update(module, ppo_reference(module, batch, 0.7, value_clip))
    objective = PPO(clip=0.2, value_clip=value_clip, value_coefficient=0.1, temperature=0.7)
    assert_same_update(update(objective, module, [batch], batch), expected, 1e-10)
    metrics = objective.sums(module, batch)[1]
    assert 0 < metrics["clip_fraction"][0] / metrics["clip_fraction"][1] < 1
    assert metrics["ratio"][1] == batch.streams["loss_weights"].sum()


def test_the_pretraining_mix_adds_the_loss_of_its_own_cells():
    module, rollouts = tiny_actor_critic(), rollout_batch()
    text = language_batch(3, seed=5)
    streams = {k: torch.cat([v, torch.zeros(text.cells)]) for k, v in rollouts.streams.items()}
    none = torch.zeros(rollouts.cells)
    streams["mix_weights"] = torch.cat([none, text.streams["loss_weights"]]).double()
    both = Batch(
        torch.cat([rollouts.tokens, text.tokens]),
        rollouts.lengths + text.lengths,
        torch.cat([rollouts.targets, text.targets]),
        streams,
    )
    plain, mixed = PPO(temperature=0.7), PPO(temperature=0.7, pretraining_mix=0.5)
    loss, found = update(mixed, module, [both], both)
    loss_ppo, of_ppo = update(plain, module, [rollouts], rollouts)
    loss_text, of_text = update(NextToken(), module.policy, [text], text)
    assert math.isclose(loss, loss_ppo + 0.5 * loss_text, rel_tol=1e-10)
    for name, gradient in of_text.items():
        expected = of_ppo[f"policy.{name}"] + 0.5 * gradient
        torch.testing.assert_close(found[f"policy.{name}"], expected, rtol=0, atol=1e-9)


def grpo_reference(policy, batch: Batch, temperature: float, low: float, high: float, beta: float):
    total = 0.0
    for document in documents_of(batch):
        s = document.streams
        rows = logprob_rows(policy, document, temperature)
        sequence, count = 0.0, 0
        for t in range(document.cells):
            if not s["loss_weights"][t]:
                continue
            count += 1
            advantage, logprob = s["advantages"][t], rows[t, document.targets[t]]
            ratio = torch.exp(logprob - s["old_logprobs"][t])
            bounded = min(max(ratio, number(1 - low)), number(1 + high))
            behind = s["ref_logprobs"][t] - logprob
            kl = torch.exp(behind) - behind - 1
            sequence = sequence - min(advantage * ratio, advantage * bounded) + beta * kl
        total = total + sequence / count
    return total / len(batch.lengths)


@pytest.mark.parametrize("beta", [0.0, 0.04])
def test_grpo_equals_a_loop_over_sequences(beta):
    policy, batch = tiny_model(seed=1), group_batch()
    expected = reference_update(policy, grpo_reference(policy, batch, 0.7, 0.2, 0.28, beta))
    objective = GRPO(0.2, 0.28, kl_coefficient=beta, temperature=0.7)
    assert_same_update(update(objective, policy, [batch], batch), expected, 1e-10)


def test_the_first_ratio_is_one_in_single_precision():
    from fourstage.objectives.logprobs import logprobs

    module, batch = tiny_actor_critic(torch.float32), rollout_batch()
    batch.streams = {name: stream.float() for name, stream in batch.streams.items()}
    with torch.no_grad():
        batch.streams["old_logprobs"] = logprobs(module.policy, batch, 0.7)
    for objective in (PPO(temperature=0.7), GRPO(temperature=0.7)):
        for micro in batch.split(20):
            total, count = objective.sums(module, micro)[1]["ratio_deviation"]
            assert total / count < 1e-5


def test_ppo_without_a_critic_is_refused():
    from fourstage.model.actor_critic import ActorCritic

    with pytest.raises(ValueError, match="critic"):
        PPO().sums(ActorCritic(tiny_model()), rollout_batch())
