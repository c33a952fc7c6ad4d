"""What of a model a stage trains: low-rank adapters beside frozen weights, and what is frozen."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from fourstage.recipe.data import Positive, PositiveInt, Section
from fourstage.recipe.numbers import Real

Kind = Literal["lora", "rslora", "dora"]
Base = Literal["full", "int8", "nf4"]


def _parted(value: Any) -> Any:
    """A list as the command line gives it: `a,b` or `[a, b]`."""
    if not isinstance(value, str):
        return value
    return [part.strip() for part in value.removeprefix("[").removesuffix("]").split(",")]


def _all_named(names: list[str]) -> list[str]:
    if not names or "" in names:
        raise ValueError("must name something, or be left out")
    return names


Names = Annotated[list[str], BeforeValidator(_parted), AfterValidator(_all_named)]


class Adapter(Section):
    """A low-rank update `scale B A` beside each frozen matrix `W` (Hu et al., *LoRA*, 2021).

    Attributes:
        kind: `lora` has the scale alpha / rank, `rslora` alpha / sqrt(rank) (Kalajdzievski, 2023),
            `dora` that of lora and a trained length for each row of the sum (Liu et al., 2024).
        targets: names of linear layers, such as q_proj; all of the blocks unless said, as QLoRA
            found best (Dettmers et al., 2023).
        base: how the frozen matrices are held: in fp32, a byte a number (`int8`, a scale for each
            row) or half of one (`nf4`, a scale for each 64 numbers).
    """

    kind: Kind = "lora"
    rank: PositiveInt = 16
    alpha: Positive | None = None
    dropout: Annotated[Real, Field(ge=0, lt=1)] = 0.0
    targets: Names | None = None
    base: Base = "full"

    @property
    def scale(self) -> float:
        """The factor on `B A`; of a resolved recipe."""
        root = 0.5 if self.kind == "rslora" else 1.0
        return (self.alpha or self.usual_alpha) / self.rank**root

    @property
    def usual_alpha(self) -> float:
        """What `alpha` is unless said: the factor is 2, and 4 for rslora at rank 16."""
        return 16.0 if self.kind == "rslora" else 2.0 * self.rank
