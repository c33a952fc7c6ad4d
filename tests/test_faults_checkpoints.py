"""What checkpoints withstand beside a kill: lost parts, clocks, other formats, long runs."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

from fourstage.errors import InputError
from fourstage.files import read_json
from fourstage.training.checkpoint import FORMAT, Checkpoints, Snapshot
from parallel_support import together
from training_support import BufferSource, same_bits, tiny_model, trainer, weights_of


def snapshot(step: int) -> Snapshot:
    return Snapshot(step, {"model": {"weight": torch.full((64,), float(step))}, "optimiser": {}})


def saved(folder: Path, *steps: int, keep: int = 2) -> tuple[Checkpoints, list[str]]:
    lines: list[str] = []
    checkpoints = Checkpoints(folder, keep, say=lines.append)
    for step in steps:
        checkpoints.save(snapshot(step))
    return checkpoints, lines


def test_the_newest_is_that_of_the_last_step_whatever_the_clock_said(tmp_path):
    checkpoints, lines = saved(tmp_path, 1, 2, 3, keep=3)
    for step, time in ((1, 3e9), (2, 2e9), (3, 1e9)):
        for path in [checkpoints.path(step), *checkpoints.path(step).iterdir()]:
            os.utime(path, (time, time))
    assert checkpoints.newest().step == 3 and lines == []
    checkpoints.keep = 1
    checkpoints.save(snapshot(4))
    assert checkpoints.steps() == [4]


@pytest.mark.parametrize("written", [0, FORMAT + 1, "draft"])
def test_a_checkpoint_of_another_format_is_refused_in_words(tmp_path, written):
    trainer(tmp_path, steps=4).train()
    (*_, newest) = sorted((tmp_path / "checkpoints").glob("step-*"))
    manifest = read_json(newest / "manifest.json")
    assert manifest["format"] == FORMAT
    (newest / "manifest.json").write_text(json.dumps(manifest | {"format": written}))
    with pytest.raises(
        InputError, match=rf"format {written}, .* reads format {FORMAT}: "
    ) as caught:
        trainer(tmp_path, steps=8).train()
    assert "\n" not in str(caught.value) and str(newest) in str(caught.value)
    assert newest.is_dir(), "nothing is lost"


def test_a_checkpoint_from_before_formats_were_counted_is_gone_on_from(tmp_path):
    checkpoints, lines = saved(tmp_path, 1)
    manifest = read_json(checkpoints.path(1) / "manifest.json")
    del manifest["format"]
    (checkpoints.path(1) / "manifest.json").write_text(json.dumps(manifest))
    assert checkpoints.newest().step == 1 and lines == []


def test_a_kill_while_old_checkpoints_are_removed_leaves_none_that_looks_damaged(tmp_path):
    saved(tmp_path, 1, 2)
    child = os.fork()
    if not child:
        removed = shutil.rmtree

        def half(path: Path, **options: bool) -> None:
            if Path(path).exists():
                (Path(path) / "state.json").unlink()
                os.kill(os.getpid(), signal.SIGKILL)
            removed(path, **options)

        shutil.rmtree = half
        Checkpoints(tmp_path, keep=1).drop_after(1)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    checkpoints, lines = saved(tmp_path)
    assert checkpoints.newest().step == 1 and lines == []
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_many_checkpoints_leave_no_file_open_and_nothing_aside(tmp_path):
    def train(steps: int) -> None:
        trainer(tmp_path, source=BufferSource(), steps=steps, checkpoint_every=1).train()

    train(2)
    before = len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))
    for steps in range(4, 60, 8):
        train(steps)
    assert (len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))) == before
    assert [path.name for path in (tmp_path / "checkpoints").iterdir() if path.name[0] == "."] == []


def lose_a_part(newest: Path) -> None:
    (newest / "model.00001.safetensors").unlink()


def lose_the_places(newest: Path) -> None:
    (newest / "parts.00001.json").unlink()


def flip_a_byte(newest: Path) -> None:
    path = newest / "optimiser.00001.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


DAMAGES = {damage.__name__: damage for damage in (lose_a_part, lose_the_places, flip_a_byte)}


def test_a_damaged_part_of_a_split_checkpoint_is_passed_over_by_all(tmp_path):
    layout = {"shard": 2, "settings": {"checkpoint_every": 3}}
    asked = str(tmp_path), dict.fromkeys(DAMAGES, layout)
    (whole, _) = together(2, "parallel_cases:to_the_end", *asked)
    for name, damage in DAMAGES.items():
        (*_, before, newest) = sorted((tmp_path / name / "checkpoints").glob("step-*"))
        assert (before.name, newest.name) == ("step-00000006", "step-00000008")
        damage(newest)
    for found in together(2, "parallel_cases:to_the_end", *asked):
        for name in DAMAGES:
            assert found[name]["weights"] == whole[name]["weights"]
            assert found[name]["losses"] == whole[name]["losses"][6:], "steps 7 and 8 alone"


@pytest.mark.parametrize("number", [2, 11])
def test_weights_go_on_bit_for_bit_when_the_newest_checkpoint_is_lost(tmp_path, number):
    straight, resumed = tiny_model(), tiny_model()
    keywords = {"checkpoint_every": 3, "keep_checkpoints": 9, "ema": 0.9}
    trainer(tmp_path / "a", straight, BufferSource(), **keywords).train()
    trainer(tmp_path / "b", tiny_model(), BufferSource(), **keywords).train()
    for folder in sorted((tmp_path / "b" / "checkpoints").glob("step-*"))[-number:]:
        (folder / "state.json").write_text("")
    lines: list[str] = []
    trainer(tmp_path / "b", resumed, BufferSource(), say=lines.append, **keywords).train()
    assert same_bits(weights_of(straight), weights_of(resumed))
    words = "going on from step 6" if number == 2 else "starting from the beginning"
    assert sum("damaged" in line for line in lines) == min(number, 4)
    assert sum(words in line for line in lines) >= 1
