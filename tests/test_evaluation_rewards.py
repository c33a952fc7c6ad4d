"""Ensembles, heads, steps and drift: each number against what it stands for, computed plainly."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import numpy as np
import pytest
import torch
from torch import nn

from evaluation_support import model, tokenizer
from fourstage.data.batch import Batch, Example
from fourstage.data.judgements import (
    STEP_END,
    Ranking,
    Stepped,
    ranking_rows,
    step_ends,
    stepped_rows,
)
from fourstage.evaluation.agreement import compared, member_scores
from fourstage.evaluation.alignment import reward_rows
from fourstage.evaluation.drift import Familiar, drift, familiar
from fourstage.evaluation.estimates import Numbers
from fourstage.evaluation.judgements import cell_scores, first_error
from fourstage.evaluation.likelihood import (
    Opinion,
    Turn,
    WithLikelihood,
    fit_opinion,
    fit_weight,
    least_logprobs,
    least_of_rows,
)
from fourstage.evaluation.responses import Response
from fourstage.evaluation.scoring import raw_scores, scores
from fourstage.evaluation.steps import step_scores, whole_score
from fourstage.interchange import load_model, save_model
from fourstage.interchange.rewards import (
    as_ensemble,
    ensemble_config,
    heads_config,
    members_of,
    read_heads,
    write_heads,
)
from fourstage.model.ensemble import Ensemble
from fourstage.model.heads import Heads, fold_heads, give_heads
from fourstage.model.layout import Layout
from fourstage.tasks import Task
from fourstage.worlds import calibration as world

SHOWN = [
    shown
    for shown in (world.demonstration(5, index) for index in range(60))
    if len(shown[0].prompt) + len(shown[1]) < 140
][:30]


def rows() -> list[list[int]]:
    return [
        tokenizer().reward_row(
            [{"role": "user", "content": task.prompt}, {"role": "assistant", "content": text}]
        )
        for task, text in SHOWN
    ]


def responses() -> list[Response]:
    made, end = tokenizer(), tokenizer().end_of_turn
    return [
        Response(tuple(made.chat_prompt(task.prompt)), (*made.encode(text), end), text, True)
        for task, text in SHOWN
    ]


def members(count: int = 3) -> list:
    found = [model(seed, head="scalar") for seed in range(count)]
    for number, member in enumerate(found):
        member.reward_mean, member.reward_std = 0.1 * number, 0.5 + number
    return found


@pytest.mark.parametrize("caution", [0.0, 1.5])
def test_an_ensemble_takes_what_its_members_disagree_by_off_their_mean(caution):
    each = members()
    units = np.stack([scores(member, rows()) for member in each], 1)
    expected = []
    for row in units:
        mean = sum(row) / 3
        deviation = (sum((value - mean) ** 2 for value in row) / 3) ** 0.5
        expected.append((mean - caution * deviation) * each[0].reward_std + each[0].reward_mean)
    ensemble = Ensemble(each, caution).eval()
    np.testing.assert_allclose(raw_scores(ensemble, rows()), expected, atol=1e-5)
    np.testing.assert_allclose(member_scores(ensemble, rows()), units, atol=1e-5)


def test_an_ensemble_of_one_scores_as_its_member():
    (alone,) = members(1)
    ensemble = Ensemble([alone], 2.0).eval()
    np.testing.assert_allclose(raw_scores(ensemble, rows()), raw_scores(alone, rows()), atol=1e-6)


def test_agreement_counts_pairs_and_couples():
    drawn = np.random.default_rng(0).normal(size=(40, 3))
    numbers = compared(drawn).metrics
    gaps, found = drawn[::2] - drawn[1::2], []
    for a, b in combinations(range(3), 2):
        found += [(first > 0) == (second > 0) for first, second in gaps[:, [a, b]]]
    assert numbers["member_agreement"] == pytest.approx(np.mean(found))
    assert numbers["member_accuracy/2"] == pytest.approx((gaps[:, 1] > 0).mean())
    assert compared(np.repeat(drawn[:, :1], 2, axis=1)).metrics["member_agreement"] == 1.0
    assert compared(np.repeat(drawn[:, :1], 2, axis=1)).metrics["member_disagreement"] == 0.0


def test_a_folder_of_several_heads_opens_as_one_and_as_each(tmp_path):
    scorer = model(head="scalar")
    give_heads(scorer, ("helpful", "harmless"), 0)
    assert scorer.score.weight.shape == (2, 32)
    weights, rest = {"helpful": 1.0, "harmless": 0.5}, ((0.1, -0.2), (2.0, 0.5))
    heads = Heads(weights, scorer.score.weight.detach().clone(), *rest)
    each = (raw_scores(scorer, rows()) - np.array(rest[0])) / np.array(rest[1])
    fold_heads(scorer, heads)
    save_model(
        tmp_path / "model",
        scorer,
        tokenizer(),
        card="",
        extra_config=heads_config(heads),
        beside=lambda folder: write_heads(folder, heads),
    )
    opened = read_heads(tmp_path / "model")
    assert dict(opened.weights) == weights and opened.stds == (2.0, 0.5)
    batch = Batch.rows([_example(row) for row in rows()])
    hidden = load_model(tmp_path / "model")(batch.tokens, batch.layout)[batch.last_cells]
    np.testing.assert_allclose(opened.scores(hidden).detach().numpy(), each, atol=1e-5)
    one = raw_scores(load_model(tmp_path / "model"), rows())
    both = each @ np.array([1.0, 0.5])
    np.testing.assert_allclose(one - one[0], both - both[0], atol=1e-5)


def _example(row: list[int]) -> Example:
    return Example(np.array(row))


def test_transformers_opens_the_weighted_sum_of_heads_and_the_first_member(tmp_path):
    transformers = pytest.importorskip("transformers")
    each = members(2)
    give_heads(each[0], ("a", "b"), 0)
    heads = Heads({"a": 1.0, "b": -1.0}, each[0].score.weight.detach().clone(), (0, 0), (1, 2))
    fold_heads(each[0], heads)
    ensemble = Ensemble(each, 1.0)
    save_model(
        tmp_path / "model",
        each[0],
        tokenizer(),
        card="",
        extra_config=heads_config(heads) | ensemble_config(ensemble),
        beside=lambda folder: (
            write_heads(folder, heads),
            save_model(folder / "members" / "1", each[1], tokenizer(), card=""),
        ),
    )
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    with torch.no_grad():
        found = [float(theirs(torch.tensor([row])).logits) for row in rows()[:5]]
    np.testing.assert_allclose(found, raw_scores(each[0], rows()[:5]), atol=1e-4)
    opened = as_ensemble(
        tmp_path / "model", [load_model(folder) for folder in members_of(tmp_path / "model")]
    ).eval()
    expected = raw_scores(Ensemble(each, 1.0).eval(), rows())
    np.testing.assert_allclose(raw_scores(opened, rows()), expected, atol=1e-5)


def test_heads_start_as_functions_of_seed_and_name():
    first, second = model(head="scalar"), model(head="scalar")
    give_heads(first, ("a", "b"), 7)
    give_heads(second, ("b", "c"), 7)
    torch.testing.assert_close(first.score.weight[1], second.score.weight[0])
    assert not torch.equal(first.score.weight[0], first.score.weight[1])


STEPS = ("First we take 3.", "Then we add 4.", "So it is 7.")


def test_steps_end_where_their_lines_end():
    made = tokenizer()
    ids = made.encode(STEP_END.join(STEPS))
    ends = step_ends(made, ids)
    assert len(ends) == 2
    for number, end in enumerate(ends, 1):
        read = made.decode(ids[: end + 1])
        assert read == STEP_END.join(STEPS[:number]) + STEP_END
    assert step_ends(made, made.encode("\n\nOne.\n\n\nTwo.\n")) == step_ends(
        made, made.encode("\n\nOne.\n\n\nTwo.")
    )


def test_a_step_is_judged_alike_in_data_and_in_samples():
    """The cells of a training row are those that a sampled response is scored at."""
    made, scorer = tokenizer(), model(head="scalar")
    task = Task("What is 3 + 4?", "sum", {})
    ((example, told),) = stepped_rows(made, Stepped(task, STEPS, (1.0, 0.0, 1.0)), 128, Counter())
    assert told["labels"] == [1.0, 0.0, 1.0]
    assert told["cells"][-1] == len(example.tokens) - 1
    expected = cell_scores(scorer, [example], [told["cells"]])[0]
    drawn = (*made.encode(STEP_END.join(STEPS)), made.end_of_turn)
    sampled = Response(tuple(made.chat_prompt(task.prompt)), drawn, "", True)
    np.testing.assert_allclose(step_scores(scorer, made, [sampled])[0], expected, atol=1e-6)
    # What stands behind a step does not change its score.
    shorter = Response(sampled.prompt, (*made.encode(STEP_END.join(STEPS[:2])),), "", False)
    assert step_scores(scorer, made, [shorter])[0][0] == pytest.approx(expected[0], abs=1e-5)


def test_steps_that_do_not_fit_are_left_out_with_their_labels():
    made, task = tokenizer(), Task("What is 3 + 4?", "sum", {})
    whole = len(
        stepped_rows(made, Stepped(task, STEPS, (1.0, 0.0, 1.0)), 500, Counter())[0][0].tokens
    )
    counts = Counter()
    ((example, told),) = stepped_rows(
        made, Stepped(task, STEPS, (1.0, 0.0, 1.0)), whole - 1, counts
    )
    assert told["labels"] == [1.0, 0.0] and len(example.tokens) < whole
    assert counts["cut"] == 1


def test_a_response_is_as_right_as_its_weakest_step_or_all_together():
    steps = np.array([2.0, -1.0, 0.5])
    right = 1 / (1 + np.exp(-steps))
    assert whole_score(steps) == pytest.approx(right[1])
    assert whole_score(steps, "product") == pytest.approx(right[0] * right[1] * right[2])
    assert whole_score(steps, "last") == pytest.approx(right[2])
    assert first_error(steps) == 1 and first_error(steps[:1]) == -1


class ByGold(nn.Module):
    """Scores rows by a table, as a reward model would."""

    def __init__(self, known: dict[tuple[int, ...], float]):
        super().__init__()
        self.inner = model(head="scalar")
        self.known, self.config = known, self.inner.config
        self.reward_mean, self.reward_std = 0.0, 1.0

    def forward(self, tokens, layout):
        ends = np.cumsum(layout.lengths)
        starts = ends - np.array(layout.lengths)
        found = torch.zeros(len(tokens), 1)
        for start, end in zip(starts, ends, strict=True):
            found[end - 1] = self.known[tuple(tokens[start:end].tolist())]
        return found

    def scores(self, hidden):
        return hidden[:, 0]


def drifted(score) -> Numbers:
    """Drift of half of the answers spoilt, under a reward model that gives `score(i, gold)`."""
    made, tasks, given = tokenizer(), [task for task, _ in SHOWN], responses()
    for index in range(0, len(given), 2):
        text = "No."
        tokens = (*made.encode(text), made.end_of_turn)
        given[index] = Response(given[index].prompt, tokens, text, True)
    golds = [world.gold(task, each.text) for task, each in zip(tasks, given, strict=True)]
    known = {
        tuple(row): score(index, gold)
        for index, (row, gold) in enumerate(zip(reward_rows(made, given), golds, strict=True))
    }
    return drift(ByGold(known), made, tasks, given, Familiar(high=0.5, disagreement=0.0))


def test_drift_tells_a_reward_model_that_knows_from_one_that_is_blind():
    knows = drifted(lambda index, gold: gold).metrics
    assert knows["proxy_right_wrong"] == 1.0
    assert knows["proxy_gold_correlation"] > 0.999
    misled = drifted(lambda index, gold: 1 - gold).metrics
    assert misled["proxy_right_wrong"] == 0.0
    blind = drifted(lambda index, gold: float(index)).metrics
    assert 0.2 < blind["proxy_right_wrong"] < 0.8


def test_one_in_twenty_familiar_responses_scores_high():
    scorer, given = model(head="scalar"), responses()
    before = familiar(scorer, tokenizer(), given)
    tasks = [task for task, _ in SHOWN]
    share = drift(scorer, tokenizer(), tasks, given, before).metrics["proxy_high_share"]
    assert share == pytest.approx(0.05, abs=0.03)
    assert before.disagreement == 0.0
    ensemble = Ensemble(members(), 1.0).eval()
    before = familiar(ensemble, tokenizer(), given)
    found = drift(ensemble, tokenizer(), tasks, given, before).metrics
    assert before.disagreement > 0 and found["proxy_disagreement"] == pytest.approx(1.0)


def test_answers_of_a_ranking_that_are_too_long_lose_what_lies_past_the_same_cell():
    made, task = tokenizer(), Task("Tell me more.", "answer", {})
    long = " ".join(["and so on"] * 60)
    ranking = Ranking(task, (long, f"No. {long}", "Yes."), (1, 2, 3), (3.0, 2.0, 1.0))
    counts = Counter()
    written = ranking_rows(made, ranking, 4, 60, counts)
    assert [told["place"] for _, told in written] == [1, 2, 3]
    assert {told["group"] for _, told in written} == {4} and counts["cut"] == 1
    assert all(len(example.tokens) <= 60 for example, _ in written)
    assert counts["too_long"] == 0


def test_the_least_likely_token_is_that_of_the_last_answer_alone():
    made, language = tokenizer(), model()
    turn = Turn.of(made)
    conversation = [
        {"role": "user", "content": "Who is there?"},
        {"role": "assistant", "content": "Nobody zq is."},
        {"role": "user", "content": "And now?"},
        {"role": "assistant", "content": "Ann is."},
    ]
    several = [made.reward_row(conversation), *rows()]
    with torch.no_grad():
        # What stands behind the first answer is very unlikely there, and no part of it.
        end = language(torch.tensor(several[0]), Layout([len(several[0])]))[-2]
        language.output_weight[made.reward] = -40 * end / (end @ end)
    expected = []
    for row in several:
        logits = language.logits(language(torch.tensor(row), Layout([len(row)])))
        logprobs = torch.log_softmax(logits, -1)
        begin = len(row) - 1 - row[::-1].index(turn.opening)
        end = len(row) - 1 - row[::-1].index(turn.end)
        told = [float(logprobs[at, row[at + 1]].detach()) for at in range(begin, end)]
        expected.append(min(told))
    batch = Batch.rows([_example(row) for row in several])
    found = least_logprobs(language, batch.tokens, batch.layout, turn).detach()
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)
    nothing = Batch.rows([Example(np.array([5, 6, 7]))])
    assert float(least_logprobs(language, nothing.tokens, nothing.layout, turn)) == 0.0


def test_likelihoods_count_beside_a_score_whatever_else_is_scored():
    made, (scorer, *_), language = tokenizer(), members(), model(5)
    least = least_of_rows(language, Turn.of(made), rows())
    low, high = np.quantile(least, [0.25, 0.75]).tolist()
    assert low < high
    opinion = Opinion(weight=0.25, floor=low, ceiling=high)
    judge = WithLikelihood(scorer, language, Turn.of(made), opinion).eval()
    least = least.clip(low, high)
    expected = raw_scores(scorer, rows()) + 0.25 * least
    np.testing.assert_allclose(raw_scores(judge, rows()), expected, atol=1e-5)
    alone = [raw_scores(judge, [row])[0] for row in rows()[:5]]
    np.testing.assert_allclose(alone, expected[:5], atol=1e-5)
    several = WithLikelihood(Ensemble(members(), 1.0).eval(), language, Turn.of(made), opinion)
    expected = raw_scores(several.scorer, rows()) + 0.25 * least
    np.testing.assert_allclose(raw_scores(several, rows()), expected, atol=1e-5)


def test_likelihoods_count_between_the_bounds_that_comparisons_speak_for():
    rng = np.random.default_rng(0)
    scores, least = rng.normal(size=4000), -rng.uniform(0, 20, size=4000)
    better, worse = np.arange(0, 4000, 2), np.arange(1, 4000, 2)
    true = 1.5 * (scores + 0.8 * least.clip(-8, -3))
    drawn = rng.uniform(size=2000) < 1 / (1 + np.exp(true[worse] - true[better]))
    better, worse = np.where(drawn, better, worse), np.where(drawn, worse, better)
    found = fit_opinion(scores, least, better, worse)
    assert (found.floor, found.ceiling) == (-8, -3)
    assert (found.weight, found.log_odds) == pytest.approx((0.8, 1.5), rel=0.1)
    # What comparisons say nothing of does not count.
    assert fit_opinion(true, rng.permutation(least), better, worse).weight < 0.02


def test_the_weight_of_likelihoods_is_that_of_logistic_regression():
    optimise = pytest.importorskip("scipy.optimize")
    rng = np.random.default_rng(0)
    gaps = rng.normal(size=(3000, 2)) * [1.0, 4.0]
    drawn = rng.uniform(size=3000) < 1 / (1 + np.exp(-gaps @ [1.5, 0.6]))
    gaps = np.where(drawn[:, None], gaps, -gaps)

    def loss(weights: np.ndarray) -> float:
        return np.logaddexp(0, -gaps @ weights).sum()

    best = optimise.minimize(loss, [1.0, 0.0]).x
    found, log_odds = fit_weight(gaps[:, 0], gaps[:, 1])
    assert (found, log_odds) == pytest.approx((best[1] / best[0], best[0]), rel=1e-3)
    assert found == pytest.approx(0.4, abs=0.05)
    # Likelihoods that speak against the labels do not count, and pairs told apart stay finite.
    alone = optimise.minimize_scalar(lambda a: np.logaddexp(0, -gaps[:, 0] * a).sum()).x
    assert fit_weight(gaps[:, 0], -gaps[:, 1]) == pytest.approx((0.0, alone), rel=1e-3)
    assert np.isfinite(fit_weight(np.zeros(50), np.ones(50))).all()
