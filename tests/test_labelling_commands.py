"""`fourstage label` in the terminal: scripted sessions give exactly the files expected."""

from __future__ import annotations

import io
import shutil
import signal
import subprocess
import sys

import pytest
import torch

from fourstage.files import read_json
from fourstage.labelling.drawing import CompletionSet
from fourstage.labelling.labels import LabelFile
from fourstage.labelling.session import Session
from labelling_support import call, lines, make_run, write_set
from pipeline_support import environment, tiny


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    torch.set_num_threads(1)
    return make_run(tmp_path_factory.mktemp("runs") / "tiny")


@pytest.fixture
def run(made, tmp_path):
    """A run of its own, with a set of four prompts with two made-up completions each."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    shutil.copy(made / "recipe.yaml", folder)
    shutil.copytree(made / "rl" / "model", folder / "rl" / "model")
    write_set(folder / "labels" / "rl")
    return folder


def piped(monkeypatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))


def seen(run, labeller: str = "me", name: str = "rl") -> list[tuple[int, ...]]:
    """The order in which each item's completions are shown, worked out apart."""
    held = CompletionSet.read(run / "labels" / name)
    with LabelFile(run / "unused.labels.jsonl") as labels:
        return [Session([item], labels, labeller, 0).question().shown for item in held.items]


def row(index: int, chosen: int, labeller: str = "me") -> dict:
    """The comparison that a labeller's choice is written as."""

    def said(number: int) -> list[dict[str, str]]:
        return [{"role": "assistant", "content": f"answer {index}.{number}"}]

    return {
        "prompt": [{"role": "user", "content": f"Question {index}?"}],
        "chosen": said(chosen),
        "rejected": said(1 - chosen),
        "labeller": labeller,
        "model": "tiny/rl",
        "model_hash": "0" * 64,
        "temperature": 1.0,
        "seed": 0,
    }


def test_a_scripted_session_gives_exactly_the_file_expected(run, capsys, monkeypatch):
    orders = seen(run)
    piped(monkeypatch, "1\n2\nt\nb\n")
    code, out, _ = call(capsys, "label", run)
    labels = run / "labels" / "rl"
    assert code == 0 and "everything is labelled" in out
    assert lines(labels / "me.preferences.jsonl") == [row(0, orders[0][0]), row(1, orders[1][1])]
    given = lines(labels / "me.labels.jsonl")
    assert [each["verdict"] for each in given] == ["best", "best", "tie", "bad"]
    assert [tuple(each["shown"]) for each in given] == orders
    assert "me: 4 of 4 prompts, 4 pairs, 2 of them ties; 1 prompts all bad, 0 skipped" in out


def test_what_is_shown_tells_nothing_of_which_is_which(run, capsys, monkeypatch):
    piped(monkeypatch, "q\n")
    _, out, _ = call(capsys, "label", run)
    first, second = seen(run)[0]
    assert out.index(f"[1]\nanswer 0.{first}\n") < out.index(f"[2]\nanswer 0.{second}\n")
    assert "gold" not in out and "0" * 64 not in out


def test_undo_takes_the_last_answer_back_and_asks_again(run, capsys, monkeypatch):
    orders = seen(run)
    piped(monkeypatch, "u\n1\nu\n2\n1\n1\ns\nu\n2\n\n")
    code, _, err = call(capsys, "label", run)
    assert code == 0 and "nothing to undo" in err
    chosen = [orders[0][1], orders[1][0], orders[2][0], orders[3][1]]
    expected = [row(index, best) for index, best in enumerate(chosen)]
    assert lines(run / "labels" / "rl" / "me.preferences.jsonl") == expected


def test_the_last_answer_can_be_undone_too(run, capsys, monkeypatch):
    piped(monkeypatch, "1\n1\n1\n1\nu\nt\n\n")
    code, out, _ = call(capsys, "label", run)
    assert code == 0 and "4 pairs, 1 of them ties" in out


def test_keys_that_are_none_change_nothing(run, capsys, monkeypatch):
    piped(monkeypatch, "3\n0\nx\n²\n?\n\nq\n")
    code, out, err = call(capsys, "label", run)
    assert code == 0 and err.count("is no key: write 1 to 2") == 4 and "undo the last" in err
    assert (run / "labels" / "rl" / "me.labels.jsonl").read_bytes() == b""
    assert "no comparisons yet" in out


def test_killed_in_the_middle_and_begun_again_it_gives_the_same_file(run, capsys, monkeypatch):
    piped(monkeypatch, "1\n2\n1\n2\n")
    call(capsys, "label", run, "--labeller", "whole")
    whole = (run / "labels" / "rl" / "whole.labels.jsonl").read_bytes()
    for name in ("whole.labels.jsonl", "whole.preferences.jsonl"):
        (run / "labels" / "rl" / name).rename(run / f"kept.{name}")
    process = subprocess.Popen(
        [sys.executable, "-m", "fourstage", "label", run, "--labeller", "whole"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment(),
    )
    process.stdin.write(b"1\n2\n")
    process.stdin.flush()
    while b"prompt 3 of 4" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    piped(monkeypatch, "1\n2\n")
    code, out, _ = call(capsys, "label", run, "--labeller", "whole")
    assert code == 0 and "prompt 1 of 4" not in out and "prompt 3 of 4" in out
    assert (run / "labels" / "rl" / "whole.labels.jsonl").read_bytes() == whole
    again = (run / "labels" / "rl" / "whole.preferences.jsonl").read_bytes()
    assert again == (run / "kept.whole.preferences.jsonl").read_bytes()


def test_two_labellers_have_a_file_each_and_are_compared(run, capsys, monkeypatch):
    chosen = {"ann": [0, 0, 1, None], "bob": [0, 1, 1, None]}
    for name, wanted in chosen.items():
        orders = seen(run, name)
        keys = [
            "t" if best is None else str(1 + order.index(best))
            for order, best in zip(orders, wanted, strict=True)
        ]
        piped(monkeypatch, "\n".join(keys) + "\n")
        code, out, _ = call(capsys, "label", run, "--labeller", name)
        assert code == 0
    for name, wanted in chosen.items():
        found = lines(run / "labels" / "rl" / f"{name}.preferences.jsonl")
        told = [row(n, best, name) for n, best in enumerate(wanted) if best is not None]
        assert found == told
    assert "ann and bob: 4 pairs that both have labelled, 100.0% of those that either has" in out
    assert "they agree on 75.0%" in out and "66.7%" in out and "ties 25.0% and 25.0%" in out
    # p_o 3/4; ann says first 2, second 1, tie 1; bob first 1, second 2, tie 1: p_e 5/16.
    summary = read_json(run / "labels" / "rl" / "summary.json")
    assert summary["agreement"][0]["metrics"]["kappa"] == pytest.approx(
        (3 / 4 - 5 / 16) / (11 / 16)
    )
    code, alone, _ = call(capsys, "label", run, "--summary")
    assert code == 0 and "they agree on 75.0%" in alone and "prompt 1" not in alone


@pytest.mark.parametrize(
    ("one", "other", "words"),
    [
        ("t\nt\n", "t\nt\n", "they agree on 100.0% [100.0%, 100.0%]; Cohen's kappa not defined"),
        ("t\n1\n", "1\nt\n", "they agree on 0.0% [0.0%, 0.0%]; Cohen's kappa"),
        ("s\n1\n", "1\ns\n", "ann and bob: no pair that both have labelled"),
        ("", "1\n", "ann and bob: no pair that both have labelled"),
    ],
)
def test_summaries_of_little_or_nothing_are_told_too(run, capsys, monkeypatch, one, other, words):
    for name, keys in (("ann", one), ("bob", other)):
        piped(monkeypatch, keys)
        code, out, _ = call(capsys, "label", run, "--labeller", name)
        assert code == 0
    assert words in out


def test_gold_is_told_in_the_summary_and_nowhere_before(run, capsys, monkeypatch):
    write_set(run / "labels" / "gold", count=6, checker=True)
    held = CompletionSet.read(run / "labels" / "gold")
    from fourstage.worlds import calibration as world

    golds = [[world.gold(item.task, text) for text in item.completions] for item in held.items]
    orders = seen(run, name="gold")
    keys = [str(1 + max((0, 1), key=lambda p: g[o[p]])) for g, o in zip(golds, orders, strict=True)]
    piped(monkeypatch, "\n".join(keys) + "\n")
    _, out, _ = call(capsys, "label", run, "--set", "gold")
    unequal = sum(a != b for a, b in golds)
    assert unequal >= 3
    questions, summary = out.split("everything is labelled")
    assert f"prefers what gold prefers in 100.0% [100.0%, 100.0%] of {unequal} pairs" in summary
    assert "gold" not in questions


def test_three_completions_are_ranked_and_written_as_rankings(run, capsys, monkeypatch):
    held = write_set(run / "labels" / "three", count=2, k=3)
    orders = seen(run, name="three")
    piped(monkeypatch, "3\n1\n2\nt\n")
    call(capsys, "label", run, "--set", "three")
    found = lines(run / "labels" / "three" / "me.preferences.jsonl")
    ranks = [[0] * 3, [2] * 3]
    ranks[0][orders[0][2]], ranks[0][orders[0][0]], ranks[0][orders[0][1]] = 1, 2, 3
    ranks[1][orders[1][1]] = 1
    assert [each["ranks"] for each in found] == ranks
    answers = [[answer[0]["content"] for answer in each["responses"]] for each in found]
    assert answers == [[*item.completions] for item in held.items]
    out = run / "pairs.jsonl"
    piped(monkeypatch, "")
    call(capsys, "label", run, "--set", "three", "--form", "pairs", "--out", out)
    assert len(lines(out)) == 3 + 2


def test_the_reward_stages_data_are_made_from_the_labels_and_follow_them(
    made, tmp_path, capsys, monkeypatch
):
    from fourstage.data.prepare import prepare_reward
    from fourstage.pipeline.raw import data_key, hashes_of

    run = tmp_path / "tiny"
    run.mkdir()
    shutil.copytree(made / "rl" / "model", run / "tokenizer")
    shutil.copy(made / "recipe.yaml", run)
    write_set(run / "labels" / "rl", count=12)
    # Made-up ones: no model is needed, but for its name.
    (run / "rl" / "model").mkdir(parents=True)
    piped(monkeypatch, "1\n" * 10)
    call(capsys, "label", run)
    recipe = tiny(f"data.preferences={run / 'labels' / 'rl' / 'me.preferences.jsonl'}")
    prepared = prepare_reward(recipe, run, lambda line: None)
    assert len(prepared.store("reward", "train")) // 2 + len(prepared.pairs()) == 10
    keys = [data_key(recipe, "reward", hashes_of(recipe, ["reward"]))]
    piped(monkeypatch, "1\n")
    call(capsys, "label", run)
    keys.append(data_key(recipe, "reward", hashes_of(recipe, ["reward"])))
    assert keys[0] != keys[1]


def test_text_of_a_model_cannot_command_the_terminal(run, capsys, monkeypatch):
    from fourstage.labelling.drawing import Item
    from fourstage.tasks import Task

    held = write_set(run / "labels" / "bad")
    held.items = [Item(Task("\x1b[2J?", "own", {}), ("\x1b[31mred\x07", "\u202eevil\x9b"))]
    held.write()
    piped(monkeypatch, "q\n")
    _, out, _ = call(capsys, "label", run, "--set", "bad")
    assert not {"\x1b", "\x07", "\u202e", "\x9b"} & set(out)
    assert "␛[31mred␇" in out and "<U+202E>evil<U+009B>" in out


def test_completions_are_drawn_and_told_at_the_first_time_only(made, capsys, monkeypatch):
    piped(monkeypatch, "1\n")
    code, out, _ = call(capsys, "label", made, "--stage", "sft", "--prompts", "3")
    assert code == 0 and "drawing 2 completions of each of 3 prompts" in out
    content = (made / "labels" / "sft" / "completions.json").read_bytes()
    piped(monkeypatch, "")
    code, out, _ = call(capsys, "label", made, "--stage", "sft")
    assert code == 0 and "drawing" not in out and "prompt 2 of 3" in out
    assert (made / "labels" / "sft" / "completions.json").read_bytes() == content
    piped(monkeypatch, "")
    _, out, _ = call(capsys, "label", made, "--set", "held", "--source", "held-out", "--prompts", 2)
    assert CompletionSet.read(made / "labels" / "held").drawn.source == "held-out"


def test_labels_of_other_completions_are_refused(run, capsys, monkeypatch):
    piped(monkeypatch, "1\n1\n")
    call(capsys, "label", run)
    held = CompletionSet.read(run / "labels" / "rl")
    held.items = held.items[1:]
    held.write()
    code, _, err = call(capsys, "label", run)
    assert code == 2 and "these are labels of other completions" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--stage", "slf"], "write sft or rl; did you mean 'sft'?"),
        (["--k", "1"], "--k 1: write 2 to 9"),
        (["--prompts", "0"], "--prompts 0: write 1 or more"),
        (["--temperature", "0"], "greedy completions are all the same"),
        (["--set", "../up"], "--set '../up': write up to 64 letters"),
        (["--labeller", "a/b"], "--labeller 'a/b'"),
        (["--form", "pair"], "did you mean 'pairs'?"),
        (["--page", "--summary"], "--page and --summary exclude each other"),
        (["--judge", "http://127.0.0.1:1/v1"], "--judge URL and --judge-model NAME belong"),
        (["--set", "none", "--summary"], "holds no completions yet"),
        (["--set", "none", "--source", "nowhere.txt"], "nowhere.txt"),
        (["--set", "none"], "holds no rl prompts: nothing to label; write --source FILE"),
    ],
)
def test_wrong_input_is_answered_in_one_line(run, capsys, monkeypatch, arguments, words):
    piped(monkeypatch, "")
    code, _, err = call(capsys, "label", run, *arguments)
    assert code == 2 and words in err and err.count("\n") == 1 and err.startswith("error: ")


def test_what_is_no_run_is_refused(run, capsys):
    code, _, err = call(capsys, "label", run.parent / "tinny")
    assert code == 2 and "is not the folder of a run" in err and "did you mean 'tiny'?" in err
