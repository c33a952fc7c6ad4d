"""Sums are right, never twice, and none of those held out is ever trained on."""

from __future__ import annotations

import json
import re

import pytest

from fourstage.data.shapes import recognise
from fourstage.errors import InputError
from fourstage.rewards.arithmetic import SHAPES, Shape, main, sums
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


@pytest.mark.parametrize(
    "arguments", [["--operations", "/"], ["--terms", "1"], ["--largest", "0"], ["--operations", ""]]
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
