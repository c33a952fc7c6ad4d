"""What replay promises: earlier text has its share of every step, and forgetting is measured."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_texts import chinese, english
from fourstage.data.drawing import mix_of, text_source
from fourstage.data.mixture import shares, with_share
from fourstage.data.prepared import PreparedData
from fourstage.data.store import Store
from fourstage.errors import InputError, Interrupted
from fourstage.files import read_json
from fourstage.planning import DataFacts, resolve
from fourstage.recipe import Recipe, load, recipe_from
from pipeline_support import folders, go, results, tiny, weights, whole_run

SHARE = 0.25


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A run on the embedded world: the earlier training."""
    return whole_run(tmp_path_factory.getbasetemp())


@pytest.fixture
def general(tmp_path) -> Path:
    """Files of earlier text, more of it than there is of one's own."""
    folder = tmp_path / "general"
    folder.mkdir()
    for number in range(120):
        (folder / f"{number}.txt").write_text(chinese(8, number))
    return folder


def continued(world: Path, text: Path, *overrides: str) -> Recipe:
    return tiny(
        f"pretrain.from={world / 'pretrain' / 'model'}",
        f"data.pretrain={text}",
        f"data.replay.share={SHARE}",
        "rl.max_new_tokens=32",
        *overrides,
    )


def store_of(run: Path) -> Store:
    return PreparedData(run).store("pretrain", "train")


def earlier_rows(store: Store) -> list[list[int]]:
    number = store.source_names.index("replay")
    return [store[i].tokens.tolist() for i in np.flatnonzero(store.sources == number)]


@given(
    tokens=st.lists(st.integers(100, 10_000), min_size=1, max_size=4),
    share=st.floats(0.01, 0.9),
    cut=st.floats(0.1, 0.9),
)
def test_a_share_is_taken_from_all_sources_alike_at_any_time(tokens, share, cut):
    names = {str(number): count for number, count in enumerate(tokens)}
    weights = {name: number + 1.0 for number, name in enumerate(names)}
    even = dict.fromkeys(names, 1.0)
    phases = [{"until": cut, "weights": weights}, {"until": 1.0, "weights": even}]
    own = shares(names, phases=phases, run_tokens=1000)
    mix = with_share(own, "replay", 500, share)
    for before, after in zip(own.phases, mix.phases, strict=True):
        assert sum(after.shares) == pytest.approx(1)
        assert after.shares[-1] == share
        assert after.shares[:-1] == pytest.approx([(1 - share) * each for each in before.shares])


def test_a_run_replays_the_text_of_its_parent_by_its_share(world, text, tmp_path):
    recipe = continued(world, text, f"data.replay.from={world}")
    said = go(recipe, tmp_path / "run", only="pretrain")
    assert any(line.startswith("mixture: replay 25.0%") for line in said)
    earlier, store = store_of(world), store_of(tmp_path / "run")
    rows = earlier_rows(store)
    own = store.tokens_total - sum(map(len, rows))
    assert 0.4 * own < sum(map(len, rows)) <= 1.1 * own
    # The vocabulary is the parent's, so the very rows that it was trained on.
    known = {tuple(earlier[i].tokens.tolist()) for i in range(len(earlier))}
    assert {tuple(row) for row in rows} <= known

    resolved = load(tmp_path / "run" / "recipe.yaml")
    steps = resolved.pretrain.steps or 0
    source = text_source(resolved, store, resolved.pretrain.step_cells(), 192)
    drawn = {name: tokens for name, (tokens, _) in source.drawn(steps).items()}
    assert drawn["replay"] == pytest.approx(SHARE * sum(drawn.values()), abs=192)
    assert mix_of(resolved, store).shares["replay"] == pytest.approx(SHARE)

    numbers = results(tmp_path / "run", "pretrain")
    measured = numbers["metrics"]
    before = read_json(world / "pretrain" / "results.json")["metrics"]["validation_bits_per_byte"]
    assert measured["replay_bits_per_byte_before"] == pytest.approx(before, rel=0.1)
    assert set(numbers["intervals"]) >= {"replay_bits_per_byte", "validation_bits_per_byte_before"}
    card = (tmp_path / "run" / "pretrain" / "model" / "README.md").read_text()
    assert "replay_bits_per_byte_before" in card
    assert "replay" in (tmp_path / "run" / "report.html").read_text()


def test_less_is_forgotten_of_what_is_replayed(world, text, tmp_path):
    numbers = {}
    for share in ("0.01", "0.5"):
        recipe = continued(world, text, f"data.replay.from={world}", f"data.replay.share={share}")
        go(recipe, tmp_path / share, only="pretrain")
        numbers[share] = results(tmp_path / share, "pretrain")["metrics"]
    assert numbers["0.5"]["replay_bits_per_byte"] < numbers["0.01"]["replay_bits_per_byte"]
    assert numbers["0.01"]["validation_bits_per_byte"] < numbers["0.5"]["validation_bits_per_byte"]


def test_text_of_a_run_is_written_again_in_another_vocabulary(world, text, tmp_path):
    recipe = continued(
        world,
        text,
        f"data.replay.from={world}",
        "tokenizer.train=true",
        "tokenizer.vocab_size=320",
    )
    go(recipe, tmp_path / "run", only="pretrain")
    ours, theirs = PreparedData(tmp_path / "run").tokenizer(), PreparedData(world).tokenizer()
    assert ours.vocab_size == 320 != theirs.vocab_size
    known = {theirs.decode(row.tokens) for row in store_of(world)}
    texts = {ours.decode(row) for row in earlier_rows(store_of(tmp_path / "run"))}
    assert texts and texts <= known


def test_files_are_prepared_like_ones_own_text_and_stay_out_of_what_is_made_of_it(
    world, text, general, tmp_path
):
    (general / "again.txt").write_text(chinese(8, 0))
    run = tmp_path / "run"
    go(continued(world, text, f"data.replay.from={general}"), run, only="pretrain")
    rows = earlier_rows(store_of(run))
    texts = [PreparedData(run).tokenizer().decode(row) for row in rows]
    assert texts and len(set(texts)) == len(texts)
    assert all("Ada" not in each for each in texts)
    report = read_json(run / "data" / "report.json")
    assert report["pretrain"]["replay"]["train"] == len(rows)
    assert report["corpus"]["sources"].keys() == {text.name}
    assert len(PreparedData(run).replayed_documents()) == report["pretrain"]["replay"]["validation"]


def test_sources_are_mixed_by_weight_beside_what_is_replayed(world, text, general, tmp_path):
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "a.txt").write_text(english(60, 99))
    recipe = continued(
        world, text, f"data.pretrain={text},{tmp_path / 'more'}", f"data.replay.from={general}"
    )
    weighted = {
        **recipe.to_dict(),
        "data": {**recipe.to_dict()["data"], "mixture": {"weights": {text.name: 1, "more": 3}}},
    }
    said = go(recipe_from(weighted), tmp_path / "run", only="pretrain")
    told = {line.split()[1]: line.split()[2] for line in said if line.startswith("mixture: ")}
    assert {name: share.strip(",") for name, share in told.items()} == {
        text.name: "18.8%",
        "more": "56.2%",
        "replay": "25.0%",
    }


def test_the_world_can_be_gone_on_with_beside_earlier_text(world, general, tmp_path):
    recipe = tiny(f"pretrain.from={world / 'pretrain' / 'model'}", f"data.replay.from={general}")
    said = go(recipe, tmp_path / "run", only="pretrain")
    assert any(line.startswith("mixture: replay 5.0%") for line in said)


def test_an_epoch_is_of_ones_own_text_with_its_replay_beside_it():
    values: dict[str, Any] = {
        "pretrain": {"epochs": 2},
        "data": {"pretrain": "text", "replay": {"from": "more", "share": SHARE}},
    }
    resolved, _ = resolve(recipe_from(values), DataFacts(pretrain_tokens=30_000))
    assert resolved.pretrain.tokens == 80_000


def test_a_run_that_was_cut_off_ends_with_the_same_bits(world, text, tmp_path):
    recipe = continued(world, text, f"data.replay.from={world}")
    go(recipe, tmp_path / "whole", only="pretrain")
    calls = 0

    def cut(*_: Any) -> list[dict[str, Any]]:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise Interrupted("stopped")
        return []

    with (
        mock.patch("fourstage.stages.pretrain.continuations", cut),
        pytest.raises(Interrupted),
    ):
        go(recipe, tmp_path / "cut", only="pretrain")
    assert any((tmp_path / "cut" / "pretrain" / "checkpoints").iterdir())
    assert not (tmp_path / "cut" / "pretrain" / "model").exists()
    said = go(recipe, tmp_path / "cut", only="pretrain")
    assert "pretrain: goes on" in said
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")


def test_another_share_repeats_pretraining_and_other_files_stop_the_run(
    world, text, general, tmp_path
):
    recipe = [f"data.replay.from={general}"]
    run = tmp_path / "run"
    go(continued(world, text, *recipe), run, only="pretrain")
    again = continued(world, text, *recipe, "data.replay.share=0.1")
    said = go(again, run, only="pretrain")
    assert "pretrain: run again, since its data changed" in said
    assert folders(run) == {"pretrain", "pretrain.1"}
    (general / "0.txt").write_text(chinese(8, 999))
    with pytest.raises(InputError, match=r"data\.replay.* changed since this run read it"):
        go(again, run, only="pretrain")
    assert go(again, run, only="pretrain", redo=True)[-1]


def test_a_source_called_replay_keeps_its_own_name_apart(text, general):
    sources = [{"path": str(text), "name": "replay"}, str(general)]
    recipe = recipe_from({"data": {"pretrain": sources, "replay": {"from": str(text)}}})
    assert [source.name for source in recipe.data.sources()] == ["replay#2", "general"]


def test_faults_name_the_key_and_what_to_write(world, text, tmp_path):
    with pytest.raises(InputError, match=r"data\.replay\.from.*nowhere"):
        go(continued(world, text, "data.replay.from=nowhere"), tmp_path / "a", only="pretrain")
    empty = shutil.copytree(world, tmp_path / "empty", ignore=shutil.ignore_patterns("data"))
    with pytest.raises(InputError, match="a run without prepared text: name the files"):
        go(continued(world, text, f"data.replay.from={empty}"), tmp_path / "b", only="pretrain")
    both = f"data.replay.from={world},{text}"
    with pytest.raises(InputError, match=r"names the run .* beside other text: name it alone"):
        go(continued(world, text, both), tmp_path / "c", only="pretrain")
    with pytest.raises(InputError, match=r"replay is read beside text of one's own"):
        recipe_from({"data": {"replay": {"from": "x"}}})
    with pytest.raises(InputError, match=r"data\.replay\.from"):
        recipe_from({"data": {"pretrain": "x", "replay": {"share": 0.1}}})
