"""How many processes replicate a model, shard it, and share its matrix products."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fourstage.errors import InputError

if TYPE_CHECKING:
    from fourstage.model.config import ModelConfig
    from fourstage.recipe import Parallel

_NAMES = ("replicate", "shard", "tensor")


@dataclass(frozen=True)
class Sizes:
    """`replicate x shard x tensor` processes; see `recipe.Parallel`.

    Processes that share a product have neighbouring ranks, so that they stand on one host; then
    come those of a shard, then the replicas.
    """

    replicate: int = 1
    shard: int = 1
    tensor: int = 1
    sequence: bool = False

    @property
    def processes(self) -> int:
        return self.replicate * self.shard * self.tensor

    @property
    def splits_the_model(self) -> bool:
        """Whether no process holds all of the model."""
        return self.shard > 1 or self.tensor > 1

    def __str__(self) -> str:
        told = [f"{name}={getattr(self, name)}" for name in _NAMES if getattr(self, name) > 1]
        return " ".join([*told, *(["sequence"] if self.sequence else [])]) or "one process"


def sizes_for(asked: Parallel, processes: int, fits_one: bool = True) -> tuple[Sizes, str]:
    """The sizes for so many processes, and by which rule what was left out was derived.

    Args:
        fits_one: whether a device holds all that training keeps.

    Raises:
        InputError: the sizes asked for do not give the number of processes.
    """
    given = {name: getattr(asked, name) for name in _NAMES}
    told = " x ".join(f"parallel.{name}={size}" for name, size in given.items() if size)
    product = math.prod(size for size in given.values() if size)
    open_sizes = [name for name in ("replicate", "shard") if given[name] is None]
    if processes % product or (product < processes and not open_sizes):
        there = "there is 1" if processes == 1 else f"there are {processes}"
        raise InputError(
            f"{told} makes {product} processes and {there}: start them with `torchrun "
            f"--nproc-per-node {product} -m fourstage ...`, or leave one of the sizes out"
        )
    rule = ""
    if product < processes:
        filled, rule = open_sizes[0], "the processes that are left"
        if len(open_sizes) == 2:
            filled = "replicate" if fits_one else "shard"
            rule = f"what training keeps {'fits' if fits_one else 'does not fit'} one device"
        given[filled] = processes // product
    sizes = Sizes(*(given[name] or 1 for name in _NAMES), sequence=asked.sequence)
    if sizes.sequence and sizes.tensor == 1:
        raise InputError(
            "parallel.sequence=true shares out what lies between shared products, and "
            "parallel.tensor is 1: write parallel.tensor=2, or leave sequence out"
        )
    return sizes, rule


def check_sizes(sizes: Sizes, config: ModelConfig) -> None:
    """Whether a model's products can be shared by `sizes.tensor` processes.

    Raises:
        InputError: a size of the model is no multiple of it, or the model has a part that cannot be
            shared.
    """
    shared = sizes.tensor
    if shared == 1:
        return
    faults = [
        f"model.{name}={getattr(config, name)} is no multiple of parallel.tensor={shared}: write "
        f"parallel.tensor={math.gcd(getattr(config, name), shared)}, or shard instead"
        for name in ("heads", "kv_heads", "mlp_width")
        if getattr(config, name) % shared
    ]
    parts = {
        "experts": bool(config.experts),
        "qk_norm_whole": config.qk_norm and config.qk_norm_whole,
    }
    faults += [
        f"parallel.tensor={shared} does not share out model.{name}: write parallel.shard={shared}"
        for name, there in parts.items()
        if there
    ]
    if faults:
        raise InputError(*faults)


def check_adapter(sizes: Sizes, stage: str, has_adapter: bool) -> None:
    """Whether a stage's layers can be shared by `sizes.tensor` processes.

    Raises:
        InputError: they have adapters.
    """
    if sizes.tensor > 1 and has_adapter:
        raise InputError(
            f"{stage}.adapter trains beside whole matrices, and parallel.tensor={sizes.tensor} "
            f"cuts them: write parallel.shard={sizes.tensor}"
        )


def check_optimiser(sizes: Sizes, stage: str, optimiser: str) -> None:
    """Whether an optimiser works on the parts of matrices that `sizes.tensor` leaves a process.

    Raises:
        InputError: its scales are of whole rows.
    """
    if sizes.tensor > 1 and optimiser == "adamw8bit":
        raise InputError(
            f"{stage}.optimiser={optimiser} has a scale for neighbours in a row, and "
            f"parallel.tensor={sizes.tensor} cuts rows: write parallel.shard={sizes.tensor}, or "
            "optimiser=adamw"
        )
