"""The rows of reward models: read from a person's files, written as stores, drawn in batches."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from evaluation_support import tokenizer
from fourstage.data.comparing import (
    Elements,
    RewardSource,
    elements_of,
    label_scales,
    reward_source,
)
from fourstage.data.encoding import Pair
from fourstage.data.fromfiles import read_part
from fourstage.data.judgements import Judged, Ranking, Stepped
from fourstage.data.judging import Judging, kinds_for
from fourstage.data.reading import find_files
from fourstage.data.rewards import from_rows, write_rewards
from fourstage.data.shapes import Malformed, recognise
from fourstage.data.shapes.row import Unteachable
from fourstage.data.sources import PairSource
from fourstage.data.store import Store
from fourstage.errors import InputError
from fourstage.recipe.schema import Recipe, Reward


def section(**told) -> Reward:
    return Reward(**told)


def read(folder: Path, rows: list[dict], told: Reward, mapping: dict | None = None):
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    raw, _ = find_files([str(path)], "data.preferences")
    kinds, judging = kinds_for(told), Judging(told)
    return read_part(raw, kinds, "preferences", 0.1, mapping, judging=judging)


def elements(folder: Path, rows: list[dict], told: Reward, mapping: dict | None = None):
    found = read(folder, rows, told, mapping)
    return from_rows(found.train, found.validation, told, 1000)


def store_of(folder: Path, train: list, heads: tuple[str, ...] = ()) -> Store:
    from fourstage.data.rewards import RewardRows

    counts = Counter()
    write_rewards(folder, RewardRows(train, train[:2]), tokenizer(), 128, heads, counts)
    return Store.open(folder / "train")


RANKED = [
    {"prompt": f"Ask {n}", "responses": ["one", "two", "three"], "scores": [1, 3, 3]}
    for n in range(20)
]


def test_a_ranking_stays_whole_with_its_ties(tmp_path):
    for ties, kept in (("drop", True), ("davidson", True)):
        found = elements(tmp_path, RANKED, section(ties=ties))
        first = found.train[0]
        assert isinstance(first, Ranking) == kept
        assert first.places == (3, 1, 1) and first.qualities == (1.0, 3.0, 3.0)
    # Held out they are comparisons, which need an order.
    assert {(pair.chosen, pair.rejected) for pair in found.pairs} == {
        ("two", "one"),
        ("three", "one"),
    }


def test_rankings_of_two_are_plain_pairs_unless_ties_count(tmp_path):
    rows = [{**row, "responses": ["one", "two"], "scores": [1, 2]} for row in RANKED]
    assert all(isinstance(each, Pair) for each in elements(tmp_path, rows, section()).train)
    tied = [{**row, "scores": [n % 2, 0]} for n, row in enumerate(rows)]
    dropped = elements(tmp_path, tied, section())
    assert len(dropped.train) + len(dropped.held_out) == 10
    modelled = elements(tmp_path, tied, section(ties="rao_kupper"))
    assert len(modelled.train) + len(modelled.held_out) == 20


def test_a_ranking_without_an_order_teaches_nothing_when_ties_are_dropped(tmp_path):
    rows = [{**row, "scores": [2, 2, 2]} if n % 2 else row for n, row in enumerate(RANKED)]
    dropped = elements(tmp_path, rows, section())
    modelled = elements(tmp_path, rows, section(ties="davidson"))
    assert len(dropped.train) < len(modelled.train)


def test_an_answer_that_two_people_judge_is_no_repeat(tmp_path):
    rows = [
        {"prompt": f"Ask {n // 3}", "completion": "Yes.", "label": n % 3 > 0} for n in range(30)
    ]
    found = read(tmp_path, rows, section(objective="binary"))
    # Of three labels of an answer two are the same.
    assert found.counts["duplicate"] == 10


def test_scores_are_read_under_the_names_of_the_heads(tmp_path):
    rows = [
        {"prompt": f"Ask {n}", "response": "Yes.", "helpfulness": n % 5, "Brevity": 4 - n % 5}
        for n in range(20)
    ]
    told = section(objective="regression", heads={"helpfulness": 1.0, "brevity": 0.5})
    found = elements(tmp_path, rows, told).train
    assert isinstance(found[0], Judged)
    assert all(each.labels["helpfulness"] + each.labels["brevity"] == 4 for each in found)


@pytest.mark.parametrize(
    ("told", "row", "words"),
    [
        (section(objective="binary"), {"prompt": "a", "completion": "b"}, "no label"),
        (section(objective="regression"), {"prompt": "a", "completion": "b"}, "no score"),
        (
            section(objective="process"),
            {"prompt": "a", "completion": "b"},
            "needs prompt . completions . labels",
        ),
        (
            section(heads={"a": 1.0, "b": 1.0}),
            {"prompt": "a", "chosen": "b", "rejected": "c"},
            "does not say which",
        ),
        (
            section(heads={"a": 1.0, "b": 1.0}),
            {"prompt": "a", "chosen": "b", "rejected": "c", "head": "d"},
            "about 'd'; reward.heads are a, b",
        ),
    ],
)
def test_rows_that_do_not_say_what_is_asked_are_refused(tmp_path, told, row, words):
    with pytest.raises(InputError, match=words):
        read(tmp_path, [row, {**row, "prompt": "z"}], told)


def test_a_category_is_what_held_out_pairs_are_counted_under(tmp_path):
    rows = [
        {"prompt": f"Ask {n}", "chosen": "b", "rejected": "c", "subset": ("chat", "code")[n % 2]}
        for n in range(40)
    ]
    found = elements(tmp_path, rows, section(), {"category": "subset"})
    assert {pair.task.kind for pair in found.train} == {"chat", "code"}


def test_steps_are_known_in_the_forms_that_people_write_them_in():
    trl = {"prompt": "Add.", "completions": ["One.", "Two."], "labels": [True, False]}
    rated = {"question": "Add.", "steps": ["One.", "Two.", "Three."], "ratings": [1, 0, -1]}
    shepherd = {
        "input": "Add. Step 1: One. ки\nStep 2: Two. ки",
        "label": "Add. Step 1: One. +\nStep 2: Two. -",
        "task": "GSM8K",
    }
    for row, steps, labels in (
        (trl, ("One.", "Two."), (1.0, 0.0)),
        (rated, ("One.", "Two.", "Three."), (1.0, 1.0, 0.0)),
        (shepherd, ("Step 1: One.", "Step 2: Two."), (1.0, 0.0)),
    ):
        found = recognise(row, "f:1")
        assert (found.kind, found.responses, found.scores) == ("stepwise", steps, labels)
        assert found.messages == [{"role": "user", "content": "Add."}]


@pytest.mark.parametrize(
    ("columns", "fault", "words"),
    [
        ({"labels": [True]}, Malformed, "holds 1 labels for 2 steps"),
        ({"labels": [True, "perhaps"]}, Malformed, "true or false for each step"),
        ({"labels": [0.5, 7]}, Malformed, "true or false for each step"),
        ({"completions": ["One.", " "], "labels": [True, True]}, Unteachable, "a step is empty"),
    ],
)
def test_malformed_steps_say_what_is_wrong(columns, fault, words):
    row = {"prompt": "Add.", "completions": ["One.", "Two."], **columns}
    with pytest.raises(fault, match=words):
        recognise(row, "f:1")


def task(number: int):
    from fourstage.tasks import Task

    return Task(f"Ask {number}", "answer", {})


def rankings(count: int = 7) -> list[Ranking]:
    return [
        Ranking(task(n), tuple("abcde"[: 2 + n % 3]), tuple(range(1, 3 + n % 3)), head="xy"[n % 2])
        for n in range(count)
    ]


def test_every_ranking_comes_once_an_epoch_with_all_its_answers(tmp_path):
    store = store_of(tmp_path, rankings(), ("x", "y"))
    assert elements_of(store) == 7
    source = reward_source(store, 2, 0, ("x", "y"))
    assert source.steps_per_epoch == 4
    sizes, seen = Counter(), []
    for step in range(7):
        batch = source.batch(step)
        assert batch.cells <= source.most_cells
        for group in batch.groups():
            sizes[len(group)] += 1
            seen.append(batch.tokens[: batch.lengths[0]].tolist())
            assert batch.documents["places"][group].tolist() == list(range(1, len(group) + 1))
            assert len(set(batch.documents["heads"][group].tolist())) == 1
    # Two epochs in seven steps of two.
    assert sizes == {2: 6, 3: 4, 4: 4}


def test_a_ranking_without_scores_has_no_margins_whatever_stands_beside_it(tmp_path):
    told = Ranking(task(0), ("a", "b", "c"), (1, 2, 3), (5.0, 2.0, 1.0))
    store = store_of(tmp_path, [told, *rankings(3)])
    batch = RewardSource(store, 4, 0).batch(0)
    by_group = [batch.documents["qualities"][group].tolist() for group in batch.groups()]
    assert sorted(by_group, key=sum)[-1] == [5.0, 2.0, 1.0]
    assert all(set(found) == {0.0} for found in sorted(by_group, key=sum)[:-1])


def test_a_batch_is_a_function_of_seed_and_step(tmp_path):
    store = store_of(tmp_path, rankings())
    first, second = RewardSource(store, 2, 0), RewardSource(store, 2, 0)
    late = second.batch(5)
    for step in range(5):
        first.batch(step)
    assert torch.equal(first.batch(5).tokens, late.tokens)
    other = torch.cat([RewardSource(store, 2, 1).batch(step).tokens for step in range(3)])
    same = torch.cat([RewardSource(store, 2, 0).batch(step).tokens for step in range(3)])
    assert other.shape != same.shape or not torch.equal(other, same)


def test_labels_are_standardised_by_those_of_training_and_may_be_missing(tmp_path):
    told = [{"x": float(n), "y": 2.0 * n} for n in range(6)]
    del told[2]["y"]
    judged = [Judged(task(n), "Yes.", labels) for n, labels in enumerate(told)]
    store = store_of(tmp_path, judged)
    scales = label_scales(store, ("x", "y"))
    assert scales["x"] == pytest.approx((2.5, np.std(range(6))))
    batch = reward_source(store, 6, 0, ("x", "y"), scales).batch(0)
    labels, weights = batch.documents["labels"], batch.documents["label_weights"]
    assert labels.shape == (6, 2) and weights.sum() == 11
    assert float(labels[:, 0].mean()) == pytest.approx(0, abs=1e-6)
    assert float(labels[:, 0].std(correction=0)) == pytest.approx(1)
    with pytest.raises(InputError, match="no row has a score for 'z'"):
        label_scales(store, ("x", "z"))


def test_steps_are_judged_at_their_cells(tmp_path):
    steps = [Stepped(task(n), ("One.", "Two it is.", "Three."), (1.0, 0.5, 0.0)) for n in range(4)]
    batch = reward_source(store_of(tmp_path, steps), 2, 0).batch(0)
    weights, labels = batch.streams["step_weights"], batch.streams["step_labels"]
    assert weights.sum() == 6
    assert labels[weights != 0].tolist() == [1.0, 0.5, 0.0] * 2
    assert (weights[batch.last_cells] == 1).all()


def test_plain_pairs_are_drawn_as_before(tmp_path):
    pairs = [Pair(task(n), "Yes.", "No.", margin=float(n)) for n in range(5)]
    store = store_of(tmp_path, pairs)
    source = reward_source(store, 2, 0)
    assert isinstance(source, PairSource) and elements_of(store) == 5
    assert source.batch(0).documents["margins"].shape == (4,)
    assert len(Elements(store).rows(0)) == 2
    with pytest.raises(InputError, match="do not say which head"):
        reward_source(store, 2, 0, ("x", "y"))


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"objective": "binary", "margin": 1.0}, "margin=1.0 is of objective=bradley_terry"),
        ({"objective": "regression", "centring": 0.1}, "centring=0.1 is of comparisons"),
        ({"caution": 2}, "caution=2 is of several models"),
        ({"objective": "process", "heads": {"a": 1, "b": 1}}, "heads are of whole answers"),
        ({"heads": {"a": 1}}, "names 'a' alone"),
        ({"heads": {"a": 0, "b": 0}}, "heads all weigh 0"),
        ({"heads": {"A b": 1, "b": 1}}, "write small letters"),
        ({"label_smoothing": 0.5}, "less than 0.5"),
    ],
)
def test_a_recipe_that_contradicts_itself_is_refused(told, words):
    with pytest.raises(ValueError, match=words):
        Recipe(reward=told)
