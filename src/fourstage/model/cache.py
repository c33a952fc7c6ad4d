"""Keys and values of what each row has read, so that a new token costs one step."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from fourstage.model.config import ModelConfig
from fourstage.model.layout import Layout
from fourstage.model.positions import table_offsets


class KVCache:
    """Room for `batch` rows of up to `capacity` tokens, written in place.

    A row's tokens stand at columns 0 .. length - 1 whatever the other rows hold, so rows of
    different length share one rectangle and finished rows can be taken out.

    Attributes:
        keys, values: one tensor a layer, [batch, kv_heads, capacity, head_width].
        lengths: [batch] tokens each row holds, int64.
        visible: [batch, 1, 1, capacity] what is added to scores: 0 where a row holds a token, else
            minus infinity.
        longest: columns that any row may use; attention reads no further.
        offsets: [batch] where each row's angles begin in the table, None: at 0.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch: int,
        capacity: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        self.capacity = capacity
        shape = (batch, config.kv_heads, capacity, config.head_width)
        # Zeros and not `empty`: a hidden cell still enters the sum, and 0 x NaN is NaN.
        self.keys = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.layers)]
        self.values = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.layers)]
        self.lengths = torch.zeros(batch, dtype=torch.long, device=device)
        self.visible = torch.full(
            (batch, 1, 1, capacity), -torch.inf, device=device, dtype=torch.float32
        )
        self.offsets: Tensor | None = None
        self._config = config
        self._rows = torch.arange(batch, device=device)
        self.longest = 0

    @property
    def batch(self) -> int:
        return self.lengths.shape[0]

    @property
    def is_full(self) -> bool:
        """Whether `longest` leaves no cell for a step; `empty` may make room."""
        return self.longest == self.capacity

    def write_prompts(self, layer: int, keys: Tensor, values: Tensor, layout: Layout) -> None:
        """Fills row i with document i; `keys` and `values` are flat, [cells, kv_heads, head_width].

        Raises:
            ValueError: a document is longer than the capacity, or there are more than rows.
        """
        if layer == 0:
            self._start(layout)
        where = (layout.document_ids, slice(None), layout.positions)
        self.keys[layer][where] = keys.to(self.keys[layer].dtype)
        self.values[layer][where] = values.to(self.values[layer].dtype)

    def _start(self, layout: Layout) -> None:
        self.longest = max(layout.lengths)
        if self.longest > self.capacity or layout.documents > self.batch:
            raise ValueError(
                f"{layout.documents} documents of up to {self.longest} tokens do not fit a cache "
                f"of {self.batch} rows of {self.capacity}"
            )
        self.lengths[: layout.documents] = torch.tensor(layout.lengths, device=self.lengths.device)
        lengths = [*layout.lengths, *[0] * (self.batch - layout.documents)]
        self.offsets = table_offsets(self._config, lengths, self.lengths.device)
        columns = torch.arange(self.capacity, device=self.lengths.device)
        hidden = columns[None, :] >= self.lengths[:, None]
        self.visible.zero_().masked_fill_(hidden[:, None, None, :], -torch.inf)

    def open_cells(self) -> Tensor:
        """Makes each row's next cell visible and returns its column, [batch]: where a step writes.

        Raises:
            ValueError: the longest row is full.
        """
        if self.is_full:
            raise ValueError(f"the cache is full: its capacity is {self.capacity} tokens")
        self.longest += 1
        columns = self.lengths
        self.visible[self._rows, 0, 0, columns] = 0.0
        self.lengths = columns + 1
        return columns

    def append(
        self, layer: int, columns: Tensor, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Writes one token a row, [batch, kv_heads, head_width], and returns all that is held.

        Returns:
            Views [batch, kv_heads, longest, head_width] of the keys and of the values.
        """
        where = (self._rows, slice(None), columns)
        self.keys[layer][where] = keys.to(self.keys[layer].dtype)
        self.values[layer][where] = values.to(self.values[layer].dtype)
        held = slice(0, self.longest)
        return self.keys[layer][:, :, held], self.values[layer][:, :, held]

    def keep(self, rows: Tensor) -> None:
        """Row i becomes what row `rows[i]` was; rows past the last are dropped.

        Only rows whose content changes are copied, so an order that fills the holes with rows from
        the end moves as little as possible.
        """
        here = torch.arange(rows.shape[0], device=rows.device)
        into = (rows != here).nonzero().squeeze(-1)
        source = rows[into]
        held = slice(0, self.longest)
        for tensors in (self.keys, self.values):
            for layer, tensor in enumerate(tensors):
                tensor[into, :, held] = tensor[source, :, held]
                tensors[layer] = tensor[: rows.shape[0]]
        self.lengths = self.lengths[rows]
        self.visible = self.visible[rows]
        if self.offsets is not None:
            self.offsets = self.offsets[rows]
        self._rows = self._rows[: rows.shape[0]]
        self.longest = min(self.longest, int(self.lengths.max())) if len(rows) else 0

    def copy(self, rows: Tensor, other: KVCache, sources: Tensor) -> None:
        """Row `rows[i]` becomes what row `sources[i]` of `other` is; it has all of its room."""
        held = slice(0, other.longest)
        for mine, theirs in ((self.keys, other.keys), (self.values, other.values)):
            for tensor, source in zip(mine, theirs, strict=True):
                tensor[rows, :, held] = source[sources, :, held]
        self.lengths[rows] = other.lengths[sources]
        self.visible[rows] = -torch.inf
        self.visible[rows, :, :, held] = other.visible[sources][..., held]
        if self.offsets is not None and other.offsets is not None:
            self.offsets[rows] = other.offsets[sources]
        self.longest = int(self.lengths.max())

    def alone(self, row: int, length: int) -> KVCache:
        """A copy of the first `length` tokens of a row, with no room for more."""
        other = copy.copy(self)
        here = slice(row, row + 1)
        other.capacity = other.longest = length
        other.keys = [tensor[here, :, :length].clone() for tensor in self.keys]
        other.values = [tensor[here, :, :length].clone() for tensor in self.values]
        other.lengths = self.lengths[here].clone()
        other.visible = self.visible[here, ..., :length].clone()
        other.offsets = None if self.offsets is None else self.offsets[here].clone()
        other._rows = self._rows[:1]
        return other

    def empty(self, rows: Tensor) -> None:
        """Forgets what the rows of this mask hold; what they are given next stands in front."""
        self.lengths = self.lengths.masked_fill(rows, 0)
        self.longest = int(self.lengths.max())
