"""One process's failure ends all, with its reason; and the job goes on from the last checkpoint."""

from __future__ import annotations

import subprocess
import sys

import pytest
from safetensors.torch import load_file

from parallel_support import TESTS, environment, together

LAYOUTS = [{"replicate": 2}, {"shard": 2}, {"tensor": 2}]


def _faulty(tmp_path, layout: dict, fault: str) -> list[dict]:
    work = "parallel_cases:training_with_a_fault"
    return together(2, work, str(tmp_path / "run"), layout, fault, timeout=60)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_the_process_that_fails_tells_why_and_no_other_waits(tmp_path, layout):
    other, failing = _faulty(tmp_path, layout, "exception")
    assert failing["told"] == "error: process 1 of 2: the sensor is on fire\n"
    assert (failing["code"], other["code"], other["told"]) == (1, 1, "")
    assert other["steps"][-1] == 6


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_process_that_is_killed_is_missed_in_words(tmp_path, layout):
    other, killed = _faulty(tmp_path, layout, "killed")
    assert killed is None and other["code"] == 1
    assert other["told"].startswith("error: process 0 of 2: another process ended without a word")
    assert other["told"].count("\n") == 1


def test_a_disk_that_is_full_for_one_process_leaves_the_checkpoint_before(tmp_path):
    other, failing = _faulty(tmp_path, {"shard": 2}, "full disk")
    assert (other["code"], failing["code"], other["told"]) == (1, 1, "")
    assert failing["told"].startswith("error: process 1 of 2: cannot write ")
    assert "the disk is full" in failing["told"] and failing["told"].count("\n") == 1
    assert other["steps"][-1] == 6
    assert [path.name for path in (tmp_path / "run" / "checkpoints").glob(".*")] == []


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_killed_process_is_started_again_and_the_run_ends_with_the_same_bits(tmp_path, layout):
    for name, port in (("killed", "--max-restarts=1"), ("undisturbed", "--max-restarts=0")):
        program = f"import sys, parallel_cases as c; c.under_torchrun(sys.argv[1], {layout})"
        (tmp_path / "worker.py").write_text(program)
        count = "1" if name == "undisturbed" else "0"
        done = subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
             port, str(tmp_path / "worker.py"), str(tmp_path / name)],
            cwd=TESTS, capture_output=True, text=True, timeout=120,
            env=environment() | {"PYTHONPATH": str(TESTS), "UNDISTURBED": count},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        assert ("going on from step 6 of 12" in done.stdout) == (name == "killed")
    ends = [load_file(tmp_path / name / "final.safetensors") for name in ("killed", "undisturbed")]
    assert all((ends[0][key] == ends[1][key]).all() for key in ends[1]) and ends[0]
