"""A batch: documents back to back in one flat row of cells, with a stream of numbers a cell."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from fourstage.data.packing import balanced, best_fit, next_fit
from fourstage.model.layout import Layout


@dataclass
class Example:
    """One row of a store.

    Attributes:
        tokens: [n] token ids.
        loss_mask: [n] whether each token is trained; None means all but the first.
    """

    tokens: np.ndarray
    loss_mask: np.ndarray | None = None

    def trained(self) -> np.ndarray:
        """[n] bool: which tokens are trained; the first never is, nothing predicts it."""
        mask = np.ones(len(self.tokens), bool) if self.loss_mask is None else self.loss_mask.copy()
        mask[:1] = False
        return mask.astype(bool)


@dataclass
class Batch:
    """Documents without padding.

    Attributes:
        tokens: [cells] what the model reads.
        lengths: cells of each document, in order; they sum to `cells`.
        targets: [cells] the token that follows in the same document, 0 where there is none.
        streams: per-cell numbers, each [cells]; `loss_weights` is always there.
        documents: per-document numbers, each [documents]; documents of equal `group` stay together.
    """

    tokens: Tensor
    lengths: tuple[int, ...]
    targets: Tensor
    streams: dict[str, Tensor] = field(default_factory=dict)
    documents: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def language(cls, examples: Sequence[Example]) -> Batch:
        """Next-token documents: n tokens become n - 1 cells, each predicting the next token.

        Raises:
            ValueError: an example of fewer than two tokens, which has nothing to predict.
        """
        if any(len(example.tokens) < 2 for example in examples):
            raise ValueError("an example needs at least two tokens: one to read, one to predict")
        inputs = np.concatenate([example.tokens[:-1] for example in examples])
        targets = np.concatenate([example.tokens[1:] for example in examples])
        weights = np.concatenate([example.trained()[1:] for example in examples])
        return cls(
            tokens=torch.from_numpy(inputs.astype(np.int64)),
            lengths=tuple(len(example.tokens) - 1 for example in examples),
            targets=torch.from_numpy(targets.astype(np.int64)),
            streams={"loss_weights": torch.from_numpy(weights.astype(np.float32))},
        )

    @classmethod
    def rows(cls, examples: Sequence[Example], group: Sequence[int] | None = None) -> Batch:
        """Rows to score at their last cell; with loss masks they can also be predicted.

        A cell carries the token after it as its target, and a weight where that token is trained.
        """
        tokens = np.concatenate([example.tokens for example in examples]).astype(np.int64)
        targets, weights = [], []
        for example in examples:
            targets.append(np.append(example.tokens[1:], 0))
            masked = example.loss_mask is not None
            trained = np.append(example.trained()[1:], False) if masked else None
            weights.append(np.zeros(len(example.tokens), bool) if trained is None else trained)
        batch = cls(
            tokens=torch.from_numpy(tokens),
            lengths=tuple(len(example.tokens) for example in examples),
            targets=torch.from_numpy(np.concatenate(targets).astype(np.int64)),
            streams={"loss_weights": torch.from_numpy(np.concatenate(weights).astype(np.float32))},
        )
        if group is not None:
            batch.documents["group"] = torch.tensor(list(group))
        return batch

    @cached_property
    def layout(self) -> Layout:
        return Layout(self.lengths, self.tokens.device)

    @property
    def cells(self) -> int:
        return self.tokens.shape[0]

    @property
    def positions(self) -> Tensor:
        return self.layout.positions

    @property
    def document_ids(self) -> Tensor:
        return self.layout.document_ids

    @property
    def last_cells(self) -> Tensor:
        """[documents] index of each document's last cell."""
        return self.layout.last_cells

    def to(self, device: torch.device | str) -> Batch:
        """A copy there; it is not waited for on its way to a CUDA device."""
        device = torch.device(device)
        loose = device.type == "cuda"
        return Batch(
            self.tokens.to(device, non_blocking=loose),
            self.lengths,
            self.targets.to(device, non_blocking=loose),
            {name: stream.to(device, non_blocking=loose) for name, stream in self.streams.items()},
            {name: rows.to(device, non_blocking=loose) for name, rows in self.documents.items()},
        )

    def pin_memory(self) -> Batch:
        """The same in page-locked memory, from which a copy to a CUDA device is not waited for."""
        return Batch(
            self.tokens.pin_memory(),
            self.lengths,
            self.targets.pin_memory(),
            {name: stream.pin_memory() for name, stream in self.streams.items()},
            {name: values.pin_memory() for name, values in self.documents.items()},
        )

    def select(self, chosen: Iterable[int]) -> Batch:
        """The batch of the chosen documents, in the order given."""
        chosen = list(chosen)
        starts = np.cumsum([0, *self.lengths])
        spans = [np.arange(starts[i], starts[i + 1]) for i in chosen]
        cells = torch.from_numpy(np.concatenate(spans)).to(self.tokens.device)
        rows = torch.tensor(chosen, device=self.tokens.device)
        return Batch(
            self.tokens[cells],
            tuple(self.lengths[i] for i in chosen),
            self.targets[cells],
            {name: stream[cells] for name, stream in self.streams.items()},
            {name: values[rows] for name, values in self.documents.items()},
        )

    def split(self, max_tokens: int | None) -> list[Batch]:
        """Micro-batches of at most `max_tokens` cells, cut between documents (or groups of them).

        Neighbours stay together, unless packing them best-fit decreasing makes fewer of them. A
        document or group larger than that becomes a micro-batch of its own.
        """
        if not max_tokens or self.cells <= max_tokens:
            return [self]
        groups = self.groups()
        sizes = [sum(self.lengths[i] for i in group) for group in groups]
        packed = min(next_fit(sizes, max_tokens), best_fit(sizes, max_tokens), key=len)
        return [self.select(i for number in part for i in groups[number]) for part in packed]

    def deal(self, parts: int) -> list[Batch]:
        """At most `parts` batches of about equal cells, cut between documents or groups of them."""
        if parts == 1:
            return [self]
        groups = self.groups()
        dealt = balanced([sum(self.lengths[i] for i in group) for group in groups], parts)
        return [self.select(i for number in part for i in groups[number]) for part in dealt if part]

    def groups(self) -> list[list[int]]:
        """Documents that may stand alone: single ones, or those of equal `group` together."""
        if "group" not in self.documents:
            return [[i] for i in range(len(self.lengths))]
        members: dict[int, list[int]] = {}
        for index, group in enumerate(self.documents["group"].tolist()):
            members.setdefault(group, []).append(index)
        return list(members.values())

    def state(self) -> dict[str, Tensor]:
        """Tensors from which `from_state` makes the same batch."""
        tensors = {"tokens": self.tokens, "targets": self.targets}
        tensors["lengths"] = torch.tensor(self.lengths)
        tensors |= {f"streams.{name}": stream for name, stream in self.streams.items()}
        return tensors | {f"documents.{name}": rows for name, rows in self.documents.items()}

    @classmethod
    def from_state(cls, tensors: dict[str, Tensor]) -> Batch:
        def part(prefix: str) -> dict[str, Tensor]:
            found = {k: v for k, v in tensors.items() if k.startswith(prefix)}
            return {name.removeprefix(prefix): value for name, value in found.items()}

        return cls(
            tensors["tokens"],
            tuple(tensors["lengths"].tolist()),
            tensors["targets"],
            part("streams."),
            part("documents."),
        )
