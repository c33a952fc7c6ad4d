"""Whole runs of reinforcement learning whose rewards, models or answers are broken.

Each ends in one clear line before anything is spent, or goes on with what is broken counted.
"""

from __future__ import annotations

import itertools
import json
import math
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fourstage.errors import InputError
from fourstage.interchange.weights import read_tensors, write_weights
from fourstage.rewards.code import running
from fourstage.stages.drawing import Drawer
from pipeline_support import go, results, rows, tiny, whole_run
from test_rewards_code import contained, processes_in
from test_rewards_service import Server, lengths

FEW = ("rl.steps=2", "rl.sample_every=0", "evaluation.prompts=4", "evaluation.instructions=2")
LEARNERS = {
    "ppo": (),
    "grpo": ("rl.algorithm=grpo", "rl.group=4"),
    "raft": ("rl.algorithm=raft", "rl.distil.n=4"),
    "online": ("rl.algorithm=dpo", "rl.online=true", "rl.group=4"),
}


@pytest.fixture
def run(tmp_path_factory, tmp_path) -> Path:
    return shutil.copytree(whole_run(tmp_path_factory.getbasetemp()), tmp_path / "run")


def spoilt(run: Path, change) -> str:
    """The run's reward model with another head, as a model from outside."""
    folder = shutil.copytree(run / "reward" / "model", run.with_name("spoilt"))
    file = folder / "model.safetensors"
    weights = read_tensors(file)
    weights["score.weight"] = change(weights["score.weight"])
    write_weights(file, weights)
    return f"rl.reward_model={folder}"


def is_finite(run: Path) -> bool:
    told = [row for row in rows(run, "rl") if "loss" in row]
    policy = read_tensors(run / "rl" / "model" / "model.safetensors")
    return all(row["loss"] is not None and math.isfinite(row["loss"]) for row in told) and all(
        bool(weight.isfinite().all()) for weight in policy.values()
    )


@pytest.mark.parametrize("learner", ["grpo", "raft", "online"])
@pytest.mark.parametrize("fill", [math.nan, math.inf])
def test_a_reward_model_that_gives_no_number_is_counted_and_penalised(run, learner, fill):
    broken = spoilt(run, lambda weight: torch.full_like(weight, fill))
    said = go(tiny(*LEARNERS[learner], *FEW, "rl.missing_end_penalty=-1", broken), run)
    assert is_finite(run)
    first = rows(run, "rl")[0]
    # What has no end has its penalty, and is asked for no score.
    assert first["reward"] == -1.0
    assert first.get("reward_faults/model", 0) + 16 * (1 - first["finished"]) == pytest.approx(16)
    faulty = first.get("reward_faults/model", 0) > 0
    assert faulty == any("responses have no number: model: the number is" in line for line in said)


@pytest.mark.parametrize("learner", LEARNERS)
def test_a_reward_model_that_says_the_same_of_all_moves_numbers_to_nowhere(run, learner):
    constant = spoilt(run, torch.zeros_like)
    go(tiny(*LEARNERS[learner], *FEW, constant), run)
    assert is_finite(run)
    assert results(run, "rl")["metrics"]["proxy_high_share"] == 0.0


def test_a_service_that_fails_in_every_way_costs_its_answers_alone(run):
    faults = [
        (200, b"<html>"), (500, b"broken"), (200, b'{"rewards": []}'), (200, b"late"),
        (200, b'{"rewards": [NaN' + b", NaN" * 15 + b"]}"), (200, b'{"rewards": "none"}'),
    ]  # fmt: skip
    asked = itertools.count()

    def answer(body: dict[str, Any], number: int) -> tuple[int, bytes]:
        if len(body["items"]) != 16:
            return lengths(body)
        status, said = faults[next(asked) % len(faults)]
        if said == b"late":
            time.sleep(1.0)
        return status, said

    with Server(answer) as server:
        part = f"{{kind: http, url: '{server.url}', seconds: 0.5, retries: 0}}"
        said = go(tiny(*LEARNERS["grpo"], *FEW, f"rl.rewards=[{part}]", "rl.steps=12"), run)
    found = [row["reward_faults/http"] for row in rows(run, "rl") if "iteration" in row]
    assert found and set(found) == {16.0} and is_finite(run)
    for words in ("no JSON", "status 500", "0 rewards for 16", "no answer within", "is nan"):
        assert any(words in line for line in said), words
    (alarm,) = [index for index, line in enumerate(said) if "faults of http" in line]
    # An iteration is of two steps here: the third is drawn for step 5, and told in its row.
    assert said[alarm].startswith("rl: alarm at step 5: 16 faults")
    assert alarm < next(index for index, line in enumerate(said) if "rl  step 12/12" in line)


def always(monkeypatch, change) -> None:
    """Every response that is drawn becomes another one."""
    real = Drawer._response

    def response(self, prompt, drawn, logprobs):
        return change(self.tokenizer, real(self, prompt, drawn, logprobs))

    monkeypatch.setattr(Drawer, "_response", response)


def _empty(tokenizer, response):
    return replace(
        response,
        tokens=(tokenizer.end_of_turn,), text="", finished=True, logprobs=response.logprobs[:1],
    )  # fmt: skip


def _endless(tokenizer, response):
    (token,) = tokenizer.encode("a")[:1]
    tokens = tuple(token if each in tokenizer.stop_ids else each for each in response.tokens)
    return replace(response, tokens=tokens, finished=False)


@pytest.mark.parametrize("change", [_empty, _endless])
@pytest.mark.parametrize("learner", LEARNERS)
def test_answers_that_are_all_empty_or_all_endless_end_no_run(run, monkeypatch, learner, change):
    always(monkeypatch, change)
    go(tiny(*LEARNERS[learner], *FEW), run)
    told = [row for row in rows(run, "rl") if "iteration" in row]
    assert {row["finished"] for row in told} == {float(change is _empty)}
    assert is_finite(run)


def test_prompts_that_leave_no_room_for_an_answer_are_one_line(run):
    with pytest.raises(InputError, match=r"nothing in it fits model\.context=192") as no:
        go(tiny(*FEW, "rl.max_new_tokens=189"), run)
    assert "\n" not in str(no.value)


ATTACKS = (
    "import os\nos.fork()",
    "x = bytearray(10**10)",
    "open({elsewhere!r}, 'w').write('x')",
    "import socket\nsocket.create_connection(('127.0.0.1', 9))",
    "while True: print('x' * 10_000)",
    "import time\ntime.sleep(60)",
    "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)",
)


@contained
def test_answers_that_attack_the_machine_cost_themselves_alone(run, tmp_path, monkeypatch):
    elsewhere, scratch = tmp_path / "escaped", tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(running.tempfile, "tempdir", str(scratch))
    codes = itertools.cycle(each.format(elsewhere=str(elsewhere)) for each in ATTACKS)

    def attack(tokenizer, response):
        return replace(response, text=f"```python\n{next(codes)}\nassert False\n```")

    prompts = tmp_path / "prompts.jsonl"
    told = [{"prompt": f"Add {n} and 1.", "tests": "assert add(1, 2) == 3"} for n in range(40)]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in told))
    always(monkeypatch, attack)
    limits = "seconds: 0.7, cpu_seconds: 1, memory: 400M, output: 100k, workers: 2"
    part = f"rl.rewards=[{{kind: code, tests: tests, {limits}}}]"
    said = go(tiny(*LEARNERS["grpo"], *FEW, "rl.steps=2", f"data.prompts={prompts}", part), run)
    (first,) = [row for row in rows(run, "rl") if row.get("step") == 1]
    assert first["reward/code"] == 0.0 and first["reward_faults/code"] > 0
    assert any("ran longer than 0.7 s" in line for line in said)
    assert not elsewhere.exists() and not processes_in(scratch) and not any(scratch.iterdir())
