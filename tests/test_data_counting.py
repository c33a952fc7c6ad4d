"""Rows counted before they are prepared are about those that preparation finds."""

from __future__ import annotations

import json

import pytest

from fourstage.data import counting
from fourstage.data.counting import with_counts
from fourstage.data.fromfiles import read_part
from fourstage.data.reading import find_files
from fourstage.planning import DataFacts, resolve
from fourstage.planning.plan import make_plan
from fourstage.planning.speed import Speed
from fourstage.recipe import recipe_from

SPEED = Speed("a core", 4e10, 5e10, 4000.0, 0.003, "measured")


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def demonstrations(number: int) -> list[dict]:
    return [{"prompt": f"Number {n}?", "completion": f"It is {n}."} for n in range(number)]


def comparisons(number: int) -> list[dict]:
    return [
        {"prompt": f"Number {n}?", "chosen": f"It is {n}.", "rejected": "No."}
        for n in range(number)
    ]


def recipe_of(rl=None, **data):
    return recipe_from({"data": {"pretrain": "world", **data}, "rl": rl or {}})


def counted(recipe, facts=None):
    return with_counts(recipe, facts or DataFacts())


@pytest.mark.parametrize("number", [8, 300, 3000])
def test_counted_rows_are_about_those_that_preparation_keeps(number, tmp_path):
    path = written(tmp_path / "sft.jsonl", demonstrations(number) + demonstrations(number // 2))
    found, said = counted(recipe_of(sft=path))
    rows = read_part(find_files(path, "data.sft")[0], ("dialogue",), "sft", 0.02)
    count = found.counted["sft"]
    assert count.train + count.held_out == pytest.approx(number, abs=1)
    assert count.train == pytest.approx(len(rows.train), rel=0.1, abs=1)
    said_bytes = [len("".join(m["content"] for m in row.messages)) for row in rows.train]
    assert count.text_bytes == pytest.approx(sum(said_bytes) / len(said_bytes), rel=0.1)
    assert count.turns == 2
    total = number + number // 2
    assert said == [f"data.sft: {total:,} rows counted in sft.jsonl, {number:,} of them different."]


@pytest.mark.parametrize("kind", ["list", "csv", "lines"])
def test_lists_tables_and_lines_of_prompts_are_counted(kind, tmp_path):
    asked = [f"What is {n} and one?" for n in range(40)]
    path = tmp_path / {"list": "a.json", "csv": "a.csv", "lines": "a.txt"}[kind]
    text = {
        "list": json.dumps([{"prompt": each} for each in asked]),
        "csv": "\n".join(["prompt", *asked]),
        "lines": "\n".join(asked),
    }
    path.write_text(text[kind])
    found, said = counted(recipe_of(prompts=str(path)))
    assert said == [f"data.prompts: 40 rows counted in {path.name}."]
    count = found.counted["prompts"]
    assert count.train + count.held_out == 40 and count.turns == 1


def test_a_ranking_is_one_row_of_a_reward_model_and_several_comparisons_of_dpo(tmp_path):
    rows = [
        {"prompt": f"{n}?", "responses": ["a", "b", "c"], "scores": [3, 2, 1]} for n in range(100)
    ]
    path = written(tmp_path / "ranked.jsonl", rows)
    found, _ = counted(recipe_of(preferences=path))
    assert found.comparisons == 90 and found.preferences == 270


def test_steps_are_planned_of_the_rows_that_there_are(tmp_path):
    sft = written(tmp_path / "sft.jsonl", demonstrations(400))
    pairs = written(tmp_path / "pairs.jsonl", comparisons(320))
    recipe = recipe_of(sft=sft, preferences=pairs)
    facts, _ = counted(recipe)
    usual, known = (make_plan(recipe, each, SPEED) for each in (DataFacts(), facts))
    assert known.recipe.reward.steps == 18 < usual.recipe.reward.steps
    assert known.stages["sft"].tokens < 0.05 * usual.stages["sft"].tokens
    assert known.stages["reward"].seconds < 0.1 * usual.stages["reward"].seconds
    dpo = recipe_of({"algorithm": "dpo"}, sft=sft, preferences=pairs)
    facts, said = counted(dpo)
    assert resolve(dpo, facts)[0].rl.steps == 18
    assert [line.split(":")[0] for line in said] == ["data.sft", "data.preferences"]


def test_what_is_known_of_prepared_data_is_not_counted_again(tmp_path):
    recipe = recipe_of(
        sft=written(tmp_path / "sft.jsonl", demonstrations(400)),
        preferences=written(tmp_path / "pairs.jsonl", comparisons(320)),
    )
    prepared = DataFacts(sft_tokens=5000, comparisons=111, vocab_size=860)
    facts, _ = counted(recipe, prepared)
    assert facts.comparisons == 111
    assert resolve(recipe, facts)[0].sft.tokens == resolve(recipe, prepared)[0].sft.tokens


def test_the_hub_is_not_asked_and_what_is_missing_or_large_keeps_the_usual_number(
    tmp_path, monkeypatch
):
    def refuse(*args):
        raise AssertionError("nothing is fetched for a plan")

    monkeypatch.setattr("fourstage.data.reading.hub.dataset_files", refuse)
    monkeypatch.setattr(counting, "_MOST_BYTES", 1000)
    large = written(tmp_path / "large.jsonl", demonstrations(100))
    gone = str(tmp_path / "gone.jsonl")
    facts, said = counted(recipe_of(sft="hf:some/rows", preferences=large, prompts=gone))
    assert not facts.counted and facts.comparisons is None
    for line, words in zip(
        said,
        (
            "data.sft: 10,000 demonstrations taken for granted, since rows of the hub",
            "data.preferences: 20,000 comparisons taken for granted, since more than",
            "gone.jsonl",
        ),
        strict=True,
    ):
        assert words in line


def test_rows_that_nothing_is_learned_from_are_no_count(tmp_path):
    path = written(tmp_path / "odd.jsonl", [{"colour": "red"}, {"colour": "blue"}])
    facts, said = counted(recipe_of(sft=path))
    assert not facts.counted and "none of its rows is known" in said[0]


def test_of_many_rows_some_are_looked_at_and_all_are_counted(tmp_path, monkeypatch):
    looked = []
    recognise = counting.recognise
    monkeypatch.setattr(
        counting, "recognise", lambda *args: looked.append(args[0]) or recognise(*args)
    )
    path = written(tmp_path / "sft.jsonl", demonstrations(5000))
    found, _ = counted(recipe_of(sft=path))
    assert found.counted["sft"].train == 4900
    assert len(looked) <= 1000
    numbers = [int(row["prompt"][7:-1]) for row in looked]
    assert min(numbers) < 100 and max(numbers) > 4900
