"""What `generate`, `chat` and `explore` print, and how they answer wrong input."""

from __future__ import annotations

import io
import sys

import pytest
import torch

from fourstage.cli.app import main
from fourstage.interchange import save_model
from fourstage.tokenizer import train_tokenizer
from tiny_models import tiny_model

TEXTS = ["the cat sat on the mat. ", "a dog ran in the park with Ann, née Brown. "] * 20


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder with a pretrain, an sft and a reward model of random weights."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    tokenizer = train_tokenizer(TEXTS, 290)
    size = {"vocab_size": tokenizer.vocab_size, "context": 64}
    for stage, head, seed in [
        ("pretrain", "language", 1),
        ("sft", "language", 2),
        ("reward", "scalar", 3),
    ]:
        model = tiny_model(head, seed=seed, **size)
        save_model(folder / stage / "model", model, tokenizer, card="# Tiny")
    return folder


def call(capsys, *arguments) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `fourstage ...` in this process."""
    with pytest.raises(SystemExit) as ended:
        main([str(each) for each in arguments])
    out, err = capsys.readouterr()
    return ended.value.code, out, err


def piped(monkeypatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))


def test_generate_prints_the_continuation_of_exactly_the_prompt(run, capsys):
    import transformers

    folder = run / "sft" / "model"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    ids = tokenizer("the cat née", add_special_tokens=False, return_tensors="pt").input_ids
    theirs = model.generate(ids, max_new_tokens=20, do_sample=False)[0, ids.shape[1] :]
    code, out, _ = call(
        capsys, "generate", folder, "--prompt", "the cat née", "--temperature", "0",
        "--max-new-tokens", "20",
    )  # fmt: skip
    assert code == 0
    assert out == tokenizer.decode(theirs, skip_special_tokens=True) + "\n"


def test_generate_with_chat_goes_through_the_template_of_the_run(run, capsys):
    import transformers

    folder = run / "sft" / "model"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "a dog"}],
        add_generation_prompt=True,
        return_dict=False,
    )
    theirs = model.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False)
    code, out, _ = call(
        capsys, "generate", run, "--prompt", "a dog", "--temperature", "0",
        "--max-new-tokens", "12", "--chat",
    )  # fmt: skip
    assert code == 0
    assert out == tokenizer.decode(theirs[0, len(ids) :], skip_special_tokens=True) + "\n"


def test_a_seed_fixes_the_text_and_another_changes_it(run, capsys):
    texts = [
        call(capsys, "generate", run, "--prompt", "the", "--seed", seed)[1] for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_chat_answers_piped_lines_one_after_another(run, capsys, monkeypatch):
    piped(monkeypatch, "hello\n\n/nonsense\n/reset\nhello\n/quit\nnever read\n")
    code, out, err = call(capsys, "chat", run, "--max-new-tokens", "5")
    assert code == 0
    assert "no such command: /nonsense" in err and "forgotten" in err and ">" not in err
    assert out.endswith("\n") and len(out) > 2


def test_chat_goes_on_after_a_message_that_is_too_long(run, capsys, monkeypatch):
    piped(monkeypatch, "x" * 500 + "\nhello\n")
    code, out, err = call(capsys, "chat", run / "sft", "--max-new-tokens", "5")
    assert code == 0 and "context holds 64" in err and out.strip()


def test_explore_shows_bars_probability_entropy_and_rank(run, capsys):
    code, out, _ = call(
        capsys, "explore", run, "--prompt", "the cat", "--steps", "3", "--top", "4", "--top-k", "2"
    )
    assert code == 0
    assert out.count("entropy") == 3 and out.count("(rank ") == 3
    assert "█" in out and "%" in out and "cut off" in out
    assert "\ngreedy: " in out and "\ndrawn:  " in out


@pytest.mark.parametrize("command", ["generate", "chat", "explore"])
@pytest.mark.parametrize(
    ("where", "words"), [("reward", "reward model"), ("empty", "is empty"), ("slf", "'sft'")]
)
def test_what_cannot_write_is_refused(command, where, words, run, capsys):
    folder = run / where
    if where == "empty":
        folder.mkdir(exist_ok=True)
    prompt = [] if command == "chat" else ["--prompt", "a"]
    code, out, err = call(capsys, command, folder, *prompt)
    assert code == 2 and out == "" and words in err
    assert all(line.startswith("error: ") for line in err.splitlines())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--prompt", "a", "--temperature", "-1"], "temperature=-1"),
        (["--prompt", "a", "--top-p", "0"], "top_p=0"),
        (["--prompt", ""], "empty"),
        (["--prompt", "x" * 400], "context holds 64"),
        (["--prompt", "a\udcff"], "UTF-8"),
        (["--prompt", "a", "--temprature", "1"], "--temperature"),
        (["--prompt", "a", "--temperature", "warm"], "--temperature"),
        (["--prompt", "a", "--device", "abacus"], "device='abacus'"),
        ([], "--prompt"),
    ],
)
@pytest.mark.parametrize("command", ["generate", "explore"])
def test_wrong_input_is_answered_in_one_line(command, arguments, words, run, capsys):
    code, out, err = call(capsys, command, run, *arguments)
    assert code == 2 and out == "" and words in err
    assert err.count("\n") == 1 and err.startswith("error: ")


def test_explore_refuses_no_steps_and_no_rows(run, capsys):
    code, _, err = call(capsys, "explore", run, "--prompt", "a", "--steps", "0", "--top", "-1")
    assert code == 2 and err.count("error: ") == 2
