"""Sums are right, never twice, and none of those held out is ever trained on."""

from __future__ import annotations

import json
import re

import pytest

from fourstage.data.shapes import recognise
from fourstage.errors import InputError
from fourstage.recipe import load
from fourstage.rewards.arithmetic import (
    SHAPES,
    Shape,
    demonstrations,
    documents,
    main,
    sums,
    unordered,
    without_carry,
)
from fourstage.rewards.contracts import Item
from fourstage.rewards.maths import Numbers


def test_every_sum_is_right_and_none_comes_twice() -> None:
    rows = list(sums(0, "train", 3000))
    assert len({row["prompt"] for row in rows}) == 3000
    seen: dict[str, set[int]] = {"+": set(), "-": set(), "*": set()}
    for row in rows:
        assert re.fullmatch(r"\d+([-+*]\d+)(?:[-+*]\d+){0,3}=", row["prompt"])
        assert str(eval(row["prompt"][:-1])) == row["ground_truth"]
        (operation,) = set(re.sub(r"[\d=]", "", row["prompt"]))
        seen[operation].add(len(re.findall(r"\d+", row["prompt"])))
    assert seen == {"+": {2, 3, 4, 5}, "-": {2, 3, 4, 5}, "*": {2, 3}}


def test_held_out_sums_are_none_of_the_training_ones_of_any_seed() -> None:
    held_out = {row["prompt"] for seed in range(3) for row in sums(seed, "held_out", 300)}
    for seed in range(10):
        assert held_out.isdisjoint(row["prompt"] for row in sums(seed, "train", 2000))


def test_terms_in_another_order_are_the_same_sum() -> None:
    small = [Shape("+", 2, 2, 30)]
    asked = [unordered(row["prompt"][:-1]) for row in sums(0, "train", 400, small)]
    held_out = {unordered(row["prompt"][:-1]) for row in sums(1, "held_out", 30, small)}
    assert len(set(asked)) == 400 and held_out.isdisjoint(asked)
    assert unordered("17+5") == unordered("5+17") and unordered("17-5") != unordered("5-17")


def test_text_and_demonstrations_hold_no_sum_that_is_asked() -> None:
    small = [Shape("+", 2, 2, 99)]
    shown = {row["prompt"][:-1] for row in demonstrations(0, 500, small)}
    lines = [line for row in documents(0, 500, small) for line in row["text"].split("\n")]
    assert len(lines) == 4000
    shown |= {line.partition("=")[0] for line in lines}
    shown = {unordered(each) for each in shown}
    for seed in range(3):
        asked = list(sums(seed, "train", 1500, small, unlike_shown=True))
        asked += sums(seed, "held_out", 300, small)
        assert shown.isdisjoint(unordered(row["prompt"][:-1]) for row in asked)


def test_a_careful_hand_is_right_and_a_careless_one_forgets_to_carry() -> None:
    small = [Shape("+", 2, 2, 99)]
    for row in demonstrations(0, 200, small):
        assert str(eval(row["prompt"][:-1])) == row["completion"]
    written = list(demonstrations(0, 1000, small, careless=0.7))
    told = [(row["prompt"][:-1], int(row["completion"])) for row in written]
    wrong = [(asked, said) for asked, said in told if said != eval(asked)]
    assert all(said == without_carry(asked) for asked, said in wrong)
    carried = [asked for asked, _ in told if without_carry(asked) != eval(asked)]
    assert 0.6 < len(wrong) / len(carried) < 0.8


@pytest.mark.parametrize(
    ("expression", "result"), [("17+5", 12), ("17+2", 19), ("95+15", 0), ("9+9+9", 7), ("0+0", 0)]
)
def test_without_carry(expression, result) -> None:
    assert without_carry(expression) == result


def test_sums_are_a_function_of_the_seed() -> None:
    first = list(sums(1, "train", 50))
    assert first == list(sums(1, "train", 50)) == list(sums(1, "train", 80))[:50]
    assert first != list(sums(2, "train", 50))


def test_more_sums_than_there_are_is_told() -> None:
    with pytest.raises(InputError, match="hardly more than"):
        list(sums(0, "train", 500, [Shape("+", 2, 2, 9)]))


def test_the_command_writes_files_that_are_prompts_with_ground_truth(tmp_path, capsys) -> None:
    train, held_out = tmp_path / "sums.jsonl", tmp_path / "held.jsonl"
    main([str(train), "--count", "40", "--held-out", str(held_out), "--held-out-count", "9",
          "--operations", "+", "--terms", "2", "--largest", "50"])  # fmt: skip
    assert "40 sums" in capsys.readouterr().out
    for path, count in ((train, 40), (held_out, 9)):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        assert len(rows) == count
        for row in rows:
            found = recognise(row, "f:1")
            assert (found.kind, found.answer) == ("prompt", row["ground_truth"])
            item = Item(row["prompt"], f"#### {row['ground_truth']}", truth=found.answer)
            assert Numbers().score([item])[0].score == 1.0


def test_the_command_writes_text_and_demonstrations_that_training_reads(tmp_path, capsys) -> None:
    asked, text, shown = (tmp_path / f"{name}.jsonl" for name in ("asked", "text", "shown"))
    main([str(asked), "--count", "50", "--operations", "+", "--terms", "2", "--largest", "50",
          "--text", str(text), "--text-count", "20", "--demonstrations", str(shown),
          "--demonstrations-count", "30", "--careless", "0.5"])  # fmt: skip
    assert "20 documents" in capsys.readouterr().out
    for path, count, kind in ((text, 20, "text"), (shown, 30, "dialogue"), (asked, 50, "prompt")):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        assert len(rows) == count
        assert {recognise(row, "f:1").kind for row in rows} == {kind}


def test_the_course_is_what_the_shipped_recipe_reads(tmp_path) -> None:
    data = load("sums").data
    folder = tmp_path / "sums"
    main([str(folder / "prompts.jsonl"), "--course", "--text-count", "100"])
    named = {data.pretrain, data.sft, data.prompts}
    assert {f"sums/{path.name}" for path in folder.iterdir()} == named
    rows = [json.loads(line) for line in (folder / "demonstrations.jsonl").read_text().splitlines()]
    right = sum(str(eval(row["prompt"][:-1])) == row["completion"] for row in rows) / len(rows)
    assert right < 0.5


@pytest.mark.parametrize(
    "arguments",
    [
        ["--operations", "/"],
        ["--terms", "1"],
        ["--largest", "0"],
        ["--operations", ""],
        ["--careless", "0.5"],
        ["--operations", "+", "--careless", "2"],
    ],
)
def test_shapes_that_are_none_are_told(arguments, tmp_path) -> None:
    with pytest.raises(SystemExit, match="error: "):
        main([str(tmp_path / "x"), *arguments])
    assert not (tmp_path / "x").exists()


def test_the_usual_shapes_have_small_numbers() -> None:
    largest = {shape.operation: shape.largest for shape in SHAPES}
    for row in sums(5, "train", 1000):
        operation = next(each for each in largest if each in row["prompt"])
        assert max(map(int, re.findall(r"\d+", row["prompt"]))) <= largest[operation]
