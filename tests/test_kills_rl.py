"""Reinforcement learning by every kind of algorithm, killed often, ends with the same bytes."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fourstage.recipe import load
from pipeline_support import (
    die_before_write,
    environment,
    go,
    left_behind,
    results,
    rows,
    tiny,
    weights,
    whole_run,
)

# Enough steps that kills find something to strike.
LONGER = ("rl.steps=8", "rl.checkpoint_every=2")
FAMILIES = {
    "a critic": ["rl.algorithm=ppo", "rl.kl_target=1", "rl.epochs=2", "rl.value_warmup=1"],
    "groups": ["rl.algorithm=grpo", "rl.group=4", "rl.correction=tis"],
    "groups drawn again": [
        "rl.algorithm=dapo", "rl.group=4", "rl.dynamic_sampling=true", "rl.overlong=penalty",
    ],
    "whole responses": ["rl.algorithm=rloo", "rl.group=2", "rl.reference_reset=2"],
    "rewards to go": ["rl.algorithm=reinforce++", "rl.pretraining_mix=0.5"],
    "no reward model": [
        "rl.algorithm=dr-grpo", "rl.group=4", "rl.rewards=[{kind: length, most: 16, buffer: 12}]",
    ],
    "an adapter": ["rl.algorithm=gspo", "rl.group=4", "rl.adapter.rank=2"],
    "comparisons": ["rl.algorithm=dpo", "rl.preference.pairs_per_step=8"],
    "own comparisons": ["rl.algorithm=ipo", "rl.online=true"],
    "the best of its own": ["rl.algorithm=raft", "rl.distil.n=4"],
    "the best of the chat model's": ["rl.algorithm=bon", "rl.distil.n=4"],
}  # fmt: skip
QUICK = ("a critic", "groups drawn again", "comparisons", "the best of its own")


def killed_often(folder: str, names: str, kills: str, seed: str) -> None:
    """Does each family's run in `folder/<name>` in forks that are killed; prints how often.

    Half of the kills strike before a change of a file, half at a moment after some row.
    """
    # Imported once, so that a fork costs nothing.
    import torch._dynamo  # noqa: F401

    import fourstage.pipeline.opening  # noqa: F401

    draw, struck = random.Random(int(seed)), {}
    for name in json.loads(names):
        run = Path(folder) / name
        struck[name] = 0
        for number in range(int(kills) + 1):
            is_last, by_write = number == int(kills), number % 2 == 1
            process = os.fork()
            if not process:
                if by_write and not is_last:
                    die_before_write(draw.randrange(10, 60), str(run))
                go(load(str(run) + ".yaml"), run)
                os._exit(0)
            moment, wait = draw.randrange(6), draw.uniform(0, 0.2)
            draw.random()
            if not by_write and not is_last:
                _kill_after(process, run / "rl" / "metrics.jsonl", moment, wait)
            code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
            struck[name] += code == -signal.SIGKILL
            assert code in (0, -signal.SIGKILL) and (code == 0 or not is_last), (name, code)
    print(json.dumps(struck))


def _kill_after(process: int, metrics: Path, count: int, wait: float) -> None:
    while not (metrics.exists() and metrics.read_bytes().count(b"\n") >= count):
        # Still a child of ours: ended, it is a zombie that can be looked at.
        if os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return
        time.sleep(0.002)
    time.sleep(wait)
    os.kill(process, signal.SIGKILL)


def kill(folder: Path, whole: Path, names: list[str], kills: int) -> dict[str, int]:
    """Does the families' runs undisturbed and killed; how often kills struck each."""
    for name in names:
        recipe = tiny(*LONGER, *FAMILIES[name])
        for end in ("undisturbed", "killed"):
            run = folder / end / name
            shutil.copytree(whole, run)
            shutil.rmtree(run / "rl")
            Path(f"{run}.yaml").write_text(recipe.to_yaml())
        go(recipe, folder / "undisturbed" / name)
    seed = os.environ.get("FOURSTAGE_KILL_SEED", str(random.randrange(10**6)))
    print(f"FOURSTAGE_KILL_SEED={seed}")
    program = "import sys, test_kills_rl as t; t.killed_often(*sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", program, folder / "killed", json.dumps(names), str(kills), seed],
        cwd=Path(__file__).parent, env=environment(), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-8000:]
    return json.loads(done.stdout.splitlines()[-1])


def assert_same(folder: Path, name: str) -> None:
    one, other = folder / "killed" / name, folder / "undisturbed" / name
    assert weights(one) == weights(other)
    assert _timeless(one) == _timeless(other)
    assert results(one, "rl")["metrics"] == results(other, "rl")["metrics"]
    assert left_behind(one) == []


def _timeless(run: Path) -> list[dict]:
    return [{k: v for k, v in row.items() if k != "tokens_per_second"} for row in rows(run, "rl")]


def test_a_killed_rl_stage_ends_with_the_same_bytes(tmp_path, tmp_path_factory):
    whole = whole_run(tmp_path_factory.getbasetemp())
    struck = kill(tmp_path, whole, list(QUICK), 3)
    assert all(struck.values()), struck
    for name in QUICK:
        assert_same(tmp_path, name)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_rl_that_is_killed_fifty_times_ends_with_the_same_bytes(tmp_path, tmp_path_factory):
    whole = whole_run(tmp_path_factory.getbasetemp())
    struck = kill(tmp_path, whole, list(FAMILIES), 6)
    print(struck)
    assert sum(struck.values()) >= 50, struck
    for name in FAMILIES:
        assert_same(tmp_path, name)
