"""The recipe `sums`: right answers alone teach what text and demonstrations get wrong."""

from __future__ import annotations

import json

import pytest

from fourstage.recipe import load
from fourstage.rewards.arithmetic import main, unordered
from pipeline_support import go, results

FILES = ("text", "demonstrations", "prompts")


def terms(text: str) -> set[str]:
    """The sums of some lines, whatever the order of their terms."""
    return {unordered(line.partition("=")[0]) for line in text.split("\n")}


@pytest.mark.slow
def test_rl_goes_from_below_half_to_above_nine_tenths_on_sums_that_nothing_showed(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    main(["sums/prompts.jsonl", "--course"])
    run = tmp_path / "run"
    go(load("sums"), run)
    found = results(run, "rl")
    metrics, intervals = found["metrics"], found["intervals"]
    assert intervals["accuracy_sft"][1] < 0.5 and intervals["sampled_accuracy_sft"][1] < 0.5
    assert metrics["accuracy"] > 0.9 and metrics["sampled_accuracy"] > 0.9

    rows = {
        name: [json.loads(line) for line in (tmp_path / "sums" / f"{name}.jsonl").open()]
        for name in FILES
    }
    tasks = [json.loads(line) for line in (run / "data/rl/validation.jsonl").open()]
    trained = [json.loads(line) for line in (run / "data/rl/train.jsonl").open()]
    held_out = {unordered(task["prompt"][:-1]) for task in tasks}
    seen = set().union(*(terms(row["text"]) for row in rows["text"]))
    seen |= {unordered(row["prompt"][:-1]) for row in rows["demonstrations"]}
    seen |= {unordered(task["prompt"][:-1]) for task in trained}
    assert len(held_out) > 150 and held_out.isdisjoint(seen)
