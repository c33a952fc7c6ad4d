"""Preference losses, their gradients and numbers equal TRL's own code on identical tensors."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from fourstage.data.batch import Batch, Example
from fourstage.model.layout import Layout
from fourstage.objectives.kto import KTO
from fourstage.objectives.logprobs import logprobs
from fourstage.objectives.objective import document_sums, with_survey
from fourstage.objectives.preference import DirectPreference
from fourstage.objectives.preference_losses import Responses, cpo, dpo
from fourstage.objectives.preferences import preference_of
from objectives_support import (
    VOCABULARY,
    assert_same_update,
    double_streams,
    gradients,
    kto_batch,
    preference_batch,
    random_examples,
    tiny_model,
    update,
    with_reference,
)
from trl_support import newest, rectangle, trainer_of, trainer_stub


@pytest.fixture(scope="module")
def trl():
    pytest.importorskip("trl")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from trl.experimental.cpo.cpo_trainer import CPOTrainer
        from trl.experimental.orpo.orpo_trainer import ORPOTrainer
    from trl.trainer import dpo_trainer, kto_trainer

    return SimpleNamespace(
        dpo=dpo_trainer.DPOTrainer, kto=kto_trainer.KTOTrainer, cpo=CPOTrainer, orpo=ORPOTrainer
    )


def policy():
    return tiny_model("language", 1)


def sides_first(batch: Batch) -> list[int]:
    """All chosen documents, then all rejected ones, as TRL has them."""
    return [*range(0, len(batch.lengths), 2), *range(1, len(batch.lengths), 2)]


def padded(batch: Batch, values: Tensor, order: list[int]) -> Tensor:
    parts = values.split(list(batch.lengths))
    return rectangle([parts[index] for index in order])


def reference_sums(batch: Batch, order: list[int]) -> Tensor:
    return document_sums(batch.streams["ref_logprobs"], batch)[order]


def forward_outputs(model, batch: Batch, order: list[int]):
    """What TRL's fused head returns, with the log-probabilities of this model.

    A row has one token more than cells; the last cells of the rows here predict nothing.
    """
    weights = batch.streams["loss_weights"]
    logps = padded(batch, logprobs(model, batch) * weights, order)
    nothing = torch.zeros_like(logps).detach()
    return SimpleNamespace(
        log_probs=logps, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool()
    )


def trl_rows(batch: Batch, order: list[int]) -> dict[str, Tensor]:
    """Token ids and masks, one column more than cells."""
    mask = padded(batch, batch.streams["loss_weights"], order)
    first = torch.zeros(len(order), 1, dtype=mask.dtype)
    tokens = padded(batch, batch.tokens, order)
    ids = torch.cat([tokens, torch.zeros_like(tokens[:, :1])], 1)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "completion_mask": torch.cat([first, mask], 1).long(),
    }


DPO_CASES = {
    "dpo": (preference_of("dpo"), ["sigmoid"], [1.0]),
    "dpo, beta 0.7": (preference_of("dpo", beta=0.7), ["sigmoid"], [1.0]),
    "ipo": (preference_of("ipo"), ["ipo"], [1.0]),
    "hinge": (preference_of("hinge"), ["hinge"], [1.0]),
    "dpo by length": (preference_of("dpo", by_length=True), ["sigmoid_norm"], [1.0]),
    "rpo": (preference_of("dpo", nll_coefficient=0.7), ["sigmoid", "sft"], [1.0, 0.7]),
}


@pytest.mark.parametrize("case", DPO_CASES)
def test_dpo_and_its_variants_equal_trl(trl, case):
    told, loss_types, loss_weights = DPO_CASES[case]
    model, batch = policy(), preference_batch()
    order = sides_first(batch)
    ref = reference_sums(batch, order)
    inputs = trl_rows(batch, order)
    inputs["ref_chosen_logps"], inputs["ref_rejected_logps"] = ref.chunk(2)
    stub = trainer_stub(
        args=SimpleNamespace(),
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=loss_types,
        loss_weights=loss_weights,
        beta=told.beta,
        label_smoothing=0.0,
        use_weighting=False,
    )
    model.zero_grad()
    loss = trl.dpo._compute_loss(stub, lambda **_: forward_outputs(model, batch, order), inputs, 0)
    loss.backward()
    expected = (loss.item(), gradients(model))
    objective = DirectPreference(told)
    assert_same_update(update(objective, model, [batch], batch), expected, 1e-9)
    same_numbers(objective.sums(model, batch)[1], newest(stub))


NAMES = {
    "reward_chosen": "rewards/chosen",
    "reward_rejected": "rewards/rejected",
    "margin": "rewards/margins",
    "accuracy": "rewards/accuracies",
    "logprobs_chosen": "logps/chosen",
    "logprobs_rejected": "logps/rejected",
}

# Where a loss is of means, TRL's log-probabilities are a token's, and those here a response's.
WORTH = {name: theirs for name, theirs in NAMES.items() if not name.startswith("logprobs")}


def same_numbers(metrics: dict, theirs: dict[str, float], names: dict[str, str] = NAMES) -> None:
    for ours, name in names.items():
        total, count = metrics[ours]
        assert float(total / count) == pytest.approx(float(theirs[name]), abs=1e-5), ours


def test_a_label_that_may_be_wrong_equals_trl(trl):
    """Its DPO has no smoothing of labels; that of its CPO is the same formula, of log-ratios."""
    drawn = torch.Generator().manual_seed(0)
    sides = torch.randn(4, 6, generator=drawn, dtype=torch.float64)
    for smoothing in (0.0, 0.1, 0.3):
        trainer = trainer_of(
            trl.cpo, alpha=0.0, loss_type="sigmoid", beta=0.7, label_smoothing=smoothing
        )
        chosen = Responses(sides[0], sides[1], torch.ones(6))
        rejected = Responses(sides[2], sides[3], torch.ones(6))
        told = preference_of("cdpo", beta=0.7, label_smoothing=smoothing)
        expected = trainer.cpo_loss(chosen.ratios, rejected.ratios)[0]
        torch.testing.assert_close(dpo(chosen, rejected, told), expected, rtol=0, atol=1e-12)
        told = preference_of("cpo", beta=0.7, label_smoothing=smoothing)
        expected = trainer.cpo_loss(chosen.logprobs, rejected.logprobs)[0]
        torch.testing.assert_close(cpo(chosen, rejected, told), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shift", [-0.5, 0.5])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, 1.33)])
def test_kto_equals_trl(trl, shift, weights):
    model, batch = policy(), kto_batch()
    batch.streams["ref_logprobs"] -= shift * batch.streams["loss_weights"]
    labels = batch.documents["labels"]
    own = [index for index, label in enumerate(labels.tolist()) if label != 0]
    strangers = [index for index, label in enumerate(labels.tolist()) if label == 0]
    own_batch = batch.select(own)
    order = list(range(len(own)))
    with torch.no_grad():
        every = document_sums(logprobs(model, batch) * batch.streams["loss_weights"], batch)
    inputs = trl_rows(own_batch, order)
    inputs |= {
        "label": labels[own] == 1,
        "ref_logps": reference_sums(own_batch, order),
        "ref_KL_logps": reference_sums(batch, strangers),
    }
    stub = trainer_stub(
        _compute_kl_logps=lambda model, batch: every[strangers],
        calculate_KL=True,
        precompute_ref_logps=True,
        loss_type="kto",
        beta=0.5,
        desirable_weight=weights[0],
        undesirable_weight=weights[1],
    )
    model.zero_grad()
    loss = trl.kto._compute_loss(
        stub, lambda **_: forward_outputs(model, own_batch, order), inputs, 0
    )
    loss.backward()
    expected = (loss.item(), gradients(model))
    objective = KTO(0.5, *weights)
    informed = with_survey(objective, model, batch)
    assert_same_update(update(objective, model, [informed], informed), expected, 1e-9)
    metrics = objective.sums(model, informed)[1]
    assert (newest(stub)["kl"] > 0) == (shift > 0)
    names = {
        "z": "kl",
        "reward_desirable": "rewards/chosen",
        "reward_undesirable": "rewards/rejected",
        "logprobs_desirable": "logps/chosen",
        "logprobs_undesirable": "logps/rejected",
    }
    same_numbers(metrics, newest(stub), names)


def whole_pairs(pairs: int = 5) -> Batch:
    """Prompts of one token: TRL's ORPO takes the next-token loss of prompts too."""
    examples = random_examples(2 * pairs)
    whole = [Example(each.tokens) for each in examples]
    batch = double_streams(Batch.language(whole))
    batch.documents["group"] = torch.arange(2 * pairs) // 2
    return with_reference(batch)


class AsTheirs:
    """The model here, called as a causal model of Hugging Face with padding on the right."""

    def __init__(self, model):
        self.model = model

    def __call__(self, input_ids: Tensor, attention_mask: Tensor, **_) -> SimpleNamespace:
        rows = []
        for ids, mask in zip(input_ids, attention_mask, strict=True):
            tokens = ids[mask == 1]
            rows.append(self.model.logits(self.model(tokens, Layout((len(tokens),)))))
        longest = input_ids.shape[1]
        padding = [torch.zeros(longest - len(row), VOCABULARY, dtype=row.dtype) for row in rows]
        logits = [torch.cat(pair) for pair in zip(rows, padding, strict=True)]
        return SimpleNamespace(logits=torch.stack(logits))


def trl_pairs(batch: Batch) -> dict[str, Tensor]:
    """Chosen and rejected rows as TRL's collator makes them."""
    found = {}
    for side, start in (("chosen", 0), ("rejected", 1)):
        rows, masks, labels = [], [], []
        for index in range(start, len(batch.lengths), 2):
            alone = batch.select([index])
            tokens = torch.cat([alone.tokens, alone.targets[-1:]])
            trained = torch.cat([torch.zeros(1), alone.streams["loss_weights"]]) != 0
            rows.append(tokens)
            masks.append(torch.ones_like(tokens))
            labels.append(tokens.masked_fill(~trained, -100))
        found[f"{side}_input_ids"] = rectangle(rows)
        found[f"{side}_attention_mask"] = rectangle(masks)
        found[f"{side}_labels"] = torch.nn.utils.rnn.pad_sequence(labels, True, -100)
    return found


@pytest.mark.parametrize(
    "told, theirs",
    [
        (preference_of("simpo"), {"loss_type": "simpo", "simpo_gamma": 1.0, "cpo_alpha": 0.0}),
        (
            preference_of("simpo", label_smoothing=0.1, nll_coefficient=0.4),
            {"loss_type": "simpo", "simpo_gamma": 1.0, "cpo_alpha": 0.4, "label_smoothing": 0.1},
        ),
        (preference_of("cpo"), {"loss_type": "sigmoid", "cpo_alpha": 1.0}),
    ],
    ids=["simpo", "simpo with all", "cpo"],
)
def test_simpo_and_cpo_equal_trl(trl, told, theirs):
    model, batch = policy(), preference_pairs()
    plain = {"alpha": 0.0, "label_smoothing": 0.0, "is_encoder_decoder": False, "pad_token_id": 0}
    trainer = trainer_of(trl.cpo, beta=told.beta, **(plain | theirs))
    model.zero_grad()
    loss, numbers = trainer.get_batch_loss_metrics(AsTheirs(model), trl_pairs(batch), "train")
    loss.backward()
    expected = (loss.item(), gradients(model))
    objective = DirectPreference(told)
    assert_same_update(update(objective, model, [batch], batch), expected, 1e-9)
    metrics = objective.sums(model, batch)[1]
    same_numbers(metrics, numbers, NAMES if told.loss == "cpo" else WORTH)


def preference_pairs() -> Batch:
    """Pairs with prompts, as documents that end in their last token's prediction."""
    batch = double_streams(Batch.language(random_examples(10)))
    batch.documents["group"] = torch.arange(10) // 2
    return batch


def test_orpo_equals_trl(trl):
    model, batch = policy(), whole_pairs()
    told = preference_of("orpo")
    trainer = trainer_of(trl.orpo, beta=told.beta, is_encoder_decoder=False, padding_value=0)
    model.zero_grad()
    loss, numbers = trainer.get_batch_loss_metrics(AsTheirs(model), trl_pairs(batch), "train")
    loss.backward()
    expected = (loss.item(), gradients(model))
    objective = DirectPreference(told)
    # TRL takes the odds in single precision.
    assert_same_update(update(objective, model, [batch], batch), expected, 1e-5)
    metrics = objective.sums(model, batch)[1]
    same_numbers(metrics, numbers, WORTH | {"nll": "nll_loss"})
