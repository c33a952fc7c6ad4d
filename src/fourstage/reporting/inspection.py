"""What a batch and a rollout hold, token by token, for the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.text import Text
from torch import Tensor

from fourstage.data.batch import Batch
from fourstage.errors import InputError
from fourstage.files import read_json
from fourstage.reporting.numbers import figures
from fourstage.reporting.tables import make_table
from fourstage.reporting.tokens import Speaks, coloured, visible

if TYPE_CHECKING:
    from rich.table import Table

# Columns of a rollout's table: heading, and the stream (or the difference of two) it shows
COLUMNS = (
    ("rollout", "rollout_logprobs"),
    ("old", "old_logprobs"),
    ("ref", "ref_logprobs"),
    ("reward", "rewards"),
    ("value", "old_values"),
    ("return", "returns"),
    ("advantage", "advantages"),
)
# Only the sums of these over a response mean something.
SUMMED = {"rollout", "old", "ref", "KL", "reward"}


@dataclass
class Document:
    """One document of a batch with its tokens whole.

    Attributes:
        ids: [tokens] what is read, with the last target where there is one.
        trained: [tokens] whether each token is a target with a weight.
        streams: name -> [tokens - 1] or [tokens], what the cell that predicts the next token holds.
        numbers: what the document carries as a whole.
        is_row: the score is read at its last token (reward rows).
    """

    ids: list[int]
    trained: list[bool]
    streams: dict[str, Tensor] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)
    is_row: bool = False


def documents_of(batch: Batch, rows: bool = False) -> Iterator[Document]:
    """The documents of a batch in order; `rows` where they are to be scored (`Batch.rows`)."""
    start = 0
    for index, length in enumerate(batch.lengths):
        cells = slice(start, start + length)
        start += length
        weights = [bool(weight) for weight in batch.streams["loss_weights"][cells].tolist()]
        ids = batch.tokens[cells].tolist()
        if rows:
            trained = [False, *weights[:-1]]
        else:
            ids, trained = [*ids, int(batch.targets[cells][-1])], [False, *weights]
        yield Document(
            ids,
            trained,
            {name: stream[cells] for name, stream in batch.streams.items()},
            {name: float(values[index]) for name, values in batch.documents.items()},
            rows,
        )


def print_batch(
    batch: Batch, tokenizer: Speaks, console: Console, *, rows: bool = False, most: int = 8
) -> None:
    """Every token of the first `most` documents, and how many of all tokens are trained."""
    documents = list(documents_of(batch, rows))
    tokens = sum(len(document.ids) for document in documents)
    trained = sum(sum(document.trained) for document in documents)
    what = "rows" if rows else "documents"
    line = f"{len(documents)} {what}, {tokens} tokens, {trained} trained"
    if rows:
        line += f", {len(documents)} scored at their last token"
    console.print(Text(line, style="bold"))
    console.print(_legend(rows))
    for index, document in enumerate(documents[:most]):
        facts = [f"{len(document.ids)} tokens", f"{sum(document.trained)} trained"]
        facts += [f"{name} {figures(value)}" for name, value in document.numbers.items()]
        console.print()
        console.print(Text(f"{_name(index, rows)}: {', '.join(facts)}", style="dim"))
        scored = len(document.ids) - 1 if rows else None
        console.print(coloured(tokenizer, document.ids, document.trained, scored))
    if len(documents) > most:
        console.print()
        console.print(Text(f"{len(documents) - most} more: --documents N shows more", style="dim"))


def _name(index: int, rows: bool) -> str:
    if rows:
        return f"pair {index // 2}, {'rejected' if index % 2 else 'chosen'}"
    return f"document {index}"


def _legend(rows: bool) -> Text:
    text = Text("grey: read only   ", style="dim")
    text.append("green in ⟦ ⟧: trained", style="dim")
    if rows:
        text.append("   yellow: where the score is read", style="dim")
    return text


def print_rollout(
    batch: Batch, tokenizer: Speaks, console: Console, *, first: int = 0, most: int = 2
) -> None:
    """Every response token of episodes `first` on, with its log-probabilities, KL, reward, value.

    Raises:
        InputError: there is no episode `first`.
    """
    documents = list(documents_of(batch))
    if not 0 <= first < len(documents):
        raise InputError(
            f"--episode {first}: the rollout has {len(documents)} episodes; "
            f"write a number from 0 to {len(documents) - 1}"
        )
    for index, document in list(enumerate(documents))[first : first + most]:
        prompt = [
            i
            for i, is_trained in zip(document.ids, document.trained, strict=True)
            if not is_trained
        ]
        facts = [f"{name} {figures(value)}" for name, value in document.numbers.items()]
        console.print(
            Text(f"episode {index} of {len(documents)}: {', '.join(facts)}", style="bold")
        )
        console.print(coloured(tokenizer, prompt, [False] * len(prompt)))
        console.print(rollout_table(document, tokenizer))


def rollout_table(document: Document, tokenizer: Speaks) -> Table:
    """A row a response token: the cell that predicts it holds what is known of it. Nats."""
    streams = document.streams
    columns = [(name, streams[stream]) for name, stream in COLUMNS if stream in streams]
    if "old_logprobs" in streams and "ref_logprobs" in streams:
        place = next(i for i, (name, _) in enumerate(columns) if name == "ref") + 1
        columns.insert(place, ("KL", streams["old_logprobs"] - streams["ref_logprobs"]))
    rows: list[list[Any]] = []
    for place, (token, is_trained) in enumerate(zip(document.ids, document.trained, strict=True)):
        if is_trained:
            numbers = [Text(_signed(float(stream[place - 1]))) for _, stream in columns]
            rows.append([place, visible(tokenizer.token_text(token)), *numbers])
    counted = streams["loss_weights"] != 0
    totals = [
        Text(_signed(float(stream[counted].sum())) if name in SUMMED else "", style="dim")
        for name, stream in columns
    ]
    rows.append(["", Text("sum", style="dim"), *totals])
    table = make_table(["place", "token", *(name for name, _ in columns)], rows)
    for column in table.columns[2:]:
        column.justify, column.no_wrap = "right", True
    return table


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "\u2212")


def load_rollout(run: Path, step: int | None = None) -> tuple[int, Batch]:
    """The rollouts that the checkpoint of `step` (else the newest) of `rl` holds, and its step.

    The files are only read, so a run that is at work may be looked at.

    Raises:
        InputError: there is no such checkpoint, or it holds no rollouts.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from fourstage.training.checkpoint import rejoin

    folder = Path(run) / "rl" / "checkpoints"
    found = {int(path.name.removeprefix("step-")): path for path in folder.glob("step-*")}
    if not found:
        raise InputError(f"{folder}: no checkpoint of rl yet; run the rl stage of this run first")
    step = max(found) if step is None else step
    if step not in found:
        has = ", ".join(str(each) for each in sorted(found))
        raise InputError(f"--step {step}: rl has checkpoints of steps {has}; write one of them")
    try:
        held = read_json(found[step] / "state.json")["source"]["rollouts"]
        tensors = load_file(found[step] / "source.safetensors")
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise InputError(
            f"{found[step]}: holds no rollouts ({error}); choose another --step"
        ) from error
    if held is None:
        raise InputError(
            f"{found[step]}: no rollouts were held at step {step}; choose another --step"
        )
    return step, Batch.from_state(
        {name: torch.as_tensor(v) for name, v in rejoin(held, tensors).items()}
    )
