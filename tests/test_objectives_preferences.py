"""Preference losses against plain loops over pairs and tokens; KTO's z over a whole step."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from fourstage.data.batch import Batch, Example
from fourstage.errors import InputError
from fourstage.model.actor_critic import ActorCritic
from fourstage.model.layout import Layout
from fourstage.objectives.bradley_terry import BradleyTerry
from fourstage.objectives.kto import KTO
from fourstage.objectives.logprobs import logprobs
from fourstage.objectives.mismatching import with_mismatches
from fourstage.objectives.next_token import NextToken
from fourstage.objectives.objective import Surveys, document_sums, with_survey
from fourstage.objectives.preference import DirectPreference
from fourstage.objectives.preferences import PREFERENCES, preference_of
from objectives_support import (
    assert_same_update,
    gradients,
    kto_batch,
    language_batch,
    preference_batch,
    tiny_model,
    update,
)


def policy():
    return tiny_model("language", 1)


def told_of(model, batch: Batch) -> list[dict]:
    """Of each document the sums over its trained tokens, one at a time."""
    found = []
    for index in range(len(batch.lengths)):
        alone = batch.select([index])
        rows = torch.log_softmax(model.logits(model(alone.tokens, Layout(alone.lengths))), -1)
        logp, ref, tokens = 0.0, 0.0, 0
        for t in range(alone.cells):
            if alone.streams["loss_weights"][t]:
                logp = logp + rows[t, alone.targets[t]]
                ref = ref + alone.streams["ref_logprobs"][t]
                tokens += 1
        found.append({"logp": logp, "ref": ref, "tokens": tokens})
    return found


def sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def delta(c: dict, r: dict) -> Tensor:
    return (c["logp"] - c["ref"]) - (r["logp"] - r["ref"])


def mean_delta(c: dict, r: dict) -> Tensor:
    return (c["logp"] - c["ref"]) / c["tokens"] - (r["logp"] - r["ref"]) / r["tokens"]


def odds(side: dict) -> Tensor:
    p = torch.exp(side["logp"] / side["tokens"])
    return p / (1 - p)


FORMULAS = {
    "dpo": lambda c, r: -torch.log(sigmoid(0.1 * delta(c, r))),
    "cdpo": lambda c, r: (
        -0.9 * torch.log(sigmoid(0.1 * delta(c, r))) - 0.1 * torch.log(sigmoid(-0.1 * delta(c, r)))
    ),
    "ipo": lambda c, r: (mean_delta(c, r) - 1 / (2 * 0.1)) ** 2,
    "hinge": lambda c, r: max(1 - 0.1 * delta(c, r), 0 * delta(c, r), key=lambda x: x.item()),
    "simpo": lambda c, r: (
        -torch.log(sigmoid(2.0 * (c["logp"] / c["tokens"] - r["logp"] / r["tokens"]) - 1.0))
    ),
    "cpo": lambda c, r: -torch.log(sigmoid(0.1 * (c["logp"] - r["logp"]))),
    "orpo": lambda c, r: -0.1 * torch.log(sigmoid(torch.log(odds(c) / odds(r)))),
}


def pair_loss(name: str, told: list[dict]) -> Tensor:
    pairs = list(zip(told[::2], told[1::2], strict=True))
    loss = sum(FORMULAS[name](c, r) for c, r in pairs) / len(pairs)
    if name in ("cpo", "orpo"):
        loss = loss - sum(c["logp"] for c, _ in pairs) / sum(c["tokens"] for c, _ in pairs)
    return loss


def reference_update(model, loss: Tensor):
    model.zero_grad()
    loss.backward()
    return loss.item(), gradients(model)


def test_every_loss_has_a_formula_here():
    assert set(PREFERENCES) == set(FORMULAS)


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("where", ["cells", "documents"])
def test_a_preference_loss_equals_a_loop_over_pairs(name, where):
    model, batch = policy(), preference_batch()
    expected = reference_update(model, pair_loss(name, told_of(model, batch)))
    if where == "documents":
        batch.documents["ref_logprobs"] = document_sums(batch.streams.pop("ref_logprobs"), batch)
    objective = DirectPreference(preference_of(name))
    assert_same_update(update(objective, model, [batch], batch), expected, 1e-10)


@pytest.mark.parametrize("name", ["dpo", "hinge"])
def test_log_ratios_can_be_a_token_s(name):
    model, batch = policy(), preference_batch()
    told = told_of(model, batch)
    pairs = list(zip(told[::2], told[1::2], strict=True))
    differences = [3.0 * mean_delta(c, r) for c, r in pairs]
    if name == "dpo":
        loss = sum(-torch.log(sigmoid(x)) for x in differences) / len(pairs)
    else:
        loss = sum(torch.relu(1 - x) for x in differences) / len(pairs)
    objective = DirectPreference(preference_of(name, beta=3.0, by_length=True))
    expected = reference_update(model, loss)
    assert_same_update(update(objective, model, [batch], batch), expected, 1e-10)


def test_the_next_token_term_is_of_chosen_responses_alone():
    model, batch = policy(), preference_batch()
    chosen = batch.select(range(0, len(batch.lengths), 2))
    plain = update(DirectPreference(preference_of("dpo")), model, [batch], batch)
    nll = update(NextToken(), model, [chosen], chosen)
    objective = DirectPreference(preference_of("dpo", nll_coefficient=0.7))
    found = update(objective, model, [batch], batch)
    assert math.isclose(found[0], plain[0] + 0.7 * nll[0], rel_tol=1e-12)
    for name, gradient in found[1].items():
        expected = plain[1][name] + 0.7 * nll[1][name]
        torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-10)
    total, count = objective.sums(model, batch)[1]["nll"]
    assert float(total / count) == pytest.approx(nll[0])


@pytest.mark.parametrize("name", ["dpo", "orpo"])
def test_a_pair_of_weight_two_is_two_pairs(name):
    model, batch = policy(), preference_batch(3)
    twice = batch.select([0, 1, 2, 3, 4, 5, 2, 3])
    twice.documents["group"] = torch.tensor([0, 0, 1, 1, 2, 2, 9, 9])
    objective = DirectPreference(preference_of(name))
    expected = update(objective, model, [twice], twice)
    # The rejected response's weight is not read.
    batch.documents["weights"] = torch.tensor([1.0, 5.0, 2.0, 5.0, 1.0, 5.0])
    assert_same_update(update(objective, model, [batch], batch), expected, 1e-12)


@pytest.mark.parametrize("name", FORMULAS)
def test_metrics_say_what_responses_are_worth(name):
    model, batch = policy(), preference_batch(12)
    told, chosen = told_of(model, batch), preference_of(name)

    def worth(side: dict) -> float:
        if chosen.has_reference:
            value = side["logp"] - side["ref"]
        else:
            value = side["logp"] if name == "cpo" else side["logp"] / side["tokens"]
        return chosen.beta * value.item()

    pairs = [(worth(c), worth(r)) for c, r in zip(told[::2], told[1::2], strict=True)]
    metrics = DirectPreference(chosen).sums(model, batch)[1]
    means = {key: float(total / count) for key, (total, count) in metrics.items()}
    assert means["reward_chosen"] == pytest.approx(np.mean([c for c, _ in pairs]))
    assert means["reward_rejected"] == pytest.approx(np.mean([r for _, r in pairs]))
    assert means["margin"] == pytest.approx(np.mean([c - r for c, r in pairs]))
    assert means["accuracy"] == pytest.approx(np.mean([c > r for c, r in pairs]))
    assert 0 < means["accuracy"] < 1
    logps = [side["logp"].item() for side in told]
    assert means["logprobs_chosen"] == pytest.approx(np.mean(logps[::2]))
    assert means["logprobs_rejected"] == pytest.approx(np.mean(logps[1::2]))


def test_a_policy_that_is_its_reference_has_no_preference():
    model, batch = policy(), preference_batch()
    with torch.no_grad():
        batch.streams["ref_logprobs"] = logprobs(model, batch)
    objective = DirectPreference(preference_of("dpo"))
    metrics = objective.sums(model, batch)[1]
    assert abs(float(metrics["margin"][0])) < 1e-12
    loss, found = update(objective, model, [batch], batch)
    assert loss == pytest.approx(math.log(2))
    assert any(gradient.abs().max() > 1e-4 for gradient in found.values())


def test_the_odds_of_a_certain_response_are_finite():
    model, batch = policy(), preference_batch()
    objective = DirectPreference(preference_of("orpo"))
    model.logits = lambda hidden: (
        1e4 * torch.nn.functional.one_hot(batch.targets[batch.streams["loss_weights"] != 0], 19)
        + 0 * hidden.sum(-1, keepdim=True)
    )
    loss, found = update(objective, model, [batch], batch)
    assert math.isfinite(loss)
    assert all(gradient.isfinite().all() for gradient in found.values())


@pytest.mark.parametrize(
    "name, changes, message",
    [
        ("dppo", {}, "did you mean 'dpo'"),
        ("dpo", {"betta": 0.1}, "did you mean 'beta'"),
        ("dpo", {"beta": 0.0}, "such as 0.1"),
        ("dpo", {"label_smoothing": 0.5}, "less than 0.5"),
        ("ipo", {"label_smoothing": 0.1}, "write cdpo"),
        ("dpo", {"gamma": 0.5}, "leave it out"),
        ("ipo", {"by_length": True}, "leave it out"),
        ("dpo", {"nll_coefficient": -1.0}, "write 0 or more"),
    ],
)
def test_numbers_that_no_loss_is_made_of_are_refused(name, changes, message):
    with pytest.raises(InputError, match=message):
        preference_of(name, **changes)


def test_a_missing_reference_is_told():
    batch = preference_batch()
    del batch.streams["ref_logprobs"]
    with pytest.raises(InputError, match="without one"):
        DirectPreference(preference_of("dpo")).sums(policy(), batch)
    DirectPreference(preference_of("simpo")).sums(policy(), batch)


# KTO


def kto_loss(told: list[dict], labels: list[int], beta: float, bad: float) -> tuple[Tensor, float]:
    ratios = [side["logp"] - side["ref"] for side in told]
    strangers = [x.item() for x, label in zip(ratios, labels, strict=True) if label == 0]
    z = max(0.0, sum(strangers) / len(strangers))
    losses = []
    for ratio, label in zip(ratios, labels, strict=True):
        if label == 1:
            losses.append(1 - sigmoid(beta * (ratio - z)))
        elif label == -1:
            losses.append(bad * (1 - sigmoid(beta * (z - ratio))))
    return sum(losses) / len(losses), z


@pytest.mark.parametrize("shift", [-0.5, 0.5])
def test_kto_equals_a_loop_over_responses(shift):
    model, batch = policy(), kto_batch()
    # A reference that is further away lifts z above 0.
    batch.streams["ref_logprobs"] -= shift * batch.streams["loss_weights"]
    loss, z = kto_loss(told_of(model, batch), batch.documents["labels"].tolist(), 0.5, 1.5)
    assert (z > 0) == (shift > 0)
    expected = reference_update(model, loss)
    objective = KTO(0.5, 1.0, 1.5)
    informed = with_survey(objective, model, batch)
    assert_same_update(update(objective, model, [informed], informed), expected, 1e-10)


def test_z_does_not_depend_on_how_a_step_is_cut():
    model, batch, objective = policy(), kto_batch(), KTO(0.5)
    batch.streams["ref_logprobs"] -= 0.5 * batch.streams["loss_weights"]
    whole = with_survey(objective, model, batch)
    assert len(whole.lengths) == 8 and float(whole.documents["z"][0]) > 0
    expected = update(objective, model, [whole], whole)
    for most in (1, 13, 40):
        cut = with_survey(objective, model, batch, most)
        torch.testing.assert_close(cut.documents["z"], whole.documents["z"], rtol=0, atol=1e-12)
        assert_same_update(update(objective, model, cut.split(most), cut), expected, 1e-11)
    # On two processes, each surveys its part and the sums are reduced.
    parts = objective.surveyed(batch).split(30)
    shares = [sum(objective.survey(model, part) for part in parts[rank::2]) for rank in (0, 1)]
    reduced = objective.informed(batch, shares[0] + shares[1])
    torch.testing.assert_close(reduced.documents["z"], whole.documents["z"], rtol=0, atol=1e-12)


def test_a_survey_leaves_no_gradient_and_other_objectives_their_batch():
    model, batch = policy(), kto_batch()
    with_survey(KTO(), model, batch)
    assert all(weight.grad is None for weight in model.parameters())
    assert not KTO().survey(model, batch).requires_grad
    assert isinstance(KTO(), Surveys)
    assert not isinstance(BradleyTerry(), Surveys)
    assert with_survey(NextToken(), model, batch) is batch


def test_kto_without_a_survey_or_without_strangers_is_refused():
    batch = kto_batch()
    with pytest.raises(ValueError, match="surveyed"):
        KTO().sums(policy(), batch)
    labelled = batch.select(range(8))
    with pytest.raises(InputError, match="no mismatched response"):
        with_survey(KTO(), policy(), labelled)
    with pytest.raises(InputError, match="beta above 0"):
        KTO(beta=0.0)


def test_kto_metrics_tell_good_from_bad():
    model, batch, objective = policy(), kto_batch(), KTO(0.5)
    informed = with_survey(objective, model, batch)
    metrics = objective.sums(model, informed)[1]
    told = told_of(model, informed)
    for kind, label in (("desirable", 1), ("undesirable", -1)):
        chosen = [
            side
            for side, own in zip(told, informed.documents["labels"].tolist(), strict=True)
            if own == label
        ]
        worth = np.mean([0.5 * (side["logp"] - side["ref"]).item() for side in chosen])
        total, count = metrics[f"reward_{kind}"]
        assert float(total / count) == pytest.approx(worth)
        total, count = metrics[f"logprobs_{kind}"]
        assert float(total / count) == pytest.approx(
            np.mean([side["logp"].item() for side in chosen])
        )


# Mismatched documents


def asked(prompt: list[int], response: list[int]) -> Example:
    tokens = np.array([*prompt, *response])
    return Example(tokens, np.arange(len(tokens)) >= len(prompt))


EXAMPLES = [
    asked([1, 2], [3, 4]),
    asked([1, 2], [5, 6, 7]),
    asked([8], [9, 10]),
    asked([11, 12, 13], [14]),
]


def texts(batch: Batch) -> list[tuple[list[int], list[int]]]:
    """Tokens read and tokens trained of each document."""
    found = []
    for index in range(len(batch.lengths)):
        alone = batch.select([index])
        trained = alone.streams["loss_weights"] != 0
        found.append((alone.tokens.tolist(), alone.targets[trained].tolist()))
    return found


@pytest.mark.parametrize("make", [Batch.language, Batch.rows])
def test_a_stranger_is_the_response_to_the_next_other_prompt(make):
    batch = make(EXAMPLES)
    batch.documents["labels"] = torch.tensor([1, -1, 1, 1])
    found = with_mismatches(batch)
    assert found.documents["labels"].tolist() == [1, -1, 1, 1, 0, 0, 0, 0]
    expected = [
        asked([1, 2], [9, 10]),
        asked([1, 2], [9, 10]),
        asked([8], [14]),
        asked([11, 12, 13], [3, 4]),
    ]
    assert texts(found) == texts(make([*EXAMPLES, *expected]))


def test_strangers_that_do_not_fit_are_passed_over():
    batch = Batch.language(EXAMPLES)
    batch.documents["labels"] = torch.ones(4, dtype=torch.int64)
    found = with_mismatches(batch, most_cells=3)
    assert max(found.lengths[4:]) <= 3
    assert texts(found)[4] == ([1, 2, 9], [9, 10])
    assert texts(found)[-1] == ([8], [14]), "nothing fits behind the longest prompt"


def test_a_batch_of_one_prompt_has_no_strangers():
    batch = Batch.language(EXAMPLES[:2])
    batch.documents["labels"] = torch.tensor([1, -1])
    with pytest.raises(InputError, match="mix prompts"):
        with_mismatches(batch)


def test_strangers_are_made_before_the_reference_is_asked():
    batch = language_batch()
    batch.documents["labels"] = torch.ones(7, dtype=torch.int64)
    batch.streams["ref_logprobs"] = torch.zeros(batch.cells)
    with pytest.raises(ValueError, match="before any stream"):
        with_mismatches(batch)


def test_an_actor_without_a_critic_is_trained_as_its_policy():
    model, batch = policy(), preference_batch()
    objective = DirectPreference(preference_of("dpo"))
    expected = update(objective, model, [batch], batch)
    found = update(objective, ActorCritic(model), [batch], batch)
    assert found[0] == expected[0]
