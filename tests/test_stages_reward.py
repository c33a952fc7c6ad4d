"""Reward models of every kind through the stage: trained, measured, saved, opened, and gone on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from fourstage.data.comparing import reward_source
from fourstage.data.store import Store
from fourstage.errors import InputError
from fourstage.evaluation.likelihood import Opinion, Turn, least_of_rows
from fourstage.evaluation.scoring import raw_scores
from fourstage.files import read_json, sha256_file, sha256_folder
from fourstage.interchange import load_model, peft
from fourstage.interchange.rewards import (
    as_ensemble,
    likelihood_of,
    members_of,
    read_heads,
)
from fourstage.interchange.weights import read_tensors
from fourstage.parallel.group import Group
from fourstage.stages.judges import Offsets, WithOffsets
from fourstage.tokenizer import Tokenizer
from pipeline_support import go, results, tiny, whole_run

QUICK = ("reward.validate_every=3", "reward.sample_every=0", "reward.checkpoint_every=0")


@pytest.fixture
def run(tmp_path_factory, tmp_path) -> Path:
    """A copy of a whole run without its reward model and what came of it."""
    folder = shutil.copytree(whole_run(tmp_path_factory.getbasetemp()), tmp_path / "run")
    shutil.rmtree(folder / "reward")
    shutil.rmtree(folder / "rl")
    return folder


def rewarded(run: Path, *overrides: str) -> dict:
    go(tiny(*QUICK, *overrides), run, only="reward")
    return results(run, "reward")


def rows_of(run: Path) -> list[list[int]]:
    store = Store.open(run / "data" / "reward" / "validation")
    return [store[index].tokens.tolist() for index in range(min(16, len(store)))]


def written(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"data.preferences={path}"


def by_head(count: int = 60) -> list[dict]:
    """Two heads that want opposite things of the same answers."""
    rows = []
    for index in range(count):
        short, long = f"It is {index}.", f"It is {index}, my friend, and it will be so tomorrow."
        better, worse = (long, short) if index % 2 else (short, long)
        head = ("brief", "kind")[index % 2]
        asked = f"What is number {index // 2}?"
        rows.append({"prompt": asked, "chosen": better, "rejected": worse, "head": head})
    return rows


def test_two_heads_are_read_as_one_and_saved_each(run, tmp_path):
    preferences = written(tmp_path / "heads.jsonl", by_head())
    weights = ("reward.heads.brief=1", "reward.heads.kind=0.25")
    found = rewarded(run, preferences, *weights, "reward.steps=25", "reward.learning_rate=3e-3")
    folder = run / "reward" / "model"
    heads, model = read_heads(folder), load_model(folder)
    assert heads.names == ("brief", "kind") and heads.rows.shape == (2, 32)
    assert found["metrics"]["ranking_accuracy/brief"] > 0.8
    assert found["metrics"]["ranking_accuracy/kind"] > 0.8
    rows = rows_of(run)
    both = raw_scores(_with_rows(load_model(folder), heads.rows), rows)
    units = (both - np.array(heads.means)) / np.array(heads.stds)
    expected = units[:, 0] + 0.25 * units[:, 1]
    score = raw_scores(model, rows)
    # The weighted sum of normalised heads, but for a constant.
    np.testing.assert_allclose(score - score.mean(), expected - expected.mean(), atol=1e-4)
    config = read_json(folder / "config.json")
    assert config["id2label"] == {"0": "reward"}
    assert set(config["reward_heads"]) == {"brief", "kind"}


def _with_rows(model, rows):
    model.score = torch.nn.Linear(rows.shape[1], len(rows), bias=False)
    model.score.weight.data = rows.clone()
    return model


def test_comparisons_about_no_head_are_refused(run, tmp_path):
    rows = by_head()
    del rows[3]["head"]
    rows[5]["head"] = "honest"
    preferences = written(tmp_path / "heads.jsonl", rows)
    with pytest.raises(InputError, match="does not say which") as refused:
        rewarded(run, preferences, "reward.heads.brief=1", "reward.heads.kind=1")
    assert "'honest'" in str(refused.value)


def test_an_ensemble_differs_in_its_seeds_alone_and_is_opened_as_one(run):
    found = rewarded(run, "reward.ensemble=3", "reward.caution=0.5")
    folder = run / "reward" / "model"
    members = [load_model(member) for member in members_of(folder)]
    assert len(members) == 3
    rows = rows_of(run)
    scores = np.stack([raw_scores(member, rows) for member in members], 1)
    assert np.abs(np.corrcoef(scores.T) - 1)[np.triu_indices(3, 1)].min() > 1e-4
    units = (scores - [m.reward_mean for m in members]) / [m.reward_std for m in members]
    cautious = units.mean(1) - 0.5 * units.std(1)
    expected = cautious * members[0].reward_std + members[0].reward_mean
    ensemble = as_ensemble(folder, members)
    np.testing.assert_allclose(raw_scores(ensemble, rows), expected, atol=1e-5)
    assert found["metrics"]["reward_mean"] == pytest.approx(ensemble.reward_mean)
    assert 0 <= found["metrics"]["member_agreement"] <= 1
    assert {f"member_accuracy/{n}" for n in (1, 2, 3)} <= found["metrics"].keys()


def test_every_member_leaves_its_adapter(run):
    rewarded(run, "reward.ensemble=2", "reward.adapter.rank=4")
    adapters = [run / "reward" / "adapter", run / "reward" / "members" / "1" / "adapter"]
    assert all(peft.is_adapter(folder) for folder in adapters)
    first, second = (read_tensors(folder / "adapter_model.safetensors") for folder in adapters)
    assert first.keys() == second.keys()
    assert any(not torch.equal(first[name], second[name]) for name in first)
    assert len(members_of(run / "reward" / "model")) == 2


def test_the_first_member_is_the_model_that_there_would_be_alone(run):
    alone = rewarded(run)["metrics"]
    first = load_model(run / "reward" / "model").state_dict()
    shutil.rmtree(run / "reward")
    rewarded(run, "reward.ensemble=2")
    again = load_model(run / "reward" / "model")
    for name, weight in again.state_dict().items():
        assert torch.equal(weight, first[name]), name
    assert again.reward_mean == alone["reward_mean"]


def test_reinforcement_learning_reads_an_ensemble_as_one_model(run):
    overrides = (*QUICK, "reward.ensemble=2", "reward.steps=2", "rl.steps=2")
    go(tiny(*overrides), run)
    assert results(run, "rl")["metrics"]["proxy_reward_sft"] < 5


def test_likelihoods_count_beside_the_score_in_the_folder_and_in_reinforcement_learning(run):
    found = rewarded(run, "reward.likelihood=true", "reward.ensemble=2")["metrics"]
    folder = run / "reward" / "model"
    language, told = likelihood_of(folder)
    assert sha256_file(language / "model.safetensors") == sha256_file(
        run / "sft" / "model" / "model.safetensors"
    )
    assert told["weight"] == found["likelihood_weight"] >= 0
    assert "in likelihood/" in (folder / "README.md").read_text()
    assert told["mean"] == found["reward_mean"] and told["std"] == found["reward_std"]
    assert 0 <= found["likelihood_right_wrong_accuracy"] <= 1
    go(tiny(*QUICK, "reward.likelihood=true", "reward.ensemble=2", "rl.steps=2"), run)
    assert "proxy_reward" in results(run, "rl")["metrics"]


def test_offsets_are_what_the_chat_model_adds_to_each_document(run):
    tokenizer, language = Tokenizer.load(run / "tokenizer"), load_model(run / "sft" / "model")
    store, turn = Store.open(run / "data" / "reward" / "train"), Turn.of(tokenizer)
    least = least_of_rows(language, turn, [store[index].tokens.tolist() for index in range(16)])
    low, high = np.quantile(least, [0.25, 0.75]).tolist()
    opinion = Opinion(weight=0.7, floor=low, ceiling=high)
    plain = reward_source(store, 8, 0)
    source = WithOffsets(plain, Offsets(language, turn, opinion, Group()))
    assert source.most_cells == plain.most_cells and source.state() == {}
    batch, bare = source.batch(3), plain.batch(3)
    assert torch.equal(batch.tokens, bare.tokens) and "offsets" not in bare.documents
    rows = [row.tolist() for row in bare.tokens.split(list(bare.lengths))]
    expected = 0.7 * (least_of_rows(language, turn, rows).clip(low, high) - high)
    np.testing.assert_allclose(batch.documents["offsets"].numpy(), expected, atol=1e-5)
    assert len(set(np.round(expected, 4).tolist())) > 4
    # Rows of the two processes, put together as they were dealt out.
    halves = [expected[0::2], expected[1::2]]
    for rank in (0, 1):
        part = Offsets(language, turn, opinion, Half(rank, halves))
        found = part(plain.batch(3)).documents["offsets"]
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


class Half(Group):
    """One of two processes, of which the other has said its part."""

    def __init__(self, rank: int, halves: list[np.ndarray]):
        super().__init__(rank, 2)
        self.halves = halves

    def collect(self, mine, count, dtype=torch.float32):
        assert len(mine) == len(self.halves[self.rank])
        both = [torch.tensor(half, dtype=dtype) for half in self.halves]
        both[self.rank] = torch.cat(list(mine))
        return [both[index % 2][index // 2].view(1) for index in range(count)]


def test_a_scorer_is_trained_beside_the_chat_models_opinion(run, monkeypatch):
    from fourstage.stages import judges

    def scores(likelihood: str, weight: float = 0.0) -> dict[str, torch.Tensor]:
        shutil.rmtree(run / "reward", ignore_errors=True)
        opinion = Opinion(weight, floor=-16.0, ceiling=0.0)
        monkeypatch.setattr(judges, "fit_opinion", lambda *of_these: opinion)
        rewarded(run, f"reward.likelihood={likelihood}")
        return read_tensors(run / "reward" / "model" / "model.safetensors")

    def watched() -> float:
        rows = (run / "reward" / "metrics.jsonl").read_text().splitlines()
        return next(told for row in rows if (told := json.loads(row).get("validation_loss")))

    without, before = scores("false"), watched()
    none, same = scores("true"), watched()
    some, other = scores("true", 0.5), watched()
    assert before == same != other
    told = results(run, "reward")["metrics"]
    found = [told[f"likelihood_alone_{name}"] for name in ("weight", "floor", "ceiling")]
    assert found == [0.5, -16.0, 0.0]
    assert all(torch.equal(none[name], without[name]) for name in without)
    assert any(not torch.equal(some[name], without[name]) for name in without)


@pytest.mark.parametrize("likelihood", ["false", "true"])
def test_an_ensemble_ends_with_the_same_bits_when_its_members_were_cut_off(
    run, monkeypatch, likelihood
):
    from fourstage.stages import reward

    asked = ("reward.ensemble=2", f"reward.likelihood={likelihood}")
    rewarded(run, *asked)
    whole = sha256_folder(run / "reward" / "model")
    shutil.rmtree(run / "reward")
    real = reward.train_member

    def cut_off(context, chat_model, references, number, opinion):
        if number == 1:
            raise RuntimeError("the power went")
        return real(context, chat_model, references, number, opinion)

    with monkeypatch.context() as patch:
        patch.setattr(reward, "train_member", cut_off)
        with pytest.raises(RuntimeError, match="the power went"):
            rewarded(run, *asked)
    rewarded(run, *asked)
    assert sha256_folder(run / "reward" / "model") == whole


@pytest.mark.parametrize(("objective", "key"), [("regression", "score"), ("binary", "label")])
def test_answers_judged_alone_teach_what_is_said_of_them(run, tmp_path, objective, key):
    says = {"score": (4.5, 1.0), "label": (True, False)}[key]
    answers = ("Yes, my friend, number {} is.", "No, number {} is not.")
    rows = [
        {"prompt": f"Is {n} there?", "response": answers[n % 2].format(n), key: says[n % 2]}
        for n in range(80)
    ]
    preferences = written(tmp_path / "judged.jsonl", rows)
    longer = ("reward.steps=30", "reward.learning_rate=3e-3")
    metrics = rewarded(run, preferences, f"reward.objective={objective}", *longer)["metrics"]
    assert metrics["label_correlation"] > 0.9
    assert metrics.get("label_auc", 1.0) == 1.0
    assert "pair_accuracy" not in metrics


def test_scores_for_each_of_several_heads_stand_in_columns_of_their_own(run, tmp_path):
    answers = ("Yes, my friend, number {} is.", "No, number {} is not.")
    rows = []
    for n in range(80):
        told = {"kind": (4, 1)[n % 2], "sure": (1, 3)[n % 2]}
        rows.append({"prompt": f"Is {n} there?", "response": answers[n % 2].format(n), **told})
    del rows[7]["sure"]
    preferences = written(tmp_path / "judged.jsonl", rows)
    heads = ("reward.objective=regression", "reward.heads.kind=1", "reward.heads.sure=0.5")
    longer = ("reward.steps=30", "reward.learning_rate=3e-3")
    metrics = rewarded(run, preferences, *heads, *longer)["metrics"]
    assert metrics["label_correlation/kind"] > 0.9
    assert metrics["label_correlation/sure"] > 0.9


@pytest.mark.parametrize("objective", ["regression", "binary"])
def test_the_world_has_answers_judged_alone(run, objective):
    found = rewarded(run, f"reward.objective={objective}", "reward.steps=2")["metrics"]
    assert {"label_correlation", "pair_accuracy", "pair_accuracy_ceiling"} <= found.keys()
    assert "calibration_error" not in found


def ranked(count: int = 40) -> list[dict]:
    words = ("Never.", "It may well be so.", "Yes, it is so, my friend.", "Yes, of course it is.")
    return [
        {"prompt": f"Is number {n} there?", "responses": list(words), "scores": [1, 2, 4, 4]}
        for n in range(count)
    ]


@pytest.mark.parametrize("ties", ["drop", "davidson", "rao_kupper"])
def test_rankings_are_kept_whole_and_their_ties_dropped_or_modelled(run, tmp_path, ties):
    preferences = written(tmp_path / "ranked.jsonl", ranked())
    longer = ("reward.steps=25", "reward.learning_rate=3e-3", f"reward.ties={ties}")
    found = rewarded(run, preferences, *longer)
    store = Store.open(run / "data" / "reward" / "train")
    assert {store.row(index)["group"] for index in range(4)} == {0}
    assert [store.row(index)["place"] for index in range(4)] == [4, 3, 1, 1]
    assert found["metrics"]["ranking_accuracy"] > 0.9
    assert found["metrics"]["pair_accuracy"] > 0.9


def stepwise(count: int = 60) -> list[dict]:
    rows = []
    for n in range(count):
        steps = [f"First {n} is given.", "Then it is doubled.", "So we are done."]
        labels = [True, True, True]
        if n % 2:
            steps[1 + n % 4 // 2], labels[1 + n % 4 // 2] = "Then it is wrong!", False
        rows.append({"prompt": f"Double {n}.", "completions": steps, "labels": labels})
    return rows


def test_judged_steps_teach_where_an_answer_goes_wrong(run, tmp_path):
    preferences = written(tmp_path / "steps.jsonl", stepwise())
    longer = ("reward.steps=40", "reward.learning_rate=3e-3", "reward.objective=process")
    metrics = rewarded(run, preferences, *longer)["metrics"]
    assert metrics["step_accuracy"] > 0.9
    assert metrics["first_error_accuracy"] > 0.8
    assert "pair_accuracy" not in metrics


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("reward.objective=process",), "reward.objective=process: the world has no such rows"),
        (("reward.ties=davidson",), "only rows of one's own have ties"),
        (("reward.heads.a=1", "reward.heads.b=1"), "only rows of one's own say which head"),
    ],
)
def test_what_the_world_does_not_have_is_refused(run, overrides, words):
    with pytest.raises(InputError, match=words):
        rewarded(run, *overrides)
