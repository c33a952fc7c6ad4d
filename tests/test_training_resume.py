import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from fourstage.errors import InputError, Interrupted
from fourstage.model.config import ModelConfig
from fourstage.model.transformer import Transformer
from fourstage.training.checkpoint import Checkpoints
from fourstage.training.metrics import Rows, read_rows
from training_support import (
    BufferSource,
    KillsItself,
    TinySource,
    same_bits,
    tiny_model,
    train_in_a_process,
    trainer,
    weights_of,
)

TESTS = Path(__file__).parent


def test_a_finished_run_starts_nothing_again(tmp_path):
    first, again = tiny_model(), tiny_model(seed=5)
    result = trainer(tmp_path, first).train()
    source = TinySource()
    repeated = trainer(tmp_path, again, source).train()
    assert source.asked == []
    assert same_bits(weights_of(first), weights_of(again))
    assert (repeated.steps, repeated.tokens, repeated.flops) == (
        result.steps,
        result.tokens,
        result.flops,
    )


@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize("stop", [1, 4, 7, 11])
def test_an_interrupted_run_ends_with_the_same_bits(tmp_path, stop, ema):
    straight, resumed = tiny_model(), tiny_model()
    keywords = {"ema": ema, "log_every": 3, "checkpoint_every": 5}
    trainer(tmp_path / "a", straight, BufferSource(), **keywords).train()

    class Stops(BufferSource):
        def batch(self, step):
            if step == stop:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().batch(step)

    with pytest.raises(Interrupted):
        trainer(tmp_path / "b", tiny_model(), Stops(), **keywords).train()
    source = BufferSource()
    trainer(tmp_path / "b", resumed, source, **keywords).train()
    assert source.asked[:1] == ([stop + 1] if stop < 11 else [])
    assert same_bits(weights_of(straight), weights_of(resumed))
    rows = [read_rows(tmp_path / name / "metrics.jsonl") for name in "ab"]
    for row in [*rows[0], *rows[1]]:
        del row["tokens_per_second"]
    assert rows[0] == rows[1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_at_the_next_step_boundary_and_says_how_to_go_on(tmp_path, number):
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match="after step 4 of 12 and saved; run the same command"):
        trainer(tmp_path, source=KillsItself(3, number)).train()
    assert Checkpoints(tmp_path / "checkpoints").steps() == [4]
    assert signal.getsignal(number) is before


def test_checkpoints_by_time_do_not_change_the_numbers(tmp_path):
    often, never = tiny_model(), tiny_model()
    trainer(tmp_path / "a", often, BufferSource(), checkpoint_seconds=1e-6, ema=0.9).train()
    trainer(tmp_path / "b", never, BufferSource(), ema=0.9).train()
    assert same_bits(weights_of(often), weights_of(never))
    assert len(Checkpoints(tmp_path / "a" / "checkpoints").steps()) == 2


def test_validation_and_samples_do_not_change_the_numbers(tmp_path):
    import torch

    watched, plain = tiny_model(), tiny_model()
    trainer(
        tmp_path / "a", watched, BufferSource(), ema=0.9, validate_every=2, sample_every=3,
        validate=lambda: {"validation_loss": float(torch.rand(()))},
        sample=lambda step: [{"text": str(float(torch.rand(())))}],
    ).train()  # fmt: skip
    trainer(tmp_path / "b", plain, BufferSource(), ema=0.9).train()
    assert same_bits(weights_of(watched), weights_of(plain))


def test_the_best_validation_is_kept_and_training_ends_with_the_last_step(tmp_path):
    losses = iter([5.0, 3.0, 4.0, 3.5, 6.0, 3.0])
    result = trainer(
        tmp_path, validate_every=2, keep_checkpoints=1,
        validate=lambda: {"validation_loss": next(losses)},
    ).train()  # fmt: skip
    assert (result.best.step, result.best.value) == (4, 3.0)
    assert Checkpoints(tmp_path / "checkpoints").steps() == [4, 12]
    rows = {row["step"]: row for row in read_rows(tmp_path / "metrics.jsonl")}
    assert rows[4]["validation_loss"] == 3.0 and rows[6]["validation_loss"] == 4.0


def test_rows_hold_what_others_rely_on(tmp_path):
    trainer(tmp_path, source=BufferSource()).train()
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 4, 6, 8, 10, 12]
    for row in rows:
        names = {"step", "loss", "learning_rate", "tokens", "tokens_per_second", "gradient_norm"}
        assert names | {"nll", "coefficient", "skipped_steps"} <= row.keys()
        assert row["loss"] > 0 and row["tokens_per_second"] > 0
    assert rows[-1]["loss"] < rows[0]["loss"]


def test_rows_after_the_checkpoint_and_torn_lines_are_cut_back(tmp_path):
    rows = Rows(tmp_path / "metrics.jsonl")
    for step in range(1, 6):
        rows.append({"step": step, "text": "line\u2028end\x85"})
    with open(rows.path, "a") as file:
        file.write('{"step": 3, "lo')
    rows.cut_back(3)
    rows.append({"step": 4, "loss": float("nan")})
    assert [row["step"] for row in read_rows(rows.path)] == [1, 2, 3, 4]
    assert read_rows(rows.path)[-1]["loss"] is None


def test_samples_come_before_the_first_step_and_as_it_learns(tmp_path):
    trainer(tmp_path, sample_every=6, sample=lambda step: [{"prompt": "a"}]).train()
    rows = read_rows(tmp_path / "samples.jsonl")
    assert rows == [{"step": step, "prompt": "a"} for step in (0, 6, 12)]


def test_seconds_are_summed_over_resumptions(tmp_path):
    with pytest.raises(Interrupted):
        trainer(tmp_path, source=KillsItself(3), clock=None).train()
    first = trainer(tmp_path).clock.seconds
    time.sleep(0.2)
    result = trainer(tmp_path, source=TinySource(pause=0.05)).train()
    assert result.seconds >= first + 8 * 0.05


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    trainer(tmp_path).train()
    other = Transformer(
        ModelConfig(vocab_size=40, width=32, layers=1, heads=2, kv_heads=1, mlp_width=48, context=8)
    )
    with pytest.raises(InputError, match="a checkpoint of another model"):
        trainer(tmp_path, other).train()


def test_resume_after_kill_is_bit_exact(tmp_path):
    seed = int(os.environ.get("FOURSTAGE_KILL_SEED", random.SystemRandom().randrange(2**32)))
    kills = int(os.environ.get("FOURSTAGE_KILLS", "4"))
    print(f"FOURSTAGE_KILL_SEED={seed}")
    draw = random.Random(seed)
    steps, pause = 60, 0.02
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    train_in_a_process(str(undisturbed), steps, 0.0)
    program = (
        f"import sys; sys.path.insert(0, {str(TESTS)!r}); import training_support as t; "
        f"print('ready', flush=True); t.train_in_a_process({str(killed)!r}, {steps}, {pause})"
    )

    def start():
        return subprocess.Popen(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    landed = 0
    for _ in range(kills):
        process = start()
        process.stdout.readline()
        time.sleep(draw.uniform(0.0, 0.8))
        process.kill()
        landed += process.wait() == -signal.SIGKILL
        process.stdout.close()
    last = start()
    output, _ = last.communicate(timeout=120)
    assert last.returncode == 0, output.decode()
    assert landed > 0
    ends = [load_file(folder / "final.safetensors") for folder in (undisturbed, killed)]
    assert same_bits(*ends), f"FOURSTAGE_KILL_SEED={seed}"
    rows = [read_rows(folder / "metrics.jsonl") for folder in (undisturbed, killed)]
    for row in [*rows[0], *rows[1]]:
        del row["tokens_per_second"]
    assert rows[0] == rows[1]
