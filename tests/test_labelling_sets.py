"""Sets of completions, labels on the disk, and the ranks and rows that come of them."""

from __future__ import annotations

import errno
import fcntl
import itertools
import os

import pytest
import torch

from fourstage.data.fromfiles import read_part
from fourstage.data.reading import find_files
from fourstage.errors import InputError, MachineError
from fourstage.files import write_lines
from fourstage.labelling.drawing import CompletionSet
from fourstage.labelling.labels import Label, LabelFile, read_labels
from fourstage.labelling.opening import Asked, open_set
from fourstage.labelling.ranks import ranks_of, rows_of
from fourstage.labelling.session import Session
from labelling_support import make_run, write_set


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    torch.set_num_threads(1)
    return make_run(tmp_path_factory.mktemp("runs") / "tiny")


def quiet(line: str) -> None:
    """Says nothing."""


def test_completions_are_drawn_once_and_stay_though_the_model_is_gone(run, tmp_path):
    folder = tmp_path / "set"
    first = open_set(run, folder, Asked(prompts=3, k=3), quiet)
    content = (folder / "completions.json").read_bytes()
    again = open_set(run / "nowhere", folder, Asked(), quiet)
    assert (folder / "completions.json").read_bytes() == content
    assert again.items == first.items and len(first.items) == 3
    for item in first.items:
        assert len({text.strip() for text in item.completions}) == 3
        assert all(text.strip() for text in item.completions)


def test_completions_that_repeat_are_drawn_again_and_greedy_ones_are_no_comparison(run, tmp_path):
    asked = Asked(prompts=6, k=4, temperature=0.5, max_new_tokens=1)
    held = open_set(run, tmp_path / "short", asked, quiet)
    assert all(len(set(item.completions)) == len(item.completions) for item in held.items)
    # Four draws of one token alone seldom differ: so many there are only by drawing again.
    assert sum(len(item.completions) == 4 for item in held.items) >= 3
    with pytest.raises(InputError, match="no prompt has two completions that differ"):
        open_set(run, tmp_path / "same", Asked(prompts=3, temperature=1e-6), quiet)
    assert len(open_set(run, tmp_path / "same", Asked(prompts=3), quiet).items) == 3


def test_more_prompts_leave_the_first_ones_as_they_are(run, tmp_path):
    few = open_set(run, tmp_path / "grown", Asked(prompts=3), quiet).items
    grown = open_set(run, tmp_path / "grown", Asked(prompts=7), quiet).items
    at_once = open_set(run, tmp_path / "whole", Asked(prompts=7), quiet).items
    assert grown[:3] == few and grown == at_once and len(grown) == 7
    assert len({str(item.task.prompt) for item in grown}) == 7


def test_another_seed_draws_other_completions_of_other_prompts(run, tmp_path):
    one = open_set(run, tmp_path / "one", Asked(prompts=4, seed=1), quiet).items
    two = open_set(run, tmp_path / "two", Asked(prompts=4, seed=2), quiet).items
    assert {item.id for item in one}.isdisjoint(item.id for item in two)


def test_a_set_refuses_what_it_was_not_drawn_with(run, tmp_path):
    open_set(run, tmp_path / "set", Asked(prompts=2), quiet)
    with pytest.raises(InputError, match=r"--k 3: the set in .* was drawn with 2; .*--set NAME"):
        open_set(run, tmp_path / "set", Asked(k=3), quiet)
    with pytest.raises(InputError, match=r"--max-new-tokens 5: .* drawn with 16"):
        open_set(run, tmp_path / "set", Asked(max_new_tokens=5), quiet)


def test_more_prompts_of_a_model_that_changed_are_refused(run, tmp_path):
    held = open_set(run, tmp_path / "set", Asked(prompts=2, stage="sft"), quiet)
    told = {**held.drawn.to_json(), "model": "another"}
    CompletionSet(held.folder, type(held.drawn)(**told), held.items).write()
    with pytest.raises(InputError, match="is not the model any more"):
        open_set(run, tmp_path / "set", Asked(prompts=3), quiet)
    assert len(open_set(run, tmp_path / "set", Asked(), quiet).items) == 2


def test_prompts_come_from_a_file_of_lines_or_rows(run, tmp_path):
    (tmp_path / "asked.txt").write_text("Count 3 hats.\n\nAdd 2 and 2.\nAdd 2 and 2.\n")
    said: list[str] = []
    asked = Asked(source=str(tmp_path / "asked.txt"), prompts=9)
    held = open_set(run, tmp_path / "lines", asked, said.append)
    assert {item.task.prompt for item in held.items} == {"Count 3 hats.", "Add 2 and 2."}
    assert held.drawn.source == "asked.txt"
    assert any("has 2 different prompts" in line for line in said)
    chat = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    write_lines(tmp_path / "rows.jsonl", [{"messages": chat}, {"messages": chat[1:]}])
    held = open_set(run, tmp_path / "rows", Asked(source=str(tmp_path / "rows.jsonl")), quiet)
    assert sorted(map(str, (item.task.prompt for item in held.items))) == ["Hi", str(chat)]


def test_prompts_longer_than_the_context_are_left_out_and_told(run, tmp_path):
    (tmp_path / "asked.txt").write_text("long " * 300 + "\nshort\n")
    said: list[str] = []
    held = open_set(run, tmp_path / "set", Asked(source=str(tmp_path / "asked.txt")), said.append)
    assert [item.task.prompt for item in held.items] == ["short"]
    assert any("1 of 2 prompts are left out" in line for line in said)


def test_two_processes_cannot_draw_the_same_set_at_once(run, tmp_path):
    folder = tmp_path / "set"
    open_set(run, folder, Asked(prompts=2), quiet)
    with (
        open(folder / ".drawing") as file,
        pytest.raises(InputError, match="another process draws"),
    ):
        fcntl.flock(file, fcntl.LOCK_EX)
        open_set(run, folder, Asked(prompts=4), quiet)
    assert len(open_set(run, folder, Asked(prompts=4), quiet).items) == 4


def test_a_damaged_set_is_refused(tmp_path):
    write_set(tmp_path)
    path = tmp_path / "completions.json"
    path.write_text(path.read_text().replace("answer 1.1", "answer 1.9"))
    with pytest.raises(InputError, match="is damaged"):
        CompletionSet.read(tmp_path)


# Labels


def label(item: str, best: int | None = 0, verdict: str = "best") -> Label:
    return Label(item, (0, 1), verdict, best if verdict == "best" else None)


def test_a_line_cut_by_a_kill_is_cut_back_and_the_rest_stands(tmp_path):
    path = tmp_path / "me.labels.jsonl"
    with LabelFile(path) as labels:
        labels.add(label("a"))
        labels.add(label("b", 1))
    whole = path.read_bytes()
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        assert len(read_labels(path)) == whole[:size].count(b"\n")
        with LabelFile(path) as labels:
            labels.add(label("c"))
        assert [each.item for each in read_labels(path)][-1] == "c"


def test_undo_takes_back_what_stands_also_after_a_restart(tmp_path):
    path = tmp_path / "me.labels.jsonl"
    with LabelFile(path) as labels:
        labels.add(label("a"))
        labels.add(label("b"))
        assert labels.undo() == label("b")
    with LabelFile(path) as labels:
        labels.add(label("b", 1))
        assert labels.undo() == label("b", 1) and labels.undo() == label("a")
        assert labels.undo() is None
    assert read_labels(path) == []
    assert path.read_bytes().count(b"\n") == 6


def test_what_a_full_disk_cut_short_is_taken_away(tmp_path, monkeypatch):
    path = tmp_path / "me.labels.jsonl"
    with LabelFile(path) as labels:
        labels.add(label("a"))
        before, write = path.read_bytes(), os.write

        def full(descriptor: int, line: bytes) -> int:
            if len(line) < 20:
                raise OSError(errno.ENOSPC, "full")
            return write(descriptor, line[:20])

        monkeypatch.setattr(os, "write", full)
        with pytest.raises(MachineError, match="the disk is full"):
            labels.add(label("b"))
        monkeypatch.undo()
        assert path.read_bytes() == before and labels.labels == [label("a")]
        labels.add(label("c"))
    assert read_labels(path) == [label("a"), label("c")]


def test_two_processes_cannot_label_under_one_name(tmp_path):
    with (
        LabelFile(tmp_path / "me.labels.jsonl"),
        pytest.raises(InputError, match="another process: end it, or write --labeller NAME"),
    ):
        LabelFile(tmp_path / "me.labels.jsonl")


@pytest.mark.parametrize(
    "line",
    [
        "nonsense",
        "[]",
        '{"undo": true}',
        '{"item": "a", "shown": [0, 1], "verdict": "good"}',
        '{"item": "a", "shown": [0, 1], "verdict": "best", "best": 2}',
        '{"item": "a", "shown": [0, 0], "verdict": "tie"}',
    ],
)
def test_a_line_that_is_no_label_is_named(tmp_path, line):
    path = tmp_path / "me.labels.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(InputError, match=r"me.labels.jsonl:1: no label"):
        read_labels(path)


# Ranks


def test_picking_the_best_of_the_rest_ranks_as_the_labeller_would(tmp_path):
    held = write_set(tmp_path, count=24, k=4)
    truths = list(itertools.permutations(range(4)))
    with LabelFile(tmp_path / "me.labels.jsonl") as labels:
        session = Session(held.items, labels, "me", 0)
        orders = set()
        while question := session.question():
            truth = truths[question.number - 1]
            orders.add(question.shown)
            best = min(question.shown, key=truth.__getitem__)
            session.answer(question, "best", question.shown.index(best))
        assert len(labels.labels) == 24 * 3
    given = read_labels(tmp_path / "me.labels.jsonl")
    for item, truth in zip(held.items, truths, strict=True):
        found = ranks_of(item, [each for each in given if each.item == item.id])
        assert found == tuple(1 + place for place in truth)
    assert len({order for order in orders if len(order) == 4}) > 5


def test_a_tie_of_the_rest_ends_a_prompt_and_a_skip_leaves_it_out(tmp_path):
    item = write_set(tmp_path, count=1, k=3).items[0]
    picked = Label(item.id, (2, 0, 1), "best", 2)
    assert ranks_of(item, [picked]) is None
    assert ranks_of(item, [picked, Label(item.id, (0, 1), "bad")]) == (2, 2, 1)
    assert ranks_of(item, [Label(item.id, (2, 0, 1), "tie")]) == (1, 1, 1)
    assert ranks_of(item, [picked, Label(item.id, (0, 1), "skip")]) is None


def test_the_order_shown_is_fixed_by_seed_pair_and_labeller_and_balanced(tmp_path):
    held = write_set(tmp_path, count=400)
    with LabelFile(tmp_path / "me.labels.jsonl") as labels:
        orders = {
            key: [Session([item], labels, *key).question().shown for item in held.items]
            for key in (("me", 0), ("me", 1), ("you", 0))
        }
        again = [Session([item], labels, "me", 0).question().shown for item in held.items]
    assert again == orders["me", 0]
    for one, other in itertools.combinations(orders.values(), 2):
        assert 150 < sum(a == b for a, b in zip(one, other, strict=True)) < 250
    assert 150 < orders["me", 0].count((0, 1)) < 250


# Rows


def read_back(path):
    rows = read_part(find_files(path, "data.preferences")[0], ("comparison", "ranking"), "p", 0.0)
    return {(str(r.messages), r.chosen, r.rejected) for r in [*rows.train, *rows.validation]}


TRICKY = ("Human: hi\n\nAssistant: no", '[{"role": "user"}]', " spaced\n", "\x01 a 'quote' 中文")


@pytest.mark.parametrize("form", ["pairs", "rankings"])
def test_the_reward_stage_reads_exactly_the_pairs_that_were_labelled(tmp_path, form):
    from fourstage.labelling.drawing import Item
    from fourstage.tasks import Task

    prompts = ["Human: Hi\n\nAssistant: ho\n\nHuman: And?", "Plain.", "Three?", "Tied?"]
    items = [Item(Task(prompt, "own", {}), TRICKY) for prompt in prompts]
    ranks = {items[0].id: (2, 1, 4, 3), items[1].id: (1, 1, 3, 4), items[3].id: (1, 1, 1, 1)}
    held = write_set(tmp_path / "set")
    held.items = items
    beside = {
        "labeller": "me",
        "model": "tiny/rl",
        "model_hash": "0",
        "temperature": 1.0,
        "seed": 0,
    }
    write_lines(tmp_path / "p.jsonl", rows_of(held, ranks, form, beside))
    # Of rankings the reader strips the answers.
    read = str.strip if form == "rankings" else str
    expected = {
        (str([{"role": "user", "content": item.task.prompt}]), read(better), read(worse))
        for item in items
        if item.id in ranks
        for (better, one), (worse, other) in itertools.permutations(
            zip(TRICKY, ranks[item.id], strict=True), 2
        )
        if one < other
    }
    assert read_back(tmp_path / "p.jsonl") == expected
    assert len(expected) == 6 + 5
