"""One shape and one count of operations for every contender."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import nn

from fourstage.planning.shapes import mlp_width_for


@dataclass(frozen=True)
class Shape:
    """Sizes that all contenders of a comparison share.

    Attributes:
        context: cells of a row, all of which are trained.
        rows: of a batch.
        tied: whether the head is the table of tokens; nanoGPT ties always, nanochat never.
    """

    vocab_size: int
    width: int
    layers: int
    heads: int
    context: int
    rows: int
    tied: bool = False

    @property
    def plain_mlp(self) -> int:
        """Width of an MLP of two matrices."""
        return 4 * self.width

    @property
    def gated_mlp(self) -> int:
        """Width of an MLP of three matrices with as many weights, up to rounding."""
        return mlp_width_for(self.width, "swiglu")

    @property
    def tokens(self) -> int:
        """Of a step."""
        return self.rows * self.context

    def with_rows(self, rows: int) -> Shape:
        return replace(self, rows=rows)

    def training_flops(self, matmul_weights: int) -> float:
        """Operations a token, forward and backward.

        6 a weight that is multiplied with (head included, tables not), and 12 a layer, number of
        the width and cell attended to: half of the row on average (Kaplan et al., 2020; Chowdhery
        et al., *PaLM*, 2022, appendix B, there without the half).
        """
        attention = 12 * self.layers * self.width * (self.context + 1) / 2
        return 6 * matmul_weights + attention


SIZES = {
    "tiny": Shape(vocab_size=512, width=96, layers=2, heads=3, context=32, rows=4),
    "3m": Shape(vocab_size=4096, width=192, layers=4, heads=3, context=256, rows=16),
    "30m": Shape(vocab_size=4096, width=512, layers=8, heads=8, context=256, rows=16),
    # GPT-2's vocabulary in even 64s, as nanoGPT pads it.
    "124m": Shape(
        vocab_size=50304, width=768, layers=12, heads=12, context=2048, rows=16, tied=True
    ),
    # Of a vocabulary that a small text fills; the blocks are those of half a billion parameters.
    "500m": Shape(vocab_size=4096, width=1280, layers=24, heads=20, context=1024, rows=16),
    "1b": Shape(vocab_size=50304, width=2048, layers=16, heads=16, context=2048, rows=8),
}


def matmul_weights(model: nn.Module) -> int:
    """Weights of all linear layers: what every token is multiplied with.

    A head that shares the table of tokens is a linear layer in all peers, and counts.
    """
    return sum(part.weight.numel() for part in model.modules() if isinstance(part, nn.Linear))


def assert_equal_work(flops: dict[str, float], tolerance: float = 0.02) -> None:
    """Stops a comparison of contenders that do not do the same work.

    Raises:
        SystemExit: operations a token differ by more than `tolerance`.
    """
    least, most = min(flops, key=flops.__getitem__), max(flops, key=flops.__getitem__)
    if flops[most] > (1 + tolerance) * flops[least]:
        raise SystemExit(
            f"{most} takes {flops[most]:,.0f} operations a token and {least} {flops[least]:,.0f}: "
            f"over {tolerance:.0%} apart, which is no fair comparison"
        )
