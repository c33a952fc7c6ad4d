"""datatrove's executors prepare what one machine would, and Slurm is asked for what was meant."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fourstage.cli.app import main
from fourstage.errors import InputError
from test_data_corpus import big_pile, contents

pytest.importorskip("datatrove", reason="needs the extra cluster-data")

STAGES = ("list", "parts", "judge", "encode", "assemble")
# Stand-ins for Slurm: what is submitted is kept, to be run when all of it is there.
SBATCH = """#!/bin/bash
number=$(($(ls "$SUBMITTED" | wc -l) / 2 + 1))
printf '%s\\n' "${@:1:$#-1}" > "$SUBMITTED/$number.options"
cp "${@: -1}" "$SUBMITTED/$number.script"
echo "Submitted batch job $number"
"""
SRUN = '#!/bin/bash\nshift 3\nexec "$@"\n'
SCONTROL = "#!/bin/bash\necho localhost\n"


@pytest.fixture(scope="module")
def pile(tmp_path_factory) -> Path:
    return big_pile(tmp_path_factory.mktemp("datatrove") / "pile", 18)


def told(pile: Path, out: Path, *more: str) -> list[str]:
    text = [f"data.pretrain={pile}", "tokenizer.vocab_size=400", "data.workers=2"]
    return ["prepare", "own-text", *text, "--only", "pretrain", "--out", str(out), *more]


def command(*arguments: str) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 0


def refused(arguments: list[str], capfd) -> str:
    """What is said when a command is refused."""
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    return capfd.readouterr().err


def prepared(run: Path) -> dict[str, bytes]:
    """What preparation left in a run."""
    return contents(run / "data") | {f"t/{k}": v for k, v in contents(run / "tokenizer").items()}


@pytest.fixture(scope="module")
def on_one_machine(pile, tmp_path_factory) -> dict[str, bytes]:
    run = tmp_path_factory.mktemp("one") / "run"
    command(*told(pile, run))
    return prepared(run)


LOCALLY = ("--executor", "local-datatrove", "--tasks", "3")


@pytest.fixture(scope="module")
def by_datatrove(pile, tmp_path_factory) -> Path:
    """A run that the local executor prepared."""
    run = tmp_path_factory.mktemp("local") / "run"
    command(*told(pile, run, *LOCALLY))
    return run


def test_the_local_executor_prepares_the_bytes_of_one_machine(by_datatrove, on_one_machine) -> None:
    assert prepared(by_datatrove) == on_one_machine
    assert len([name for name in on_one_machine if name.startswith("corpus/parts/0")]) >= 2


def test_what_an_executor_prepared_is_kept_by_one_machine(pile, by_datatrove, capfd) -> None:
    before = {path: path.stat().st_mtime_ns for path in (by_datatrove / "data").rglob("*.bin")}
    command(*told(pile, by_datatrove))
    after = {path: path.stat().st_mtime_ns for path in (by_datatrove / "data").rglob("*.bin")}
    assert before and after == before and "documents" not in capfd.readouterr().out


def test_data_that_were_removed_are_missed(pile, tmp_path, by_datatrove, capfd) -> None:
    run = tmp_path / "run"
    shutil.copytree(by_datatrove / "cluster", run / "cluster")
    assert f"remove {run / 'cluster'}" in refused(told(pile, run, *LOCALLY), capfd)


def test_what_is_wrong_with_the_data_is_told_as_on_one_machine(tmp_path, capfd) -> None:
    (tmp_path / "a.txt").write_text("tiny")
    arguments = told(tmp_path / "a.txt", tmp_path / "run", "--executor", "local-datatrove")
    assert "error: data.pretrain=" in refused(arguments, capfd)


@pytest.fixture
def slurm(tmp_path, monkeypatch) -> Path:
    """Where a stand-in for Slurm keeps what was submitted to it."""
    for name, script in {"sbatch": SBATCH, "srun": SRUN, "scontrol": SCONTROL}.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(script)
        path.chmod(0o755)
    submitted = tmp_path / "submitted"
    submitted.mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("SUBMITTED", str(submitted))
    return submitted


ON_SLURM = ("--executor", "slurm", "--tasks", "2", "--partition", "cpu", "--time", "02:00:00")
MORE = ("--cpus", "2", "--memory", "6", "--judge-memory", "20", "--sbatch", "account=lab")


def scripts_of(submitted: Path) -> list[tuple[str, str]]:
    """(options, script) of the jobs in the order of submission, but for datatrove's statistics."""
    numbers = sorted(int(path.stem) for path in submitted.glob("*.script"))
    found = [
        ((submitted / f"{n}.options").read_text(), (submitted / f"{n}.script").read_text())
        for n in numbers
    ]
    return [(options, script) for options, script in found if "launch_pickled_pipeline" in script]


def test_slurm_gets_five_jobs_that_wait_for_each_other(pile, tmp_path, slurm, capfd) -> None:
    command(*told(pile, tmp_path / "run", *ON_SLURM, *MORE))
    jobs = scripts_of(slurm)
    names = [re.search("job-name=fourstage-(.*)", script).group(1) for _, script in jobs]
    assert tuple(names) == STAGES
    ids = dict(re.findall(r"(\w+) (\d+)", capfd.readouterr().out.split("submitted: ")[1]))
    for before, (options, _) in zip(STAGES, jobs[1:], strict=False):
        assert f"--dependency=afterok:{ids[before]}" in options
    for (_, script), is_shared in zip(jobs, (1, 1, 0, 1, 0), strict=True):
        assert f"--array=0-{1 if is_shared else 0}\n" in script
        assert f"--mem-per-cpu={3 if is_shared else 10}G" in script
        assert ("RAYON_NUM_THREADS=1" in script) == bool(is_shared)
        asked = ("--partition=cpu", "--time=02:00:00", "--cpus-per-task=2", "--account=lab")
        assert all(option in script for option in asked)


def test_a_dry_run_shows_the_very_scripts_and_submits_nothing(pile, tmp_path, slurm, capfd) -> None:
    run = tmp_path / "run"
    command(*told(pile, run, *ON_SLURM, *MORE, "--dry-run"))
    shown = capfd.readouterr().out
    assert not list(slurm.iterdir()) and not (run / "data").exists()
    command(*told(pile, run, *ON_SLURM, *MORE))
    assert all(script.strip() in shown for _, script in scripts_of(slurm))


@pytest.mark.slow
def test_the_submitted_scripts_prepare_the_bytes_of_one_machine(
    pile, tmp_path, slurm, on_one_machine
) -> None:
    command(*told(pile, tmp_path / "run", *ON_SLURM))
    for number, (_, script) in enumerate(scripts_of(slurm)):
        (tmp_path / "job.sh").write_text(script)
        for task in range(2 if number in (0, 1, 3) else 1):
            inside = {"SLURM_ARRAY_TASK_ID": str(task), "SLURM_NODELIST": "localhost"}
            subprocess.run(
                ["bash", str(tmp_path / "job.sh")],
                env=os.environ | inside,
                cwd=tmp_path,
                check=True,
                capture_output=True,
            )
    assert prepared(tmp_path / "run") == on_one_machine


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (["--executor", "slurmm"], "did you mean 'slurm'?"),
        (["--executor", "slurm"], "--executor slurm needs --partition NAME"),
        (["--executor", "slurm", "--partition", "cpu", "--time", "1h"], "--time 1h: write"),
        (["--tasks", "4"], "write --executor local-datatrove, slurm or ray"),
    ],
)
def test_options_that_do_not_fit_are_refused(pile, tmp_path, capfd, options, fault) -> None:
    assert fault in refused(told(pile, tmp_path / "run", *options), capfd)
    assert not (tmp_path / "run").exists()


def test_without_ray_its_package_is_named(pile, tmp_path, monkeypatch) -> None:
    from fourstage.data.cluster import Job, Resources, launch
    from fourstage.pipeline import prepare
    from fourstage.recipe import load

    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setattr("fourstage.data.cluster.launching.find_spec", lambda name: None)
    job = Job.of(load("own-text", [f"data.pretrain={pile}"]), tmp_path, prepare, None, False)
    with pytest.raises(InputError, match="pip install ray"):
        launch("ray", job, Resources(2))
