"""Comparisons and single judgements as batches whose last response alone is trained."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from fourstage.data.batch import Batch, Example
from fourstage.data.store import Store

GOOD, BAD = 1, -1


def last_response(example: Example) -> Example:
    """A row up to the end of its last response, which alone is trained.

    Rows of comparisons end in `<|reward|>`, and train the answers before the last one too; those
    are part of the prompt here.
    """
    trained = np.flatnonzero(example.trained())
    if not len(trained):
        raise ValueError("a row without a trained token has no response")
    end = int(trained[-1]) + 1
    breaks = np.flatnonzero(np.diff(trained) > 1)
    begin = int(trained[breaks[-1] + 1] if len(breaks) else trained[0])
    return Example(example.tokens[:end], np.arange(end) >= begin)


def compared(examples: Sequence[Example]) -> Batch:
    """Pairs, each the chosen and then the rejected response; `group` counts them."""
    batch = Batch.language(examples)
    batch.documents["group"] = torch.arange(len(examples)) // 2
    return with_prompts(batch, examples)


def judged(examples: Sequence[Example], labels: Sequence[int]) -> Batch:
    """Responses with `labels`: 1 good, -1 bad."""
    batch = Batch.language(examples)
    batch.documents["labels"] = torch.tensor(list(labels))
    return with_prompts(batch, examples)


def with_prompts(batch: Batch, examples: Sequence[Example]) -> Batch:
    """The batch with `prompt_tokens`: how many tokens stand before the first trained one."""
    first = [int(np.flatnonzero(example.trained())[0]) for example in examples]
    batch.documents["prompt_tokens"] = torch.tensor(first)
    return batch


def prompts_of(batch: Batch) -> set[tuple[int, ...]]:
    """The different prompts of a batch."""
    parts = zip(batch.tokens.split(batch.lengths), batch.documents["prompt_tokens"], strict=True)
    return {tuple(tokens[: int(size)].tolist()) for tokens, size in parts}


def pair_rows(store: Store) -> np.ndarray:
    """[pairs, 2] rows of the better and the worse response of each comparison of a store.

    Plain comparisons are two rows each; of a ranking each response is compared with each one below
    it (InstructGPT, section 3.5), and ties say nothing.
    """
    if not len(store) or "group" not in store.row(0):
        return np.arange(len(store) // 2 * 2).reshape(-1, 2)
    ranked: dict[int, list[tuple[int, int]]] = {}
    for row in range(len(store)):
        told = store.row(row)
        ranked.setdefault(told["group"], []).append((told["place"], row))
    found = [
        (better, worse)
        for rows in ranked.values()
        for above, better in rows
        for below, worse in rows
        if above < below
    ]
    return np.array(found, np.int64).reshape(-1, 2)


def pairs_of(store: Store, rows: np.ndarray) -> list[Example]:
    """[pairs, 2] rows -> responses, the better one of each pair before the worse."""
    return [last_response(store[int(row)]) for row in rows.reshape(-1)]


def labels_of(store: Store) -> np.ndarray:
    """[rows] 1 or -1, as a store of single judgements has them beside its rows."""
    return np.array([store.row(index)["label"] for index in range(len(store))], np.int64)
