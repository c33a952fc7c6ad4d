"""Disks that fill, refuse or may not be written: one line, nothing lost, and on when mended."""

from __future__ import annotations

import errno
import os
import random
import resource
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

from fourstage.errors import MachineError
from fourstage.training.checkpoint import Checkpoints
from pipeline_support import call, environment, left_behind, recipe_file, weights, whole_run
from training_support import BufferSource, TinySource, same_bits, tiny_model, trainer, weights_of


def _mount(*arguments: str | Path) -> bool:
    try:
        return not subprocess.run(["mount", *map(str, arguments)], capture_output=True).returncode
    except FileNotFoundError:
        return False


@pytest.fixture
def disk(tmp_path) -> Generator[Path]:
    """A disk of 2 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if not _mount("-t", "tmpfs", "-o", "size=2m", "tmpfs", folder):
        pytest.skip("a disk may not be mounted here")
    yield folder
    # Lazily: a test that failed may still hold one of its files.
    subprocess.run(["umount", "-l", folder], check=True)


class Calls(TinySource):
    """Does something before one of its batches."""

    def __init__(self, at: int, what):
        super().__init__()
        self.at, self.what = at, what

    def batch(self, step):
        if step == self.at:
            self.what()
        return super().batch(step)


def _undisturbed(folder: Path) -> dict:
    model = tiny_model()
    trainer(folder, model, checkpoint_every=2, keep_checkpoints=9).train()
    return weights_of(model)


def _goes_on(folder: Path, undisturbed: dict) -> bool:
    model = tiny_model()
    trainer(folder, model, checkpoint_every=2, keep_checkpoints=9).train()
    return same_bits(weights_of(model), undisturbed)


def test_a_disk_that_fills_up_ends_the_run_in_a_line_and_it_goes_on_with_space(tmp_path, disk):
    filler, folder = disk / "filler", disk / "run"

    def fill() -> None:
        with open(filler, "wb", buffering=0) as file:
            while True:
                try:
                    file.write(b"\0" * 4096)
                except OSError as error:
                    assert error.errno == errno.ENOSPC
                    return

    source = Calls(6, fill)
    with pytest.raises(MachineError, match=r"cannot write .*: the disk is full; free some") as end:
        trainer(folder, source=source, checkpoint_every=2, keep_checkpoints=9).train()
    assert "\n" not in str(end.value)
    # That of step 6 was perhaps still being written.
    assert Checkpoints(folder / "checkpoints").newest().step in (4, 6)
    filler.unlink()
    assert _goes_on(folder, _undisturbed(tmp_path / "undisturbed"))
    assert left_behind(folder) == []


def test_a_limit_on_the_size_of_files_is_told_and_leaves_the_checkpoint_before(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))

    folder = tmp_path / "run"
    try:
        with pytest.raises(MachineError, match=r"larger than files may be here; .*\(ulimit -f\)"):
            trainer(folder, source=Calls(6, limit), checkpoint_every=2, keep_checkpoints=9).train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert Checkpoints(folder / "checkpoints").newest().step in (4, 6)
    assert _goes_on(folder, _undisturbed(tmp_path / "undisturbed"))


@pytest.mark.timeout(300)
def test_a_disk_that_is_full_at_random_writes_never_costs_more_than_a_new_start(
    tmp_path, tmp_path_factory
):
    """Each process finds no space at one of its writes, ends with one line, and is run again."""
    seed = random.randrange(10**6)
    print(f"seed of the writes: {seed}")
    done = subprocess.run(
        [sys.executable, "-c", "import faults_support as f, sys; f.fill_at_writes(*sys.argv[1:])",
         recipe_file(tmp_path), tmp_path / "run", str(seed)],
        cwd=Path(__file__).parent, env=environment(), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
    assert int(done.stdout.split()[-1]) >= 5
    run = tmp_path / "run"
    assert weights(run) == weights(whole_run(tmp_path_factory.getbasetemp()))
    assert left_behind(run) == []


def test_a_run_on_a_read_only_disk_is_refused_in_one_line(tmp_path, disk, capsys):
    (disk / "run").mkdir()
    assert _mount("-o", "remount,ro", disk)
    for folder in (disk / "run", disk / "new"):
        code, _, told = call(capsys, "run", recipe_file(tmp_path), "--out", folder)
        assert code == 1 and told.startswith(f"error: cannot write {folder}")
        assert "the disk is read-only; make it writable, or write elsewhere" in told
        assert told.count("\n") == 1


@pytest.mark.parametrize("code", [errno.EROFS, errno.EIO, errno.EDQUOT, errno.ESTALE, errno.EPERM])
def test_whatever_a_disk_refuses_a_checkpoint_with_is_one_line(tmp_path, monkeypatch, code):
    def refuses(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fourstage.training.checkpoint.save_tensors", refuses)
    with pytest.raises(MachineError, match=r"cannot write .*checkpoints.*run again") as caught:
        trainer(tmp_path, source=BufferSource()).train()
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "checkpoints").exists() or not list((tmp_path / "checkpoints").iterdir())
