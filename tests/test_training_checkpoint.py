import errno
import json
import os
import threading

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

from fourstage.errors import MachineError
from fourstage.training import checkpoint, tensorfiles
from fourstage.training.checkpoint import Checkpoints, Snapshot
from fourstage.training.tensorfiles import rejoin, separate


def snapshot(step):
    tensors = {"model": {"weight": torch.full((64,), float(step))}, "optimiser": {}}
    source = {"rollouts": {"ids": torch.arange(step)}, "kl": 0.1 * step}
    return Snapshot(step, tensors, {"counts": {"step": step}}, source)


@pytest.fixture
def lines():
    return []


@pytest.fixture
def checkpoints(tmp_path, lines):
    return Checkpoints(tmp_path / "checkpoints", keep=2, say=lines.append)


def filled(checkpoints, *steps):
    for step in steps:
        checkpoints.save(snapshot(step))


def test_a_checkpoint_comes_back_whole(checkpoints, lines):
    filled(checkpoints, 7)
    found = checkpoints.newest()
    assert found.step == 7 and found.state == {"counts": {"step": 7}}
    assert torch.equal(found.tensors["model"]["weight"], torch.full((64,), 7.0))
    assert torch.equal(found.source["rollouts"]["ids"], torch.arange(7))
    assert found.source["kl"] == 0.1 * 7 and lines == []


def test_what_changes_while_a_thread_writes_is_not_in_the_checkpoint(checkpoints, monkeypatch):
    taken, changed, write = snapshot(7), threading.Event(), checkpoint._write_tensors
    monkeypatch.setattr(
        checkpoint, "_write_tensors", lambda *given: (changed.wait(20), write(*given))
    )
    checkpoints.save_soon(taken)
    taken.state["counts"]["step"] = 8
    taken.source["kl"] = taken.tensors["model"]["weight"][:] = 0.0
    changed.set()
    found = checkpoints.newest()
    assert found.state == {"counts": {"step": 7}} and found.source["kl"] == 0.1 * 7
    assert torch.equal(found.tensors["model"]["weight"], torch.full((64,), 7.0))


def test_the_newest_and_the_best_are_kept(checkpoints):
    for step in (1, 2, 3, 4, 5):
        checkpoints.save(snapshot(step), best=2)
    assert checkpoints.steps() == [2, 4, 5]


def test_there_is_none_at_the_start(checkpoints, lines):
    assert checkpoints.newest() is None and lines == []


def cut_short(path):
    file = path / "model.safetensors"
    os.truncate(file, file.stat().st_size - 5)


def flip_a_byte(path):
    file = path / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)


def lose_a_file(path):
    (path / "source.safetensors").unlink()


def lose_the_manifest(path):
    (path / "manifest.json").unlink()


def empty_the_manifest(path):
    (path / "manifest.json").write_text("")


def change_the_state(path):
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps(state))


def lose_everything(path):
    for file in path.iterdir():
        file.unlink()


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (cut_short, "model.safetensors has"),
        (flip_a_byte, "model.safetensors has changed"),
        (lose_a_file, "source.safetensors is missing"),
        (lose_the_manifest, "manifest.json is missing"),
        (empty_the_manifest, "manifest.json is unreadable"),
        (change_the_state, "state.json has"),
        (lose_everything, "manifest.json is missing"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before_and_that_is_said(
    checkpoints, lines, damage, word
):
    filled(checkpoints, 1, 2)
    damage(checkpoints.path(2))
    assert checkpoints.newest().step == 1
    assert len(lines) == 1 and word in lines[0]
    assert "step-00000002" in lines[0] and "going on from step 1" in lines[0]


def test_when_all_are_damaged_training_starts_over_and_that_is_said(checkpoints, lines):
    filled(checkpoints, 1, 2)
    cut_short(checkpoints.path(1))
    lose_a_file(checkpoints.path(2))
    assert checkpoints.newest() is None
    assert len(lines) == 2 and "starting from the beginning" in lines[1]


def test_damaged_checkpoints_do_not_push_out_intact_ones(checkpoints):
    filled(checkpoints, 1, 2)
    cut_short(checkpoints.path(2))
    assert checkpoints.newest().step == 1
    filled(checkpoints, 3)
    assert checkpoints.steps() == [1, 3]


def test_a_damaged_checkpoint_is_replaced_when_its_step_is_reached_again(checkpoints):
    filled(checkpoints, 1, 2)
    cut_short(checkpoints.path(2))
    checkpoints.newest()
    filled(checkpoints, 2)
    assert checkpoints.newest().step == 2 and checkpoints.steps() == [1, 2]


def test_what_a_kill_while_saving_left_aside_is_cleared(checkpoints, lines):
    filled(checkpoints, 1)
    aside = checkpoints.folder / ".step-00000002.partial"
    aside.mkdir()
    (aside / "model.safetensors").write_bytes(b"half")
    assert checkpoints.newest().step == 1 and not aside.exists() and lines == []


def full_disk_in_safetensors(*_):
    raise SafetensorError("I/O error: No space left on device (os error 28)")


def full_disk_in_python(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("module", "name", "fault"),
    [
        (tensorfiles, "save_file", full_disk_in_safetensors),
        (checkpoint, "write_json", full_disk_in_python),
    ],
)
def test_a_full_disk_is_one_clear_line_and_leaves_the_checkpoint_before(
    checkpoints, monkeypatch, module, name, fault
):
    filled(checkpoints, 1)
    with monkeypatch.context() as patch:
        patch.setattr(module, name, fault)
        with pytest.raises(MachineError, match="the disk is full") as caught:
            filled(checkpoints, 2)
    assert "\n" not in str(caught.value)
    assert checkpoints.newest().step == 1
    assert [path.name for path in checkpoints.folder.iterdir()] == ["step-00000001"]


def test_a_nested_state_survives_without_pickle():
    tree = {
        "tensors": [torch.eye(2), {"flags": torch.tensor([True, False])}],
        "array": np.arange(4, dtype=np.int32),
        "numbers": {"third": 1 / 3, "none": None, "big": 2**60, "text": "é\u2028", "no": False},
        "numpy": np.float64(0.1),
    }
    numbers, tensors = separate(tree)
    back = rejoin(json.loads(json.dumps(numbers)), tensors)
    assert torch.equal(back["tensors"][0], torch.eye(2))
    assert back["tensors"][1]["flags"].tolist() == [True, False]
    assert back["array"].dtype == np.int32 and back["array"].tolist() == [0, 1, 2, 3]
    assert back["numbers"] == tree["numbers"] and back["numpy"] == 0.1


def test_a_state_that_json_cannot_hold_is_refused_by_name():
    with pytest.raises(TypeError, match=r"state\.inner\.0: set"):
        separate({"inner": [{1, 2}]})
    with pytest.raises(TypeError, match="must be strings"):
        separate({"inner": {1: 2}})
