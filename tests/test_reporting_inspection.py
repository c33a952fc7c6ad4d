"""Batches, token by token, and tables in the terminal."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from rich.console import Console

from fourstage.data.batch import Batch, Example
from fourstage.reporting.inspection import documents_of, print_batch
from fourstage.reporting.numbers import Number
from fourstage.reporting.tables import print_table


class Letters:
    """Token i is the i-th letter; 0 is a line break."""

    def token_text(self, token: int) -> str:
        return "\n" if token == 0 else chr(ord("a") + token - 1)


def console() -> Console:
    return Console(file=io.StringIO(), width=160, highlight=False)


def example(ids: list[int], trained: list[int]) -> Example:
    return Example(np.array(ids), np.array(trained, bool))


def language() -> Batch:
    return Batch.language([example([1, 2, 3, 0], [0, 0, 1, 1]), example([4, 5], [0, 1])])


def test_documents_are_whole_and_their_trained_tokens_are_those_of_the_examples():
    first, second = documents_of(language())
    assert first.ids == [1, 2, 3, 0] and first.trained == [False, False, True, True]
    assert second.ids == [4, 5] and second.trained == [False, True]


def test_every_token_of_a_batch_is_shown_with_its_mask():
    out = console()
    print_batch(language(), Letters(), out)
    text = out.file.getvalue()
    assert "2 documents, 6 tokens, 3 trained" in text
    assert "ab⟦c⏎⟧" in text and "d⟦e⟧" in text


def test_rows_to_score_name_the_chosen_and_the_rejected():
    batch = Batch.rows([example([1, 2], [0, 0]), example([1, 3], [0, 0])], [0, 0])
    out = console()
    print_batch(batch, Letters(), out, rows=True)
    text = out.file.getvalue()
    assert "pair 0, chosen" in text and "pair 0, rejected" in text and "ab" in text


def test_a_table_sets_numbers_right_and_intervals_beside_them():
    out = console()
    print_table(
        ["measure", "value"], [["success", Number(0.9, 0.8, 0.95)], ["none", None]], "T", out
    )
    lines = out.file.getvalue().splitlines()
    assert any("0.900 [0.800, 0.950]" in line for line in lines)
    assert any(line.rstrip().endswith("–") for line in lines)


def prepared_run(folder):
    """A run whose data are prepared and whose stages have not begun."""
    from fourstage.data.store import write_store
    from fourstage.tokenizer import train_tokenizer

    texts = [f"Ann is in the park number {i}. Bob is in the shop." for i in range(60)]
    tokenizer = train_tokenizer(texts, 275)
    tokenizer.save(folder / "tokenizer")
    write_store(folder / "data/pretrain/train", (tokenizer.document(text) for text in texts))
    rows = [[{"role": "user", "content": "?"}, {"role": "assistant", "content": t}] for t in texts]
    write_store(folder / "data/sft/train", (tokenizer.chat_example(row) for row in rows))
    scored = (Example(np.array(tokenizer.reward_row(row))) for row in rows)
    write_store(folder / "data/reward/train", scored)
    (folder / "recipe.yaml").write_text(
        "data: {pretrain: world}\nmodel: {context: 32}\npretrain: {batch_tokens: 100}\n"
        "sft: {batch_tokens: 100}\nreward: {pairs_per_step: 3}\n"
    )
    return tokenizer


@pytest.mark.parametrize("stage", ["pretrain", "sft", "reward"])
def test_inspect_batch_shows_the_batch_that_the_stage_trains_on(stage, tmp_path, capsys):
    from fourstage.cli.app import main
    from fourstage.data.sources import DocumentSource, ExampleSource, PairSource
    from fourstage.data.store import Store
    from fourstage.reporting.batches import stage_batch

    prepared_run(tmp_path)
    store = Store.open(tmp_path / "data" / stage / "train")
    source = {
        "pretrain": lambda: DocumentSource(store, 100, 0, 32),
        "sft": lambda: ExampleSource(store, 100, 0),
        "reward": lambda: PairSource(store, 3, 0),
    }[stage]()
    batch, rows = stage_batch(tmp_path, stage, 2)
    assert torch.equal(batch.tokens, source.batch(2).tokens)
    assert rows == (stage == "reward")
    with pytest.raises(SystemExit) as stop:
        main(["inspect", "batch", str(tmp_path), "--stage", stage, "--step", "2"])
    assert stop.value.code == 0
    assert "the shop" in capsys.readouterr().out.replace("\n", "")


def test_an_unknown_stage_is_told_with_the_nearest_right_one(tmp_path, capsys):
    from fourstage.cli.app import main

    prepared_run(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["inspect", "batch", str(tmp_path), "--stage", "pretrian"])
    assert stop.value.code == 2
    assert "did you mean 'pretrain'?" in capsys.readouterr().err
