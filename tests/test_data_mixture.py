"""Mixtures: shares come out as written, and hold at every step of a run."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourstage.data.interleaving import Schedule, interleave
from fourstage.data.mixed import MixedSource, cells_by_source
from fourstage.data.mixture import Mix, shares
from fourstage.data.store import Store, write_store
from fourstage.errors import InputError

# Touvron et al., LLaMA, 2023, table 1: share, epochs, gigabytes on disk; 1.4T tokens are drawn.
LLAMA = {
    "commoncrawl": (0.670, 1.10, 3300),
    "c4": (0.150, 1.06, 783),
    "github": (0.045, 0.64, 328),
    "wikipedia": (0.045, 2.45, 83),
    "books": (0.045, 2.23, 85),
    "arxiv": (0.025, 1.06, 92),
    "stackexchange": (0.020, 1.03, 78),
}
LLAMA_SHARES = {name: row[0] for name, row in LLAMA.items()}
# Tokens an epoch of each of them has, in billions, as its share and epochs have it.
LLAMA_TOKENS = [852.7, 198.1, 98.4, 25.7, 28.3, 33.0, 27.2]
quick = settings(max_examples=40, deadline=None)


def test_without_weights_every_source_is_read_at_the_same_pace() -> None:
    mix = shares({"a": 300, "b": 100}, run_tokens=800)
    assert mix.shares == pytest.approx({"a": 0.75, "b": 0.25})
    assert [row["epochs"] for row in mix.table()] == pytest.approx([2.0, 2.0])


def test_temperature_lifts_small_sources() -> None:
    mix = shares({"large": 10_000, "small": 100}, temperature=2)
    assert mix.shares == pytest.approx({"large": 100 / 110, "small": 10 / 110})
    flat = shares({"large": 10**12, "small": 1}, temperature=1e6)
    assert flat.shares == pytest.approx({"large": 0.5, "small": 0.5}, abs=1e-4)


def test_weights_of_any_sum_are_shares() -> None:
    assert shares({"a": 1, "b": 1}, {"a": 6, "b": 2}).shares == pytest.approx(
        {"a": 0.75, "b": 0.25}
    )
    assert shares({"a": 1, "b": 0}, {"a": 3, "b": 0}).shares == {"a": 1.0, "b": 0.0}


def test_the_table_is_that_of_llama() -> None:
    tokens = {name: int(n * 1e9) for name, n in zip(LLAMA, LLAMA_TOKENS, strict=True)}
    sizes = {name: row[2] * 10**9 for name, row in LLAMA.items()}
    weights = {name: 100 * share for name, share in LLAMA_SHARES.items()}
    mix = shares(tokens, weights, run_tokens=1_400_000_000_000)
    for row in mix.table(sizes):
        share, epochs, gigabytes = LLAMA[row["source"]]
        assert row["share"] == pytest.approx(share)
        assert round(row["epochs"], 2) == epochs
        assert row["tokens"] == pytest.approx(share * 1.4e12)
        assert row["bytes"] == gigabytes * 10**9


def test_what_exceeds_a_cap_goes_to_the_others_in_proportion() -> None:
    tokens = {"a": 1000, "b": 100, "c": 1000}
    mix = shares(tokens, {"a": 3, "b": 4, "c": 1}, run_tokens=1000, max_epochs={"b": 2})
    assert mix.shares == pytest.approx({"a": 0.6, "b": 0.2, "c": 0.2})


def test_a_cap_reached_by_the_redistributed_tokens_holds_too() -> None:
    tokens = {"a": 1000, "b": 100, "c": 260}
    mix = shares(tokens, {"a": 1, "b": 8, "c": 1}, run_tokens=1000, max_epochs=1)
    assert mix.shares == pytest.approx({"a": 0.64, "b": 0.1, "c": 0.26})


@quick
@given(
    st.lists(st.tuples(st.integers(1, 1000), st.floats(0.01, 10)), min_size=1, max_size=6),
    st.floats(0.1, 5),
    st.floats(0.1, 1),
)
def test_water_filling_caps_every_source_and_fills_the_run(sources, cap, filled) -> None:
    tokens = {f"s{i}": size for i, (size, _) in enumerate(sources)}
    weights = {f"s{i}": weight for i, (_, weight) in enumerate(sources)}
    run = max(1, int(cap * sum(tokens.values()) * filled))
    if run > cap * sum(tokens.values()):
        return
    drawn = {row["source"]: row for row in shares(tokens, weights, 1, run, cap).table()}
    assert sum(row["tokens"] for row in drawn.values()) == pytest.approx(run)
    assert all(row["epochs"] <= cap * (1 + 1e-9) for row in drawn.values())
    # Sources below their cap keep their proportions; no capped one would have had less.
    pace = {name: row["tokens"] / weights[name] for name, row in drawn.items()}
    free = [pace[name] for name, row in drawn.items() if row["epochs"] < cap * (1 - 1e-9)]
    if free:
        assert free == pytest.approx([free[0]] * len(free))
        assert max(pace.values()) <= free[0] * (1 + 1e-9)


def test_caps_that_cannot_fill_the_run_say_what_is_missing() -> None:
    with pytest.raises(InputError, match=r"500 of 2,000 tokens are missing.*only 1,500"):
        shares({"a": 1000, "b": 500}, run_tokens=2000, max_epochs=1)
    with pytest.raises(InputError, match="needs the length of the run"):
        shares({"a": 1000}, max_epochs=1)


def test_phases_anneal_on_the_best_data() -> None:
    phases = [
        {"until": 0.9, "weights": {"web": 9, "books": 1}},
        {"until": 1, "weights": {"books": 1}},
    ]
    mix = shares({"web": 1000, "books": 100}, phases=phases, run_tokens=1000)
    assert mix.shares == pytest.approx({"web": 0.81, "books": 0.19})
    assert mix.expected(950, 1000).tolist() == pytest.approx([810, 140])
    assert mix.expected(1100, 1000).tolist() == pytest.approx([810, 290])


def test_caps_bind_the_earlier_phases_first() -> None:
    phases = [
        {"until": 0.9, "weights": {"web": 9, "books": 1}},
        {"until": 1, "weights": {"books": 1}},
    ]
    mix = shares({"web": 1000, "books": 100}, None, 1, 1000, {"books": 1.3}, phases)
    assert mix.phases[1].shares == (0.0, 1.0)
    assert mix.shares == pytest.approx({"web": 0.87, "books": 0.13})


def test_a_cap_used_up_by_a_later_phase_leaves_nothing_for_the_earlier() -> None:
    weights = {"web": 3.0, "books": 1.0}
    phases = [{"until": 0.9, "weights": weights}, {"until": 1, "weights": {"books": 1.0}}]
    cap = 0.1 * 1000 / 300
    mix = shares({"web": 1000, "books": 300}, None, 1, 1000, {"books": cap}, phases)
    assert mix.phases[0].shares == (1.0, 0.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weights": {"a": 1}}, "b without a weight"),
        ({"weights": {"a": 1, "bb": 1}}, "no source 'bb'; did you mean 'b'"),
        ({"weights": {"a": 0, "b": 0}}, "one is above 0"),
        ({"weights": {"a": -1, "b": 2}}, "0 or more"),
        ({"weights": {"a": 1, "b": float("nan")}}, "0 or more"),
        ({"max_epochs": {"c": 1}, "run_tokens": 5}, "max_epochs: there is no source 'c'"),
        ({"phases": [{"until": 0.9, "weights": {"a": 1, "b": 1}}]}, "the last is 1"),
        ({"phases": [{"until": 1.0, "weights": {"a": 1}}]}, "b without a weight"),
    ],
)
def test_mixtures_that_cannot_be_are_refused(arguments, message) -> None:
    with pytest.raises(InputError, match=message):
        shares({"a": 10, "b": 10}, **arguments)


def test_an_empty_source_is_refused_unless_it_is_not_read() -> None:
    assert shares({"a": 10, "b": 0}).shares == {"a": 1.0, "b": 0.0}
    with pytest.raises(InputError, match="b has no text left"):
        shares({"a": 10, "b": 0}, {"a": 1, "b": 1})


def _pieces(rng: np.random.Generator, cells: int, largest: int, kind: str) -> np.ndarray:
    """Sizes of at most `largest` that sum to `cells`."""
    sizes: list[int] = []
    while cells:
        drawn = {"full": largest, "ragged": int(rng.integers(1, largest + 1))}
        drawn["both"] = largest if rng.random() < 0.5 else 1
        sizes.append(min(cells, drawn[kind]))
        cells -= sizes[-1]
    return np.array(sizes, np.int64)


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 2**32),
    st.integers(2, 12),
    st.sampled_from([1, 5, 64, 500]),
    st.sampled_from([0.1, 0.5, 10.0]),
    st.lists(st.sampled_from(["full", "ragged", "both"]), min_size=12, max_size=12),
)
def test_interleaving_keeps_tijdemans_bound_after_every_piece(
    seed, sources, largest, evenness, kinds
) -> None:
    rng = np.random.default_rng(seed)
    cells = np.ceil(rng.dirichlet(np.full(sources, evenness)) * largest * 300).astype(int) + 1
    sizes = [_pieces(rng, int(n), largest, kind) for n, kind in zip(cells, kinds, strict=False)]
    order = interleave(sizes)
    assert np.bincount(order, minlength=sources).tolist() == [len(own) for own in sizes]
    brought = np.zeros((len(order), sources))
    for source, own in enumerate(sizes):
        brought[order == source, source] = own
    brought = brought.cumsum(0)
    apart = np.abs(brought - brought.sum(1, keepdims=True) * (cells / cells.sum()))
    longest = max(own.max() for own in sizes)
    assert apart.max() <= longest * (1 - 1 / (2 * sources - 2)) * (1 + 1e-9)


def test_interleaving_one_source_or_none_keeps_its_order() -> None:
    none = np.zeros(0, np.int64)
    assert interleave([none, np.array([3, 2])]).tolist() == [1, 1]
    assert interleave([none, none]).tolist() == []


@quick
@given(
    st.lists(st.floats(1e-7, 1), min_size=1, max_size=8),
    st.lists(st.booleans(), min_size=8, max_size=8),
    st.integers(1, 10**7),
)
def test_blocks_follow_each_other_and_never_take_back(weights, present, run) -> None:
    names = [f"s{i}" for i in range(len(weights))]
    early = {n: w for n, w, is_in in zip(names, weights, present, strict=False) if is_in}
    phases = [{"until": 1.0, "weights": dict(zip(names, weights, strict=True))}]
    if early:
        phases.insert(0, {"until": 0.3, "weights": early})
    mix = shares(dict.fromkeys(names, 1), phases=phases)
    schedule = Schedule(mix, run, 16)
    cell = 0
    for _ in range(20):
        block = schedule.at(cell)
        assert block.first == cell == schedule.at(block.last - 1).first
        assert (block.after >= block.before).all() and block.before.sum() == cell
        assert block.after.sum() == block.last > cell
        assert np.abs(block.after - mix.expected(block.last, run)).max() < 3
        cell = block.last


def _store(folder, lengths: list[list[int]]) -> tuple[Store, np.ndarray, list[str]]:
    """A store whose tokens are numbered, documents of all sources in turn."""
    tagged = [(n, s) for s, own in enumerate(lengths) for n in own]
    tagged = [tagged[i] for i in np.random.default_rng(0).permutation(len(tagged))]
    starts = np.cumsum([0, *(n for n, _ in tagged)])
    rows = [list(range(a, b)) for a, b in pairwise(starts.tolist())]
    ids = np.array([s for _, s in tagged], np.uint16)
    return write_store(folder / "store", rows), ids, [f"s{i}" for i in range(len(lengths))]


def _lengths(rng: np.random.Generator, documents: int, longest: int) -> list[int]:
    return rng.integers(2, longest, documents).tolist()


def _walk(source: MixedSource, ids: np.ndarray, sources: int, steps: int) -> np.ndarray:
    """[steps, sources] cells drawn of each source, counted from the parts of each step."""
    drawn = np.zeros((steps, sources), np.int64)
    for step in range(steps):
        for number, _, _, take in source.at(step):
            drawn[step, number] += take
    return drawn.cumsum(0)


def _furthest(mix: Mix, drawn: np.ndarray, run: int) -> float:
    """The furthest that a source was from its share of what had been drawn, at any step."""
    return max(float(np.abs(row - mix.expected(row.sum(), run)).max()) for row in drawn)


ANNEAL = [
    {"until": 0.13, "weights": {"s0": 1, "s1": 1, "s2": 0.01}},
    {"until": 0.7, "weights": {"s0": 8, "s1": 1, "s2": 1, "s3": 0.5, "s4": 0.01}},
    {"until": 1.0, "weights": {"s1": 0.2, "s3": 5}},
]
MIXTURES: dict[str, dict[str, Any]] = {
    "llama": {
        "weights": dict(zip([f"s{i}" for i in range(7)], LLAMA_SHARES.values(), strict=True))
    },
    "tiny shares": {"weights": {"s0": 0.9975, "s1": 0.001, "s2": 0.001, "s3": 0.0005}},
    "natural": {},
    "flat": {"temperature": 100.0},
    "phases": {"phases": ANNEAL},
}


@pytest.mark.parametrize("name", MIXTURES)
@pytest.mark.parametrize("batch_tokens", [150, 1024, 10_000])
def test_at_every_step_sources_are_within_a_row_of_their_share(
    tmp_path, name, batch_tokens
) -> None:
    settings, context, steps = MIXTURES[name], 128, 600
    named = settings.get("weights") or {f"s{i}": 1 for i in range(5 if "phases" in settings else 7)}
    rng = np.random.default_rng(1)
    lengths = [_lengths(rng, 30 * (i + 1), 60 + 90 * i) for i in range(len(named))]
    store, ids, names = _store(tmp_path, lengths)
    mix = shares(cells_by_source(store.lengths, ids, names), **settings)
    source = MixedSource(store, ids, names, mix, batch_tokens, 7, context, steps)
    drawn = _walk(source, ids, len(names), steps)
    assert _furthest(mix, drawn, steps * batch_tokens) < context
    assert np.abs(drawn.sum(1) - batch_tokens * np.arange(1, steps + 1)).max() < context


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_any_mixture_is_within_a_row_of_its_shares(tmp_path_factory, data) -> None:
    count = data.draw(st.integers(1, 9))
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    lengths = [
        _lengths(rng, int(rng.integers(9, 40)), int(rng.integers(60, 400))) for _ in range(count)
    ]
    store, ids, names = _store(tmp_path_factory.mktemp("mixed"), lengths)
    weights = dict(zip(names, rng.dirichlet(np.full(count, 0.3)) + 1e-3, strict=True))
    phases = [{"until": 1.0, "weights": weights}]
    if data.draw(st.booleans()):
        first = {name: float(rng.random()) for name in names if rng.random() < 0.6}
        first = first or {names[0]: 1.0}
        phases.insert(0, {"until": float(rng.uniform(0.01, 0.9)), "weights": first})
    mix = shares(cells_by_source(store.lengths, ids, names), phases=phases)
    context, steps = data.draw(st.sampled_from([64, 200])), 150
    batch_tokens = data.draw(st.integers(context, 3000))
    overlap = data.draw(st.sampled_from([0, 9]))
    source = MixedSource(store, ids, names, mix, batch_tokens, 0, context, steps, overlap)
    drawn = _walk(source, ids, count, steps)
    assert _furthest(mix, drawn, steps * batch_tokens) < context
    for step in (0, 1, 77, 149, 150):
        told = [tokens for tokens, _ in source.drawn(step).values()]
        assert told == (drawn[step - 1].tolist() if step else [0] * count)


def test_over_ten_million_tokens_shares_are_exact_to_a_thousandth(tmp_path) -> None:
    rng = np.random.default_rng(2)
    store, ids, names = _store(tmp_path, [_lengths(rng, 200, 900) for _ in LLAMA])
    weights = dict(zip(names, LLAMA_SHARES.values(), strict=True))
    mix = shares(cells_by_source(store.lengths, ids, names), weights)
    source = MixedSource(store, ids, names, mix, 8192, 0, 512, 1221)
    drawn = np.array([tokens for tokens, _ in source.drawn(1221).values()])
    assert drawn.sum() >= 10_000_000
    wanted = np.array(list(LLAMA_SHARES.values())) * drawn.sum()
    assert (np.abs(drawn - wanted) / drawn.sum()).max() < 0.001
    assert (np.abs(drawn - wanted) / wanted).max() < 0.001 + 512 / wanted.min()


def test_every_transition_of_a_source_comes_once_in_each_of_its_epochs(tmp_path) -> None:
    lengths = [[40, 9, 2, 77, 1], [5, 130], [300]]
    store, ids, names = _store(tmp_path, lengths)
    mix = shares(cells_by_source(store.lengths, ids, names), {"s0": 0.6, "s1": 0.3, "s2": 0.1})
    source = MixedSource(store, ids, names, mix, 64, 0, 16, 400)
    owner = np.repeat(ids, store.lengths)
    seen: list[list[int]] = [[], [], []]
    for step in range(400):
        batch = source.batch(step)
        assert (batch.targets == batch.tokens + 1).all() and max(batch.lengths) <= 16
        for token in batch.tokens.tolist():
            seen[owner[token]].append(token)
    for own, stream in zip(lengths, seen, strict=True):
        epoch = sum(own) - len(own)
        passes = [Counter(stream[i : i + epoch]) for i in range(0, len(stream) - epoch, epoch)]
        assert passes and all(c == passes[0] and set(c.values()) == {1} for c in passes)
        assert len(passes[0]) == epoch


def test_a_step_is_the_same_visited_alone_or_in_order(tmp_path) -> None:
    rng = np.random.default_rng(3)
    store, ids, names = _store(tmp_path, [_lengths(rng, 20, 300) for _ in range(5)])
    mix = shares(cells_by_source(store.lengths, ids, names), phases=ANNEAL)
    arguments = (store, ids, names, mix, 700, 5, 64, 900)
    walked = MixedSource(*arguments)
    steps = [walked.batch(step) for step in range(900)]
    for step in (899, 0, 433, 434, 17, 898):
        alone = MixedSource(*arguments).batch(step)
        assert alone.lengths == steps[step].lengths
        assert (alone.tokens == steps[step].tokens).all()


def test_a_longer_run_begins_the_same(tmp_path) -> None:
    store, ids, names = _store(tmp_path, [[90] * 20, [50] * 9])
    mix = shares(cells_by_source(store.lengths, ids, names))
    short, long = (MixedSource(store, ids, names, mix, 300, 0, 32, steps) for steps in (50, 5000))
    assert all(short.at(step) == long.at(step) for step in range(60))


def test_a_source_without_text_is_refused(tmp_path) -> None:
    store, ids, names = _store(tmp_path, [[9, 9], [1]])
    mix = shares({"s0": 10, "s1": 10})
    with pytest.raises(InputError, match="s1 has no text"):
        MixedSource(store, ids, names, mix, 30, 0, 8, 10)
