"""The scripts for clusters, with the cluster's commands replaced by ones that write down."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples" / "cluster"
STEP = """#!/bin/bash
echo "$0 $@" >> "$CALLS"
trap 'kill "$pause"; exit 1' TERM
sleep 20 & pause=$!
echo $$ > "$CALLS.step"
wait
"""
SAYS = '#!/bin/bash\necho "$0 $@" >> "$CALLS"\n'


@pytest.fixture
def cluster(tmp_path):
    """The environment of a job on two hosts, and what its commands were called with."""
    commands = {
        "srun": STEP,
        "scancel": SAYS + 'kill -TERM "$(cat "$CALLS.step")"\n',
        "scontrol": SAYS + '[ "$1" = show ] && printf "host-a\\nhost-b\\n"\nexit 0\n',
        "torchrun": SAYS,
    }
    for name, text in commands.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    return os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "CALLS": str(tmp_path / "calls"),
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "host-[a-b]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_GPUS_ON_NODE": "8",
    }


def _calls(cluster) -> str:
    return Path(cluster["CALLS"]).read_text()


def test_ahead_of_the_time_limit_the_run_is_asked_to_save_and_the_job_is_queued_again(cluster):
    job = subprocess.Popen(
        ["bash", EXAMPLES / "slurm.sbatch", "medium", "runs/a", "parallel.shard=16"], env=cluster
    )
    while not Path(cluster["CALLS"] + ".step").exists():
        assert job.poll() is None
        time.sleep(0.01)
    time.sleep(0.1)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(10) == 0
    calls = _calls(cluster)
    assert "scancel --signal=TERM 7" in calls and "scontrol requeue 7" in calls
    assert "--nnodes=2 --nproc-per-node=8" in calls and "--rdzv-endpoint=host-a:29500" in calls
    assert "-m fourstage run medium parallel.shard=16 --out runs/a" in calls


def test_a_run_that_fails_ends_its_job(cluster, tmp_path):
    (tmp_path / "srun").write_text("#!/bin/bash\nexit 2\n")
    job = subprocess.run(["bash", EXAMPLES / "slurm.sbatch", "medium", "runs/a"], env=cluster)
    assert job.returncode == 2 and "requeue" not in _calls(cluster)


def test_hosts_without_a_scheduler_meet_at_the_first(cluster):
    script = EXAMPLES / "hosts.sh"
    subprocess.run([script, "host-a", "2", "medium", "runs/a", "seed=1"], env=cluster, check=True)
    assert "--rdzv-endpoint=host-a:29500 --rdzv-id=a -m fourstage run medium seed=1 --out" in (
        _calls(cluster)
    )
