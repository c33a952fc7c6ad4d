"""Reward models of every kind against plain loops, probabilities that sum to one, and packing."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch
from torch import nn

from fourstage.data.batch import Batch
from fourstage.objectives.bradley_terry import BradleyTerry
from fourstage.objectives.comparing import compared
from fourstage.objectives.comparison_losses import bradley_terry_loss, tie_start, with_ties_loss
from fourstage.objectives.judged import Judged, StepJudged
from objectives_support import (
    assert_same_update,
    double_streams,
    gradients,
    pair_batch,
    random_examples,
    tiny_model,
    update,
)

SIZES = (2, 4, 3, 2, 5)


def with_heads(count: int) -> nn.Module:
    model = tiny_model("scalar")
    drawn = torch.Generator().manual_seed(9)
    model.score = nn.Linear(16, count, bias=False)
    with torch.no_grad():
        model.score.weight.copy_(torch.randn(count, 16, generator=drawn) * 0.3)
    return model.double()


def with_tie(strength: float = 0.3) -> nn.Module:
    model = tiny_model("scalar")
    model.tie = nn.Parameter(torch.tensor([strength], dtype=torch.float64))
    return model


def ranked_batch(seed: int = 0) -> Batch:
    """Groups of 2 to 5 documents with places, some of them tied, and qualities to match."""
    examples = random_examples(sum(SIZES), seed)
    group = [number for number, size in enumerate(SIZES) for _ in range(size)]
    batch = double_streams(Batch.rows(examples, group))
    drawn = torch.Generator().manual_seed(seed)
    places = torch.cat([torch.randint(1, size + 1, (size,), generator=drawn) for size in SIZES])
    places[:2] = torch.tensor([1, 2])
    batch.documents["places"] = places
    batch.documents["qualities"] = -places.double() / 3
    return batch


def judged_batch(heads: int = 0, seed: int = 0) -> Batch:
    examples = random_examples(9, seed)
    batch = double_streams(Batch.rows(examples))
    drawn = torch.Generator().manual_seed(seed)
    shape = (9, heads) if heads else (9,)
    batch.documents["labels"] = torch.rand(shape, generator=drawn, dtype=torch.float64)
    weights = torch.rand(shape, generator=drawn, dtype=torch.float64) > 0.3
    batch.documents["label_weights"] = weights.double()
    return batch


def stepped_batch(seed: int = 0) -> Batch:
    batch = double_streams(Batch.rows(random_examples(7, seed)))
    drawn = torch.Generator().manual_seed(seed)
    marked = torch.rand(batch.cells, generator=drawn) > 0.7
    marked[batch.last_cells] = True
    batch.streams["step_weights"] = marked.double()
    labels = torch.randint(0, 2, (batch.cells,), generator=drawn).double()
    batch.streams["step_labels"] = labels * marked
    return batch


def alone(model: nn.Module, batch: Batch) -> list[torch.Tensor]:
    """The scores of all cells of each document, through the model by itself."""
    parts = [batch.select([i]) for i in range(len(batch.lengths))]
    return [model.scores(model(part.tokens, part.layout)) for part in parts]


def reference(model: nn.Module, loss: torch.Tensor):
    model.zero_grad()
    loss.backward()
    return loss.item(), gradients(model)


def sigmoid(x: torch.Tensor) -> torch.Tensor:
    return 1 / (1 + torch.exp(-x))


@pytest.mark.parametrize("margin", [0.0, 0.7])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_ranking_is_the_mean_over_all_its_pairs(margin, smoothing):
    model, batch = tiny_model("scalar"), ranked_batch()
    scores = [each[-1] for each in alone(model, batch)]
    places, qualities = batch.documents["places"], batch.documents["qualities"]
    means = []
    for members in batch.groups():
        losses = []
        for i, j in combinations(members, 2):
            if places[i] == places[j]:
                continue
            w, b = (j, i) if places[i] < places[j] else (i, j)
            p = sigmoid(scores[b] - scores[w] - margin * (qualities[b] - qualities[w]))
            loss = -(1 - smoothing) * torch.log(p) - smoothing * torch.log(1 - p)
            losses.append(loss + 0.01 * (scores[b] + scores[w]) ** 2)
        if losses:
            means.append(sum(losses) / len(losses))
    expected = reference(model, sum(means) / len(means))
    objective = BradleyTerry(0.01, margin=margin, smoothing=smoothing)
    assert_same_update(update(objective, model, [batch], batch), expected, 1e-10)


def offset_batch() -> Batch:
    batch = ranked_batch()
    drawn = torch.Generator().manual_seed(5)
    batch.documents["offsets"] = 2 * torch.randn(sum(SIZES), generator=drawn, dtype=torch.float64)
    return batch


@pytest.mark.parametrize("margin", [0.0, 1.0])
def test_offsets_are_scores_that_are_known_already(margin):
    """Their difference is a lead that an answer has before the module says anything."""
    model, batch = tiny_model("scalar"), offset_batch()
    objective = BradleyTerry(0.0, margin=margin)
    found = update(objective, model, [batch], batch)
    known = batch.documents.pop("offsets")
    assert abs(found[0] - update(objective, model, [batch], batch)[0]) > 0.1
    batch.documents["qualities"] = margin * batch.documents["qualities"] - known
    assert_same_update(update(BradleyTerry(0.0, margin=1.0), model, [batch], batch), found, 1e-10)


def test_a_pair_is_a_ranking_of_two():
    model, pairs = tiny_model("scalar"), pair_batch()
    del pairs.documents["margins"]
    ranked = pairs.select(range(len(pairs.lengths)))
    ranked.documents["places"] = torch.tensor([1, 2]).repeat(len(pairs.lengths) // 2)
    first, second = (update(BradleyTerry(0.01), model, [b], b) for b in (pairs, ranked))
    assert_same_update(first, second, 1e-12)


@pytest.mark.parametrize("ties", ["davidson", "rao_kupper"])
def test_win_tie_and_loss_are_all_there_is(ties):
    drawn = torch.Generator().manual_seed(1)
    difference = torch.randn(50, generator=drawn, dtype=torch.float64) * 3
    for strength in (-2.0, 0.0, 1.5):
        tie = torch.tensor([strength], dtype=torch.float64)
        odds = [
            with_ties_loss(sign * difference, torch.full((50,), tied), tie, ties)
            for sign, tied in ((1, False), (-1, False), (1, True))
        ]
        total = sum(torch.exp(-each) for each in odds)
        torch.testing.assert_close(total, torch.ones(50, dtype=torch.float64))


def test_ties_are_those_of_the_papers():
    """Davidson's and Rao and Kupper's formulas with worths `exp(score)`, number by number."""
    for first, second, strength in ((0.4, -0.3, 0.2), (-1.0, 1.0, -0.5)):
        a, b, tie = math.exp(first), math.exp(second), torch.tensor([strength]).double()
        yes, no = torch.tensor([True]), torch.tensor([False])
        d = torch.tensor([first - second], dtype=torch.float64)
        nu = math.exp(strength)
        total = a + b + nu * math.sqrt(a * b)
        found = [math.exp(-float(with_ties_loss(d, t, tie, "davidson"))) for t in (no, yes)]
        assert found == pytest.approx([a / total, nu * math.sqrt(a * b) / total])
        theta = math.exp(math.log1p(math.exp(strength)))
        even = (theta**2 - 1) * a * b / ((a + theta * b) * (b + theta * a))
        found = [math.exp(-float(with_ties_loss(d, t, tie, "rao_kupper"))) for t in (no, yes)]
        assert found == pytest.approx([a / (a + theta * b), even])


@pytest.mark.parametrize("ties", ["davidson", "rao_kupper"])
@pytest.mark.parametrize("share", [0.05, 0.4])
def test_equal_answers_are_at_first_tied_as_often_as_those_of_the_data(ties, share):
    tie = torch.tensor([tie_start(share, ties)])
    loss = with_ties_loss(torch.zeros(1), torch.tensor([True]), tie, ties)
    assert math.exp(-float(loss)) == pytest.approx(share, rel=1e-4)


@pytest.mark.parametrize("ties", ["davidson", "rao_kupper"])
def test_modelled_ties_equal_a_loop_and_train_their_own_parameter(ties):
    model, batch = with_tie(), ranked_batch()
    scores = [each[-1] for each in alone(model, batch)]
    places, means = batch.documents["places"], []
    for members in batch.groups():
        losses = []
        for i, j in combinations(members, 2):
            b, w = (j, i) if places[j] < places[i] else (i, j)
            tied = torch.tensor([bool(places[i] == places[j])])
            loss = with_ties_loss((scores[b] - scores[w])[None], tied, model.tie, ties)
            losses.append(loss[0] + 0.01 * (scores[b] + scores[w]) ** 2)
        means.append(sum(losses) / len(losses))
    expected = reference(model, sum(means) / len(means))
    found = update(BradleyTerry(0.01, ties=ties, margin=0.0), model, [batch], batch)
    assert_same_update(found, expected, 1e-10)
    assert found[1]["tie"].abs() > 1e-6


def test_a_group_of_ties_alone_counts_for_nothing_when_ties_are_dropped():
    batch = ranked_batch()
    batch.documents["places"] = torch.arange(sum(SIZES))
    batch.documents["places"][2:6] = 1
    assert compared(batch).groups == len(SIZES) - 1
    assert compared(batch, ties=True).groups == len(SIZES)


def test_smoothing_is_the_loss_expected_when_labels_flip():
    chosen, rejected = torch.tensor([1.0, -0.5]), torch.tensor([0.2, 0.4])
    kept, flipped = bradley_terry_loss(chosen, rejected), bradley_terry_loss(rejected, chosen)
    smoothed = bradley_terry_loss(chosen, rejected, smoothing=0.2)
    torch.testing.assert_close(smoothed, 0.8 * kept + 0.2 * flipped)


def test_each_head_learns_from_its_own_comparisons():
    model, batch = with_heads(3), pair_batch()
    heads = torch.tensor([0, 0, 2, 2, 0, 0, 2, 2, 0, 0])
    batch.documents["heads"] = heads
    scores = [each[-1] for each in alone(model, batch)]
    total = 0.0
    for i in range(0, 10, 2):
        first, second = scores[i][heads[i]], scores[i + 1][heads[i]]
        total = total - torch.log(sigmoid(first - second - batch.documents["margins"][i]))
    expected = reference(model, total / 5)
    found = update(BradleyTerry(), model, [batch], batch)
    assert_same_update(found, expected, 1e-10)
    assert not found[1]["score.weight"][1].any()
    assert found[1]["score.weight"][2].any()


@pytest.mark.parametrize("heads", [0, 2])
@pytest.mark.parametrize("judgement", ["regression", "binary"])
def test_judgements_equal_a_loop_over_those_that_were_given(judgement, heads):
    model = with_heads(heads) if heads else tiny_model("scalar")
    batch = judged_batch(heads)
    labels, weights = batch.documents["labels"], batch.documents["label_weights"]
    total, count = 0.0, 0
    for i, scores in enumerate(alone(model, batch)):
        for r, y, w in zip(
            scores[-1].reshape(-1), labels[i].reshape(-1), weights[i].reshape(-1), strict=True
        ):
            if not w:
                continue
            count += 1
            if judgement == "regression":
                total = total + (r - y) ** 2
            else:
                total = total - y * torch.log(sigmoid(r)) - (1 - y) * torch.log(1 - sigmoid(r))
    expected = reference(model, total / count)
    assert_same_update(update(Judged(judgement), model, [batch], batch), expected, 1e-10)


def test_steps_equal_a_loop_over_judged_cells():
    model, batch = tiny_model("scalar"), stepped_batch()
    marks = batch.streams["step_weights"].split(list(batch.lengths))
    labels = batch.streams["step_labels"].split(list(batch.lengths))
    total, count = 0.0, 0
    for scores, marked, told in zip(alone(model, batch), marks, labels, strict=True):
        for t in range(len(scores)):
            if marked[t]:
                p = sigmoid(scores[t])
                total = total - torch.log(p if told[t] else 1 - p)
                count += 1
    expected = reference(model, total / count)
    assert_same_update(update(StepJudged(), model, [batch], batch), expected, 1e-10)


def test_steps_equal_the_token_classification_of_transformers():
    """What TRL's PRMTrainer minimises, with two logits a token of which one is held at 0."""
    transformers = pytest.importorskip("transformers.loss.loss_utils")
    model, batch = tiny_model("scalar"), stepped_batch()
    scores = model.scores(model(batch.tokens, batch.layout))
    marked = batch.streams["step_weights"] != 0
    labels = torch.where(marked, batch.streams["step_labels"].long(), -100)
    logits = torch.stack([torch.zeros_like(scores), scores], -1)
    config = type("Config", (), {"num_labels": 2})
    loss = transformers.ForTokenClassification(logits, labels, config)
    expected = reference(model, loss)
    # transformers takes its logits to single precision.
    assert_same_update(update(StepJudged(), model, [batch], batch), expected, 1e-5)


CASES = {
    "rankings": (lambda: BradleyTerry(0.01), lambda: tiny_model("scalar"), ranked_batch),
    "offset": (lambda: BradleyTerry(0.01), lambda: tiny_model("scalar"), offset_batch),
    "smoothed": (
        lambda: BradleyTerry(smoothing=0.1),
        lambda: tiny_model("scalar"),
        ranked_batch,
    ),
    "davidson": (lambda: BradleyTerry(ties="davidson"), with_tie, ranked_batch),
    "rao_kupper": (lambda: BradleyTerry(ties="rao_kupper"), with_tie, ranked_batch),
    "regression": (lambda: Judged("regression"), lambda: tiny_model("scalar"), judged_batch),
    "binary": (lambda: Judged("binary"), lambda: with_heads(2), lambda: judged_batch(2)),
    "steps": (StepJudged, lambda: tiny_model("scalar"), stepped_batch),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("max_tokens", [1, 30, 45])
def test_update_is_independent_of_how_the_step_is_cut(name, max_tokens):
    objective, module, batch = (make() for make in CASES[name])
    parts = batch.split(max_tokens)
    assert len(parts) > 1
    whole = update(objective, module, [batch], batch)
    assert_same_update(update(objective, module, parts, batch), whole, 1e-11)
    counts = [objective.counts(part) for part in parts]
    told = objective.counts(batch)
    assert told == {key: sum(part[key] for part in counts) for key in told}


@pytest.mark.parametrize("name", CASES)
def test_update_is_independent_of_the_order_of_documents(name):
    objective, module, batch = (make() for make in CASES[name])
    order = torch.randperm(len(batch.lengths), generator=torch.Generator().manual_seed(3)).tolist()
    other = batch.select(order)
    whole = update(objective, module, [batch], batch)
    assert_same_update(update(objective, module, [other], other), whole, 1e-11)


@pytest.mark.parametrize("name", CASES)
def test_metrics_add_up_over_micro_batches(name):
    objective, module, batch = (make() for make in CASES[name])
    parts = [objective.sums(module, part)[1] for part in batch.split(30)]
    for metric, (total, count) in objective.sums(module, batch)[1].items():
        assert sum(part[metric][0] for part in parts) == pytest.approx(float(total), abs=1e-9)
        assert sum(part[metric][1] for part in parts) == pytest.approx(float(count))
