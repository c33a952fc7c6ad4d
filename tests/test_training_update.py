import math

import pytest
import torch

from fourstage.model.actor_critic import ActorCritic
from fourstage.objectives.next_token import NextToken
from fourstage.parallel.group import Group
from fourstage.training.guards import GuardFailed, NotFinite
from fourstage.training.metrics import read_rows
from fourstage.training.optimiser import MovingAverage, Optimiser
from fourstage.training.update import Update
from training_support import (
    TinySource,
    same_bits,
    settings,
    tiny_batch,
    tiny_model,
    trainer,
    weights_of,
)


def update_of(model, **changed):
    return Update(model, NextToken(), settings(**changed), torch.device("cpu"), Group())


def same_update_as_alone(**changed):
    whole, cut = tiny_model(), tiny_model()
    outcomes = []
    for model, told in ((whole, {}), (cut, changed)):
        update = update_of(model, **told)
        outcomes.append([update(tiny_batch(1, step), 1e-3) for step in range(3)])
    for a, b in zip(*outcomes, strict=True):
        assert a.loss == pytest.approx(b.loss, rel=1e-6)
        assert a.gradient_norm == pytest.approx(b.gradient_norm, rel=1e-5)
        assert a.metrics["nll"] == pytest.approx(b.metrics["nll"], rel=1e-6)
    for a, b in zip(whole.parameters(), cut.parameters(), strict=True):
        # Adam divides by the gradient's own size, which magnifies rounding of tiny gradients.
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("micro_batch_tokens", [1, 7, 13, 20, 33, 1000])
def test_update_is_independent_of_micro_batch_size(micro_batch_tokens):
    same_update_as_alone(micro_batch_tokens=micro_batch_tokens)


@pytest.mark.parametrize("workers", [2, 3])
def test_update_is_independent_of_workers(workers, monkeypatch):
    monkeypatch.setattr("fourstage.training.passes.FEWEST_CELLS", 1)
    same_update_as_alone(workers=workers)


def test_gradients_are_sums_over_global_counts():
    batch, model, reference = tiny_batch(2, 0), tiny_model(), tiny_model()
    update = update_of(model, clip=0.0, micro_batch_tokens=9, weight_decay=0.0)
    seen = []
    update.optimiser.step = lambda rate: seen.extend(
        g.clone() for g in update.optimiser.gradients()
    )
    update(batch, 1e-3)
    terms, _ = NextToken().sums(reference, batch)
    (terms["tokens"] / batch.cells).backward()
    for mine, theirs in zip(seen, reference.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs.grad, rtol=1e-4, atol=1e-7)


def test_the_gradient_is_clipped_to_its_norm():
    batch, model, reference = tiny_batch(2, 0), tiny_model(), tiny_model()
    update = update_of(model, clip=0.01)
    norms = []
    update.optimiser.step = lambda rate: norms.append(
        torch.nn.utils.get_total_norm(update.optimiser.gradients())
    )
    outcome = update(batch, 1e-3)
    terms, _ = NextToken().sums(reference, batch)
    (terms["tokens"] / batch.cells).backward()
    expected = torch.nn.utils.get_total_norm([p.grad for p in reference.parameters()])
    assert outcome.gradient_norm == pytest.approx(float(expected), rel=1e-5)
    assert float(norms[0]) == pytest.approx(0.01, rel=1e-4)


def test_a_step_equals_adamw_of_torch_on_the_same_gradient():
    batch, model, reference = tiny_batch(3, 0), tiny_model(), tiny_model()
    update_of(model, clip=0.0, weight_decay=0.1)(batch, 1e-2)
    matrices = [
        p for n, p in reference.named_parameters() if p.dim() == 2 and "embed_tokens" not in n
    ]
    others = [p for p in reference.parameters() if not any(p is m for m in matrices)]
    plain = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        lr=1e-2, betas=(0.9, 0.95), eps=1e-8, foreach=False,
    )  # fmt: skip
    terms, _ = NextToken().sums(reference, batch)
    (terms["tokens"] / batch.cells).backward()
    plain.step()
    for a, b in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_norms_and_embeddings_do_not_decay_and_a_module_can_have_its_own_rate():
    module = ActorCritic(tiny_model(), tiny_model().with_scalar_head(0))
    before = weights_of(module)
    optimiser = Optimiser(module, settings(weight_decay=0.5, rate_multipliers={"critic.": 2.0}))
    optimiser.gradients()
    optimiser.step(0.1)
    after = weights_of(module)
    still = 0.5 * 0.1
    for name, value in before.items():
        if value.dim() < 2 or name.endswith("embed_tokens.weight"):
            assert torch.equal(after[name], value), name
        else:
            shrunk = 1 - (2 * still if name.startswith("critic.") else still)
            torch.testing.assert_close(after[name], value * shrunk)


def test_optimiser_state_comes_back_with_the_same_bits():
    batches = [tiny_batch(4, step) for step in range(4)]
    straight, resumed = tiny_model(), tiny_model()
    update = update_of(straight)
    for batch in batches[:2]:
        update(batch, 1e-3)
    resumed.load_state_dict(straight.state_dict())
    again = update_of(resumed)
    again.optimiser.restore(update.optimiser.state())
    for batch in batches[2:]:
        update(batch, 1e-3)
        again(batch, 1e-3)
    assert same_bits(weights_of(straight), weights_of(resumed))


def test_the_moving_average_forgets_where_training_started_and_swaps_back_exactly():
    weight = torch.nn.Parameter(torch.zeros(3))
    average = MovingAverage([weight], decay=0.9)
    expected = 0.0
    for number in range(50):
        weight.data.fill_(1.0 + number)
        average.update()
        decay = min(0.9, (1 + number) / (10 + number))
        expected = decay * expected + (1 - decay) * (1.0 + number)
    average.swap()
    torch.testing.assert_close(weight.detach(), torch.full((3,), expected))
    average.swap()
    assert torch.equal(weight.detach(), torch.full((3,), 50.0))


class Poisoned(NextToken):
    """Multiplies the loss of some steps by NaN, or the gradient by infinity."""

    def __init__(self, steps, factor=math.nan):
        self.steps, self.factor, self.step = steps, factor, -1

    def counts(self, batch):
        self.step += 1
        return super().counts(batch)

    def sums(self, module, micro):
        terms, metrics = super().sums(module, micro)
        if self.step in self.steps:
            terms = {name: value * self.factor for name, value in terms.items()}
        return terms, metrics


@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_a_step_that_is_not_finite_is_skipped_counted_and_said(tmp_path, factor):
    lines, model = [], tiny_model()
    result = trainer(
        tmp_path, model, objective=Poisoned({3, 6}, factor), log_every=1, say=lines.append
    ).train()
    assert result.skipped == 2 and result.steps == 12
    assert all(bool(p.isfinite().all()) for p in model.parameters())
    assert sum("step 4 was not finite" in line for line in lines) == 1
    rows = {row["step"]: row for row in read_rows(tmp_path / "metrics.jsonl")}
    assert rows[4]["loss"] is None and rows[3]["loss"] is not None
    assert rows[12]["skipped_steps"] == 2


def test_a_skipped_step_changes_no_weight():
    model = tiny_model()
    update = update_of(model)
    update.objective = Poisoned({0})
    before = weights_of(model)
    outcome = update(tiny_batch(0, 0), 1e-2)
    assert outcome.fault == "the gradient of model.embed_tokens.weight"
    assert same_bits(before, weights_of(model)) and not update.optimiser.state()


def test_several_in_a_row_stop_the_run_and_name_the_first_bad_parameter(tmp_path):
    with pytest.raises(NotFinite, match=r"3 steps in a row .* the gradient of model.embed_tokens"):
        trainer(
            tmp_path, objective=Poisoned(set(range(4, 12))), most_skipped=3, checkpoint_every=2
        ).train()
    assert (tmp_path / "checkpoints" / "step-00000004").is_dir()


def test_bad_weights_are_named_before_gradients(tmp_path):
    model = tiny_model()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = math.nan
    with pytest.raises(GuardFailed, match=r"the weights of model.layers.1.mlp.up_proj.weight"):
        trainer(tmp_path, model, TinySource()).train()
