"""Comparisons as a stage: what is trained, against which reference, however a step is cut."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fourstage.adapters.adapting import adapt, base_of
from fourstage.data.batch import Batch, Example
from fourstage.data.compared import compared, judged, last_response, pair_rows, pairs_of, prompts_of
from fourstage.data.store import Store, write_store
from fourstage.errors import MachineError
from fourstage.evaluation.implicit import objective_on, pairs_in_order
from fourstage.model.actor_critic import ActorCritic
from fourstage.objectives.kto import KTO
from fourstage.objectives.preference import DirectPreference
from fourstage.objectives.preferences import preference_of
from fourstage.parallel.group import Group
from fourstage.recipe import RL
from fourstage.recipe.adapter import Adapter
from fourstage.recipe.preference import PreferenceSection
from fourstage.stages import online, preference
from fourstage.stages.preference import Finishing, GivenSource, starts_at_reference
from fourstage.training.diagnosis import diagnose
from fourstage.training.guards import GuardFailed
from parallel_support import together
from preference_support import CONFIG, comparison_store, learning, losses, reference, steps_of
from training_support import same_bits, tiny_model, weights_of

NAMES = ("dpo", "simpo", "kto")


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return comparison_store(tmp_path_factory.mktemp("preference") / "store")


def source(store: Store, strangers: bool = False, **others) -> GivenSource:
    finishing = Finishing(reference(), strangers, CONFIG.context, Group())
    return GivenSource(store, 6, 0, finishing, apart=strangers, **others)


def test_the_last_answer_alone_is_trained_and_the_mark_of_the_reward_is_left_out(store):
    whole = store[0]
    cut = last_response(whole)
    assert cut.tokens.tolist() == whole.tokens[:-1].tolist()
    # Two opening tokens, an answer of two, two more of the user.
    assert cut.trained().tolist() == [False] * 6 + [True] * (len(cut.tokens) - 6)
    with pytest.raises(ValueError, match="has no response"):
        last_response(Example(np.arange(3), np.zeros(3, bool)))


def test_the_chosen_response_stands_before_the_rejected_one(store):
    batch = source(store).batch(3)
    assert batch.documents["group"].tolist() == [i // 2 for i in range(12)]
    trained = batch.streams["loss_weights"] != 0
    for number in range(12):
        cells = (batch.document_ids == number) & trained
        steps = torch.diff(batch.targets[cells]) % 39
        assert (steps == (1 if number % 2 == 0 else 38)).all()


def test_a_ranking_compares_each_answer_with_those_below_it_and_ties_say_nothing(tmp_path):
    places = [[2, 1, 3], [1, 1], [1, 2, 2]]
    told = [{"group": group, "place": at} for group, row in enumerate(places) for at in row]
    tokens = [Example(np.array([1, 2, row]), np.array([False, True, False])) for row in range(8)]
    found = pair_rows(write_store(tmp_path / "ranked", tokens, told, vocab_size=40, masked=True))
    assert found.tolist() == [[0, 2], [1, 0], [1, 2], [5, 6], [5, 7]]


def test_a_source_gives_the_same_bits_whenever_it_is_asked(store):
    drawn = source(store)
    asked = [drawn.batch(step) for step in (5, 0, 5)]
    assert torch.equal(asked[0].streams["ref_logprobs"], asked[2].streams["ref_logprobs"])
    fresh = source(store).batch(5)
    assert torch.equal(asked[0].tokens, fresh.tokens)
    assert torch.equal(asked[0].streams["ref_logprobs"], fresh.streams["ref_logprobs"])


@pytest.mark.parametrize("strangers", [False, True], ids=["pairs", "kto"])
def test_the_reference_gives_what_its_softmax_says(store, strangers):
    batch, model = source(store, strangers).batch(1), reference()
    start = 0
    for length in batch.lengths:
        alone = Batch.language([Example(batch.tokens[start : start + length].numpy())])
        hidden = model(batch.tokens[start : start + length], _layout(length))
        logprobs = model.logits(hidden).log_softmax(-1)
        targets = batch.targets[start : start + length]
        wanted = logprobs.gather(-1, targets[:, None])[:, 0]
        wanted = wanted * (batch.streams["loss_weights"][start : start + length] != 0)
        found = batch.streams["ref_logprobs"][start : start + length]
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
        assert alone.cells == length - 1
        start += length


def _layout(length: int):
    from fourstage.model.layout import Layout

    return Layout((length,), torch.device("cpu"))


def test_kto_reads_strangers_behind_good_and_bad_responses(store):
    batch = source(store, strangers=True).batch(0)
    labels = batch.documents["labels"].tolist()
    assert labels[:12] == [1, -1] * 6 and set(labels[12:]) == {0}
    assert len(labels) == 24


def test_prompts_are_told_apart(store):
    pairs = compared(pairs_of(store, pair_rows(store)[:5]))
    wanted = {tuple(store[2 * i].tokens[:6].tolist()) for i in range(5)}
    assert len(wanted) > 1 and prompts_of(pairs) == wanted


def test_single_judgements_keep_their_labels(store):
    labels = np.where(np.arange(len(store)) % 3 == 0, 1, -1)
    finishing = Finishing(reference(), True, CONFIG.context, Group())
    drawn = GivenSource(store, 8, 0, finishing, labels)
    seen = {}
    for step in range(len(store) // 8):
        batch, start = drawn.batch(step), 0
        for number in range(8):
            length = batch.lengths[number]
            seen[tuple(batch.tokens[start : start + length].tolist())] = batch.documents["labels"][
                number
            ]
            start += length
    wanted = {
        tuple(last_response(store[index]).tokens[:-1].tolist()): label
        for index, label in enumerate(labels)
    }
    assert len(seen) > 30
    assert all(wanted[tokens] == int(label) for tokens, label in seen.items())


@pytest.mark.parametrize("name", NAMES)
def test_steps_do_not_depend_on_micro_batches(tmp_path, name):
    whole = steps_of(learning(tmp_path / "whole", name, steps=4))
    parts = steps_of(learning(tmp_path / "parts", name, steps=4, micro_batch_tokens=30))
    assert len(whole) == 8
    assert parts == pytest.approx(whole, rel=2e-4)


def test_two_processes_take_the_steps_of_one(tmp_path):
    first, second = together(2, "preference_support:losses", str(tmp_path / "two"))
    alone = losses(Group(), str(tmp_path / "one"))
    assert first == second and first.keys() == alone.keys()
    for case, steps in alone.items():
        assert len(steps) == 10 and first[case] == pytest.approx(steps, rel=2e-4), case


@pytest.mark.parametrize("name", NAMES)
def test_training_lowers_the_objective_on_comparisons(tmp_path, name):
    made = learning(tmp_path, name, steps=40, learning_rate=1e-2)
    objective, policy = made.objective, made.module.policy
    held = made.source.of(range(24))
    before = objective_on(made.module, objective, held)
    made.train()
    after = objective_on(made.module, objective, held)
    assert after["validation_loss"] < 0.8 * before["validation_loss"]
    batch = compared(pairs_of(made.source.store, made.source.pairs))
    ref = None if name == "simpo" else reference()
    assert pairs_in_order(policy, ref, batch, by_token=name == "simpo").mean() > 0.9


@pytest.mark.parametrize("name", ["dpo", "kto"])
def test_a_stage_goes_on_with_the_same_bits(tmp_path, name):
    whole = learning(tmp_path / "whole", name, steps=8)
    whole.train()
    cut = learning(tmp_path / "cut", name, steps=8, checkpoint_every=3)
    draw = cut.source.batch

    def dying(step: int) -> Batch:
        if step == 5:
            raise KeyboardInterrupt
        return draw(step)

    cut.source.batch = dying
    with pytest.raises(KeyboardInterrupt):
        cut.train()
    resumed = learning(tmp_path / "cut", name, steps=8, checkpoint_every=3)
    resumed.train()
    assert same_bits(weights_of(resumed.module), weights_of(whole.module))


def test_runs_killed_in_any_family_end_with_the_same_bits(tmp_path, tmp_path_factory):
    from pipeline_support import environment, whole_run

    run = whole_run(tmp_path_factory.getbasetemp())
    done = subprocess.run(
        [sys.executable, "preference_support.py", str(run), str(tmp_path)],
        cwd=Path(__file__).parent, env=environment(), capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    assert done.stdout.endswith("the same\n")


def test_a_validation_does_not_depend_on_its_portions(store, monkeypatch):
    held = source(store, strangers=True).of(range(24))
    whole = objective_on(tiny_model(2), KTO(), held)
    monkeypatch.setattr("fourstage.evaluation.implicit._CELLS", 50)
    assert objective_on(tiny_model(2), KTO(), held) == pytest.approx(whole, rel=1e-5)


def test_the_reference_of_an_adapter_is_the_policy_without_it(store):
    policy = tiny_model(1)
    adapt(policy, Adapter(rank=4), 0)
    asked = Finishing(base_of(policy).eval(), False, CONFIG.context, Group(), True)
    drawn = GivenSource(store, 6, 0, asked)
    before = drawn.batch(0).streams["ref_logprobs"]
    wanted = source(store).batch(0).streams["ref_logprobs"]
    torch.testing.assert_close(before, wanted, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    assert torch.equal(drawn.batch(0).streams["ref_logprobs"], before)


def test_a_policy_that_is_not_its_reference_is_refused(store):
    batch, objective = source(store).batch(0), DirectPreference(preference_of("dpo"))
    starts_at_reference(1e-4)(ActorCritic(tiny_model(1)), objective, batch)
    with pytest.raises(GuardFailed, match="away from 1"):
        starts_at_reference(1e-4)(ActorCritic(tiny_model(2)), objective, batch)


@pytest.mark.parametrize("label", [1, 0])
def test_a_fault_in_a_surveyed_step_names_its_documents(store, label):
    batch = source(store, strangers=True).batch(0)
    number = batch.documents["labels"].tolist().index(label) + 1
    number = number if batch.documents["labels"][number] == label else number - 1
    batch.streams["ref_logprobs"][batch.document_ids == number] = float("nan")
    found = diagnose(ActorCritic(tiny_model(1)), KTO(), batch, torch.device("cpu"), 60)
    assert found.documents == [number]


def test_judgements_of_weight_nothing_give_no_z(store):
    batch = judged(pairs_of(store, pair_rows(store)[:3]), [1, -1] * 3)
    batch.documents["labels"][-1] = 0
    batch.streams["ref_logprobs"] = torch.zeros(batch.cells)
    told = KTO().informed(batch, torch.zeros(2))
    assert told.documents["z"].tolist() == [0.0] * 5


def test_what_draws_elsewhere_is_let_go_of_however_training_ends(monkeypatch):
    closed = []

    class Drawn(online.OnlinePairs):
        def __init__(self): ...

        def close(self):
            closed.append(1)

    def fails(*given, **more):
        raise MachineError("no memory")

    finishing = SimpleNamespace(reference=None)
    monkeypatch.setattr(online, "online_source", lambda *given: Drawn())
    monkeypatch.setattr(preference, "_finishing", lambda *given: finishing)
    section = RL(algorithm="dpo", online=True, preference=PreferenceSection())
    context: Any = SimpleNamespace(section=section, group=Group(), train=fails)
    players: Any = SimpleNamespace(trained=None, reward_model=None)
    judge: Any = None
    with pytest.raises(MachineError, match="no memory"):
        preference.train(context, players, [], judge)
    assert closed == [1]
