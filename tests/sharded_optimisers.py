"""Processes that step sharded parameters, and what one process makes of the same."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from fourstage.training.optimiser import Optimiser
from training_support import settings


class Toy(nn.Module):
    """An uneven number of rows, a wide and a tall matrix, a bias, a table and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(11, 72)
        self.wide = nn.Linear(72, 65)
        self.tall = nn.Linear(65, 310, bias=False)
        self.lm_head = nn.Linear(310, 16, bias=False)
        drawn = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=drawn))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.lm_head(torch.tanh(self.tall(torch.tanh(self.wide(self.embed_tokens(tokens))))))


def steps(module: nn.Module, optimiser: Optimiser, first: int, last: int) -> None:
    for step in range(first, last):
        drawn = torch.Generator().manual_seed(step)
        tokens = torch.randint(0, 11, (24,), generator=drawn)
        module(tokens).square().sum().backward()
        optimiser.gradients()
        optimiser.step(1e-2)
        optimiser.zero_gradients()


def step_sharded(rank: int, folder: str, names: tuple[str, ...]) -> None:
    """One of two processes: the weights after five steps, gathered, as <optimiser>.safetensors."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    for name in names:
        module = Toy()
        for part in (module.wide, module.tall):
            fully_shard(part, mesh=mesh)
        fully_shard(module, mesh=mesh)
        optimiser = Optimiser(module, settings(optimiser=name))
        steps(module, optimiser, 0, 3)
        again = Optimiser(module, settings(optimiser=name))
        again.restore(optimiser.state())
        steps(module, again, 3, 5)
        whole = {key: value.full_tensor() for key, value in module.state_dict().items()}
        if rank == 0:
            save_file(whole, Path(folder) / f"{name}.safetensors")
    dist.destroy_process_group()
