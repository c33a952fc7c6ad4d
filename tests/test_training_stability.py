import errno
import itertools
import json
import math
import os
import random
import signal
import statistics
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st
from torch import nn

from fourstage import files
from fourstage.errors import InputError, Interrupted, MachineError
from fourstage.objectives.next_token import NextToken
from fourstage.randomness import seed_for
from fourstage.training.checkpoint import Checkpoints
from fourstage.training.diagnosis import diagnose
from fourstage.training.events import Unstable
from fourstage.training.guards import NotFinite
from fourstage.training.metrics import read_rows
from fourstage.training.reactions import Stability
from fourstage.training.settings import TrainSettings
from fourstage.training.spikes import History, robust_deviations
from training_support import (
    CONFIG,
    BufferSource,
    TinySource,
    same_bits,
    settings,
    tiny_batch,
    tiny_model,
    trainer,
    weights_of,
)

# A tiny model on a handful of documents is noisy: only what is far out of all proportion spikes.
CALM = {"spike_window": 8, "spike_deviations": 200.0, "steps": 24, "rollback_steps": 4}


class Factored(NextToken):
    """A batch's loss times its `factor`, where it has one."""

    def sums(self, module, micro):
        terms, metrics = super().sums(module, micro)
        factor = micro.streams.get("factor", torch.ones(1))[0]
        return {name: value * factor for name, value in terms.items()}, metrics


class Spiky(BufferSource):
    """Batches that depend on what was drawn before; those of some numbers have a huge loss."""

    def __init__(self, spikes, factor=1e4, stop_at=None):
        super().__init__()
        self.spikes, self.factor, self.stop_at = spikes, factor, stop_at

    def batch(self, step):
        if step == self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        batch = super().batch(step)
        factor = self.factor if step in self.spikes else 1.0
        batch.streams["factor"] = torch.full((batch.cells,), factor)
        return batch


class Leaping(Spiky):
    """The same batches, without those from `first` to `last`."""

    def __init__(self, first, last):
        super().__init__(set())
        self.first, self.last = first, last

    def batch(self, step):
        number = step if step < self.first else step + self.last - self.first + 1
        torch.manual_seed(seed_for(0, "step", number))
        return super().batch(number)


def spiky_run(folder, source, model=None, **changed):
    return trainer(folder, model, source, objective=Factored(), **{**CALM, **changed})


def events_of(folder):
    return [row for row in read_rows(folder / "metrics.jsonl") if "event" in row]


# Spikes


@given(st.lists(st.floats(-100, 100), min_size=3, max_size=40), st.floats(-1e3, 1e3))
def test_deviations_are_median_distances_scaled_to_a_normal_distribution(others, value):
    usual, away = robust_deviations(value, others, least=0.0)
    assert usual == statistics.median(others)
    spread = statistics.median(abs(other - usual) for other in others)
    sigma = max(spread / statistics.NormalDist().inv_cdf(0.75), 1e-12)
    assert away == pytest.approx((value - usual) / sigma, rel=1e-3, abs=1e-9)


def noise(seed, length=1000):
    draw = random.Random(seed)
    return [(3 + draw.gauss(0, 0.1), math.exp(draw.gauss(0, 0.3))) for _ in range(length)]


@pytest.mark.parametrize("seed", range(5))
def test_normal_noise_and_a_falling_loss_are_no_spikes_and_a_jump_is_one(seed):
    history = History(128)
    for step, (loss, norm) in enumerate(noise(seed)):
        falling = loss + 4 * math.exp(-step / 100)
        assert history.spike(falling, norm, 7.0) is None
        history.add(falling, norm)
    assert history.spike(4.2, 1.0, 7.0).cause == "loss"
    assert history.spike(3.0, 30.0, 7.0).cause == "gradient_norm"
    assert history.spike(1.0, 1e-6, 7.0) is None


def test_spikes_among_the_last_steps_do_not_hide_the_next_one():
    history = History(128)
    for step, (loss, norm) in enumerate(noise(0, 128)):
        history.add(50.0 if step % 3 == 0 else loss, norm)
    assert history.spike(50.0, 1.0, 6.0) is not None


def test_nothing_is_a_spike_before_half_a_window_is_known():
    history = History(8)
    for _ in range(3):
        history.add(1.0, 1.0)
        assert history.spike(1e9, 1e9, 6.0) is None
    history.add(1.0, 1.0)
    assert history.spike(1e9, 1.0, 6.0) is not None


@effort(max_examples=200)
@given(st.lists(st.tuples(st.integers(1, 60), st.integers(1, 30)), max_size=6))
def test_no_batch_is_given_twice_or_from_among_those_left_out(rollbacks):
    stability = Stability(settings())
    for spiked, back in sorted(rollbacks):
        stability.settings = settings(rollback_steps=back, most_rollbacks=9)
        stability.rollbacks.append(stability.rollback(spiked, {}))
    numbers = [stability.batch_of(step) for step in range(100)]
    assert all(a < b for a, b in itertools.pairwise(numbers))
    left_out = {n for each in stability.rollbacks for n in range(each.first, each.last + 1)}
    assert not left_out & set(numbers)
    assert set(range(numbers[-1])) <= left_out | set(numbers)
    told = [each for step in range(100) for each in stability.left_out_before(step)]
    assert sorted(map(id, told)) == sorted(map(id, stability.rollbacks))


# Reactions


def test_a_spike_is_told_and_changes_nothing_by_default(tmp_path):
    lines, warned, unwatched = [], tiny_model(), tiny_model()
    spiky_run(tmp_path / "a", Spiky({12}), warned, say=lines.append).train()
    spiky_run(tmp_path / "b", Spiky({12}), unwatched, spike_deviations=1e30).train()
    assert same_bits(weights_of(warned), weights_of(unwatched))
    assert sum("step 13 spiked: loss" in line for line in lines) == 1
    (event,) = events_of(tmp_path / "a")
    assert (event["step"], event["event"], event["cause"]) == (13, "warning", "loss")
    assert event["value"] > 100 * event["usual"] and event["tokens"] > 0
    assert events_of(tmp_path / "b") == []


def test_a_skipped_spike_leaves_weights_and_optimiser_as_they_were(tmp_path):
    skipping = spiky_run(tmp_path, Spiky({12}), on_spike="skip")
    before = {}

    def judged(outcome):
        applied = type(skipping)._accepts(skipping, outcome)
        if not applied:
            before.update(weights_of(skipping.module) | skipping.update.optimiser.state())
            before.update({name: value.clone() for name, value in before.items()})
            assert skipping.counts.step == 12
        elif before and skipping.counts.step == 13:
            now = weights_of(skipping.module) | skipping.update.optimiser.state()
            assert same_bits(before, now)
            before.clear()
        return applied

    skipping.update.accepts = judged
    result = skipping.train()
    assert result.skipped == 1 and before == {}
    (event,) = events_of(tmp_path)
    assert (event["step"], event["event"]) == (13, "skip")


def test_a_level_that_has_moved_is_not_skipped_for_ever(tmp_path):
    result = spiky_run(tmp_path, Spiky(set(range(10, 99))), on_spike="skip", most_skipped=3).train()
    assert result.steps == 24 and 3 <= result.skipped <= 6


def test_the_rate_is_lowered_from_the_next_step_on(tmp_path):
    plain = {"schedule": "constant", "log_every": 1, "warmup_steps": 0}
    spiky_run(
        tmp_path, Spiky({12, 13, 20}), on_spike="lower_rate", lowered_rate=0.1, **plain
    ).train()
    rates = {r["step"]: r["learning_rate"] for r in read_rows(tmp_path / "metrics.jsonl")
             if "event" not in r}  # fmt: skip
    assert rates[13] == 3e-3
    # The spike of step 14 is of the same rate: it is judged again once the lower one is known.
    assert rates[14] == rates[21] == pytest.approx(3e-4)
    assert rates[22] == pytest.approx(3e-5)
    assert [event["step"] for event in events_of(tmp_path)] == [13, 21]


def test_a_rollback_is_the_run_that_never_saw_those_batches(tmp_path):
    rolled, leaping, lines = tiny_model(), tiny_model(), []
    spiky_run(
        tmp_path / "a", Spiky({12}), rolled, on_spike="rollback", ema=0.9, say=lines.append,
        checkpoint_every=3,
    ).train()  # fmt: skip
    spiky_run(tmp_path / "b", Leaping(9, 12), leaping, ema=0.9).train()
    assert same_bits(weights_of(rolled), weights_of(leaping))
    assert sum("going back to step 9, and on from there without batches 9 to 12" in line
               for line in lines) == 1  # fmt: skip
    rows = {}
    for name in "ab":
        rows[name] = [row for row in read_rows(tmp_path / name / "metrics.jsonl")]
        rows[name] = [row for row in rows[name] if "event" not in row]
        for row in rows[name]:
            del row["tokens_per_second"]
    assert rows["a"] == rows["b"]
    (event,) = events_of(tmp_path / "a")
    assert (event["event"], event["step"], event["from_step"]) == ("rollback", 10, 13)
    assert event["batches"] == [9, 12]


@pytest.mark.parametrize("checkpoints", [{}, {"checkpoint_every": 2}, {"checkpoint_seconds": 1e-9}])
def test_when_checkpoints_are_written_does_not_change_where_a_rollback_leads(tmp_path, checkpoints):
    expected, found = tiny_model(), tiny_model()
    keywords = {"on_spike": "rollback", "most_rollbacks": 9}
    spikes = {3, 11, 16, 17}
    spiky_run(tmp_path / "a", Spiky(spikes), expected, checkpoint_every=5, **keywords).train()
    spiky_run(tmp_path / "b", Spiky(spikes), found, **checkpoints, **keywords).train()
    assert same_bits(weights_of(expected), weights_of(found))
    assert events_of(tmp_path / "a") == events_of(tmp_path / "b") != []


@pytest.mark.parametrize(
    ("reaction", "stop"),
    [
        *[("rollback", stop) for stop in (7, 10, 12, 13, 15, 19, 23)],
        *[(reaction, stop) for reaction in ("warn", "skip", "lower_rate") for stop in (10, 15)],
    ],
)
def test_a_killed_run_with_spikes_ends_with_the_same_bits(tmp_path, reaction, stop):
    straight, resumed = tiny_model(), tiny_model()
    keywords = {"on_spike": reaction, "checkpoint_every": 4, "ema": 0.9, "log_every": 3}
    spikes = {11, 14}
    spiky_run(tmp_path / "a", Spiky(spikes), straight, **keywords).train()
    with pytest.raises(Interrupted):
        spiky_run(tmp_path / "b", Spiky(spikes, stop_at=stop), **keywords).train()
    spiky_run(tmp_path / "b", Spiky(spikes), resumed, **keywords).train()
    assert same_bits(weights_of(straight), weights_of(resumed))
    for name in ("metrics.jsonl", "watch.jsonl"):
        rows = [read_rows(tmp_path / run / name) for run in "ab"]
        for row in [*rows[0], *rows[1]]:
            row.pop("tokens_per_second", None)
        assert rows[0] == rows[1]


def test_a_kill_after_a_rollback_does_not_forget_it(tmp_path):
    keywords = {"on_spike": "rollback", "checkpoint_every": 3}
    with pytest.raises(Interrupted):
        spiky_run(tmp_path, Spiky({12}, stop_at=13), **keywords).train()
    source = Spiky({12})
    spiky_run(tmp_path, source, **keywords).train()
    assert 12 not in source.asked


def test_rollbacks_are_limited_and_the_end_says_what_to_do(tmp_path):
    everything = Spiky(set(range(10, 99)))
    with pytest.raises(Unstable, match=r"after 2 rollbacks: lower learning_rate"):
        spiky_run(tmp_path, everything, on_spike="rollback", most_rollbacks=2).train()
    assert Checkpoints(tmp_path / "checkpoints").newest() is not None


def test_a_rollback_without_an_intact_checkpoint_skips_the_step_and_says_so(tmp_path):
    lines = []

    class Damages(Spiky):
        def batch(self, step):
            if step == 12:
                for path in tmp_path.glob("checkpoints/*/model.safetensors"):
                    path.write_bytes(b"")
            return super().batch(step)

    result = spiky_run(tmp_path, Damages({12}), on_spike="rollback", say=lines.append).train()
    assert result.skipped == 1
    assert any("no checkpoint of step 9 or before is intact" in line for line in lines)


def test_a_batch_that_is_not_finite_is_rolled_back_too(tmp_path):
    model = tiny_model()
    spiky_run(tmp_path, Spiky({12}, factor=math.nan), model, on_spike="rollback").train()
    assert all(bool(p.isfinite().all()) for p in model.parameters())
    (event,) = events_of(tmp_path)
    assert (event["event"], event["cause"]) == ("rollback", "not_finite")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"on_spike": "rolback"}, "did you mean 'rollback'"),
        ({"spike_window": 1}, "spike_window must be 8 or more"),
        ({"lowered_rate": 2.0}, "lowered_rate=2.0 is out of range"),
    ],
)
def test_settings_out_of_range_are_refused(changed, words):
    with pytest.raises(InputError, match=words):
        TrainSettings(steps=1, learning_rate=1e-3, **changed)


# What is not finite


@pytest.mark.parametrize("micro_batch_tokens", [None, 15])
def test_the_first_layer_and_the_documents_that_are_not_finite_are_named(micro_batch_tokens):
    model, batch = tiny_model(), tiny_batch(0, 0)
    bad = [1, 4]
    starts = torch.tensor(batch.lengths).cumsum(0) - torch.tensor(batch.lengths)
    batch.tokens[starts[bad]] = 39
    with torch.no_grad():
        other = [i for i in range(batch.cells) if i not in starts[bad]]
        batch.tokens[other] = batch.tokens[other] % 39

    def overflow(mlp, inputs, output):
        return torch.where(torch.isin(seen["tokens"], 39)[:, None], output + math.inf, output)

    seen = {}
    model.model.embed_tokens.register_forward_pre_hook(
        lambda module, inputs: seen.update(tokens=inputs[0])
    )
    model.model.layers[1].mlp.register_forward_hook(overflow)
    found = diagnose(model, NextToken(), batch, torch.device("cpu"), micro_batch_tokens)
    assert found.layer == "model.layers.1.mlp"
    # The search ends with the first micro-batch that is not finite.
    assert found.documents == bad or (micro_batch_tokens and found.documents in ([1], [4]))
    assert "first in the output of model.layers.1.mlp; document" in str(found)


def test_a_finite_forward_pass_is_said_to_be_one():
    found = diagnose(tiny_model(), NextToken(), tiny_batch(0, 0), torch.device("cpu"), 15)
    assert str(found) == "the forward pass is finite, the backward pass is not"


def test_a_step_that_is_not_finite_names_its_documents_in_line_and_row(tmp_path):
    lines = []

    class NaNWeights(TinySource):
        def batch(self, step):
            batch = super().batch(step)
            if step == 5:
                batch.streams["loss_weights"][batch.lengths[0]] = math.nan
            return batch

    result = trainer(tmp_path, source=NaNWeights(), say=lines.append).train()
    assert result.skipped == 1 and result.steps == 12
    (line,) = [line for line in lines if "was not finite" in line]
    assert "in the loss alone; document 1 of the batch" in line and "step 6" in line
    (event,) = events_of(tmp_path)
    assert (event["step"], event["event"], event["cause"]) == (6, "skip", "not_finite")
    assert "document 1" in event["detail"]


# What is watched


def test_watching_changes_no_bits(tmp_path):
    watched, plain = tiny_model(), tiny_model()
    trainer(tmp_path / "a", watched, BufferSource(), watch_every=1).train()
    trainer(tmp_path / "b", plain, BufferSource(), watch_every=0).train()
    assert same_bits(weights_of(watched), weights_of(plain))
    assert [row["step"] for row in read_rows(tmp_path / "a" / "watch.jsonl")] == [*range(1, 13)]
    assert not (tmp_path / "b" / "watch.jsonl").exists()
    assert "update_ratio" not in read_rows(tmp_path / "b" / "metrics.jsonl")[-1]


def test_what_is_watched_is_what_there_is(tmp_path):
    torch.manual_seed(0)
    model = tiny_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    running = trainer(tmp_path, model)
    before = running.watch.before(1)
    kept = weights_of(model)
    batch = tiny_batch(0, 0, documents=4)
    running.update(batch, 1e-2)
    totals, layers = running.watch.after(batch, before)

    assert batch.cells <= 32, "all of the batch is looked at"
    streams, scores = [], []
    handles = [
        block.register_forward_hook(lambda module, inputs, output: streams.append(output))
        for block in model.model.layers
    ]
    handles += [
        block.self_attn.register_forward_pre_hook(
            lambda module, inputs: scores.append(module.project(*inputs[:3]))
        )
        for block in model.model.layers
    ]
    with torch.no_grad():
        logits = model.logits(model(batch.tokens, batch.layout))
    for handle in handles:
        handle.remove()
    for index, stream in enumerate(streams):
        assert layers["activation_rms"][index] == pytest.approx(
            float(stream.square().mean().sqrt()), rel=1e-3
        )
        assert layers["activation_max"][index] == pytest.approx(float(stream.abs().max()), rel=1e-3)
        q, k, _ = scores[index]
        largest = (q @ k[:, 0].T[None]).abs().max() * CONFIG.head_width**-0.5
        assert largest <= layers["attention_logit_max"][index] <= 3 * largest
    assert totals["logit_max"] == pytest.approx(float(logits.detach().abs().max()), rel=1e-5)
    assert totals["log_z"] == pytest.approx(float(logits.detach().logsumexp(-1).mean()), rel=1e-5)

    change = {name: value - kept[name] for name, value in weights_of(model).items()}
    for layer in range(2):
        members = [n for n in kept if n.startswith(f"model.layers.{layer}.mlp.")]
        moved = math.sqrt(sum(float(change[n].square().sum()) for n in members))
        size = math.sqrt(sum(float(model.state_dict()[n].square().sum()) for n in members))
        assert layers["update_ratio/mlp"][layer] == pytest.approx(moved / size, rel=1e-3)
    assert totals["update_ratio_max"] >= totals["update_ratio"] > 0
    assert {"update_ratio/embedding", "update_ratio/head", "update_ratio/norms"} <= layers.keys()


def test_a_policy_and_its_critic_are_watched_apart(tmp_path):
    from fourstage.model.actor_critic import ActorCritic

    module = ActorCritic(tiny_model(), tiny_model().with_scalar_head(0))
    running = trainer(tmp_path, module)
    totals, layers = running.watch.after(tiny_batch(0, 0), running.watch.before(1))
    assert {"activation_rms", "critic.activation_rms", "log_z"} <= totals.keys()
    assert "critic.log_z" not in totals
    assert len(layers["update_ratio/attention"]) == len(layers["critic.update_ratio/mlp"]) == 2


def test_what_is_not_finite_is_null_in_the_row_of_layers(tmp_path):
    model = tiny_model()
    running = trainer(tmp_path, model)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.fill_(math.inf)
    _, layers = running.watch.after(tiny_batch(0, 0), running.watch.before(1))
    assert layers["activation_max"] == [None, None]
    assert json.loads(json.dumps(layers, allow_nan=False)) == layers


# Batches ahead


def test_batches_drawn_ahead_are_the_same(tmp_path):
    models, sources = [tiny_model(), tiny_model()], [TinySource(), TinySource()]
    for ahead, model, source, name in zip((True, False), models, sources, "ab", strict=True):
        source.depends_on_number_alone = True
        trainer(tmp_path / name, model, source, prefetch=ahead).train()
    assert same_bits(*map(weights_of, models))
    assert sources[0].asked == sources[1].asked == [*range(12)]


def test_batches_drawn_ahead_come_from_a_thread_that_ends_with_the_training(tmp_path):
    drew_in = set()

    class Notes(TinySource):
        depends_on_number_alone = True

        def batch(self, step):
            drew_in.add(threading.current_thread().name)
            if step == 5:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().batch(step)

    with pytest.raises(Interrupted):
        trainer(tmp_path, source=Notes(), prefetch=True).train()
    assert drew_in and all(name.startswith("batches") for name in drew_in)
    assert not [each for each in threading.enumerate() if each.name.startswith("batches")]


def test_a_source_that_holds_something_is_never_drawn_ahead(tmp_path):
    model, plain = tiny_model(), tiny_model()
    running = trainer(tmp_path / "a", model, BufferSource(), prefetch=True)
    running.train()
    trainer(tmp_path / "b", plain, BufferSource()).train()
    assert not running.batches.ahead
    assert same_bits(weights_of(model), weights_of(plain))


def test_a_fault_of_the_source_comes_at_the_step_it_is_for(tmp_path):
    class Breaks(TinySource):
        depends_on_number_alone = True

        def batch(self, step):
            if step == 5:
                raise MachineError("the disk reported an input/output error")
            return super().batch(step)

    running = trainer(tmp_path, source=Breaks(), prefetch=True, checkpoint_every=1)
    with pytest.raises(MachineError, match="input/output"):
        running.train()
    assert running.counts.step == 5
    assert Checkpoints(tmp_path / "checkpoints").steps()[-1] == 5


def test_rollbacks_and_batches_ahead_agree(tmp_path):
    class Pure(TinySource):
        depends_on_number_alone = True

        def batch(self, step):
            batch = super().batch(step)
            batch.streams["factor"] = torch.full((batch.cells,), 1e4 if step == 12 else 1.0)
            return batch

    models = [tiny_model(), tiny_model()]
    for name, model, ahead in zip("ab", models, (True, False), strict=True):
        spiky_run(tmp_path / name, Pure(), model, on_spike="rollback", prefetch=ahead).train()
    assert same_bits(*map(weights_of, models))
    assert len(events_of(tmp_path / "a")) == 1


# Faults of the machine


def test_a_clock_that_is_moved_back_disturbs_nothing(tmp_path, monkeypatch):
    moved, plain = tiny_model(), tiny_model()
    trainer(tmp_path / "a", plain).train()
    clock = iter(range(10**9, 0, -3600))
    monkeypatch.setattr("time.time", lambda: float(next(clock)))
    result = trainer(tmp_path / "b", moved, checkpoint_seconds=1e-9).train()
    assert same_bits(weights_of(moved), weights_of(plain))
    assert 0 < result.seconds < 600
    assert Checkpoints(tmp_path / "b" / "checkpoints").steps() == [11, 12]
    rows = read_rows(tmp_path / "b" / "metrics.jsonl")
    assert all(row["tokens_per_second"] > 0 for row in rows)


def test_a_signal_saves_before_what_is_due_and_takes_time(tmp_path):
    asked, validated = [], tiny_model()

    def validate():
        asked.append(Checkpoints(tmp_path / "b" / "checkpoints").steps())
        return {"validation_loss": 1.0}

    keywords = {"validate_every": 4, "log_every": 2}
    trainer(
        tmp_path / "a", validate=lambda: {"validation_loss": 1.0}, source=TinySource(), **keywords
    ).train()

    class Stops(TinySource):
        def batch(self, step):
            if step == 7:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().batch(step)

    with pytest.raises(Interrupted, match="after step 8"):
        trainer(tmp_path / "b", source=Stops(), validate=validate, **keywords).train()
    assert len(asked) == 1, "the validation of step 8 is left to who goes on"
    assert Checkpoints(tmp_path / "b" / "checkpoints").steps()[-1] == 8
    result = trainer(tmp_path / "b", validated, validate=validate, **keywords).train()
    assert len(asked) == 3 and result.best.step == 4
    rows = [read_rows(tmp_path / name / "metrics.jsonl") for name in "ab"]
    for row in [*rows[0], *rows[1]]:
        del row["tokens_per_second"]
    assert rows[0] == rows[1]


def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path, monkeypatch):
    def refuses(path, mode="r", *others, **more):
        if set(mode) & set("wa"):
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        return open(path, mode, *others, **more)

    monkeypatch.setattr(files, "open", refuses, raising=False)
    with pytest.raises(MachineError, match=r"cannot write .*: the disk is read-only") as caught:
        trainer(tmp_path).train()
    assert "\n" not in str(caught.value)


def test_many_steps_that_are_not_finite_stop_the_run_whatever_the_reaction(tmp_path):
    for reaction in ("warn", "skip", "lower_rate"):
        with pytest.raises(NotFinite, match="3 steps in a row"):
            spiky_run(
                tmp_path / reaction, Spiky(set(range(5, 99)), math.nan), on_spike=reaction,
                most_skipped=3,
            ).train()  # fmt: skip


def test_a_module_without_a_transformer_is_watched_by_its_updates(tmp_path):
    running = trainer(tmp_path, nn.Linear(3, 3))
    totals, _ = running.watch.after(tiny_batch(0, 0), running.watch.before(1))
    assert totals == {"update_ratio": 0.0, "update_ratio_max": 0.0}
