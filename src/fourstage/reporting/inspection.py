"""What a batch holds, token by token, for the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from rich.console import Console
from rich.text import Text
from torch import Tensor

from fourstage.data.batch import Batch
from fourstage.reporting.numbers import figures
from fourstage.reporting.tokens import Speaks, coloured


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
