"""Completions from Ray actors, each with an engine and a copy of the weights of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from fourstage.errors import InputError, MachineError
from fourstage.extras import require
from fourstage.generation.elsewhere import Elsewhere, last_line
from fourstage.generation.engine import Completion, Engine
from fourstage.generation.sampling import Sampling
from fourstage.model.config import ModelConfig
from fourstage.model.transformer import Transformer


class Drawing:
    """What an actor is: an engine whose weights come over the network."""

    def __init__(self, config: ModelConfig, device: str):
        self.model = Transformer(config).to(device).eval()
        self.model.requires_grad_(False)
        self.engine = Engine(self.model)

    def take(self, weights: dict[str, Any]) -> None:
        self.model.load_state_dict(
            {name: torch.from_numpy(array) for name, array in weights.items()}
        )

    def generate(
        self, prompts: list[list[int]], sampling: Sampling, seeds: list[int]
    ) -> list[Completion]:
        return self.engine.generate(prompts, sampling, seeds) if prompts else []


class RayActors(Elsewhere):
    """Prompts are dealt out to actors; what each draws does not depend on which has it.

    Args:
        count: actors. gpus: devices of each; 0 draws on a CPU.
        address: of a Ray cluster; None starts one on this machine.
    """

    def __init__(self, count: int, gpus: float = 0.0, address: str | None = None):
        self.count, self.gpus, self.address = count, gpus, address
        self._actors: list[Any] = []

    def start(self, say: Callable[[str], None]) -> None:
        ray = _ray()
        if not ray.is_initialized():
            # Its page listens on the loopback alone, as it is without this; said here to stay so.
            try:
                ray.init(address=self.address, include_dashboard=False, log_to_driver=False)
            except Exception as error:
                where = self.address or "on this machine"
                raise InputError(
                    f"rl.engine.kind=ray: no cluster {where} ({last_line(error)}): write "
                    "rl.engine.url=HOST:PORT of one that runs, or leave it out to start one here"
                ) from error
        say(f"rl.engine draws with {self.count} Ray actors, {self.gpus:g} GPUs each")

    def take(self, model: Transformer) -> None:
        ray = _ray()
        if not self._actors:
            made = ray.remote(num_gpus=self.gpus)(Drawing)
            device = "cuda" if self.gpus else "cpu"
            self._actors = [made.remote(model.config, device) for _ in range(self.count)]
        arrays = {
            name: tensor.detach().float().cpu().numpy()
            for name, tensor in model.state_dict().items()
        }
        # Put once: actors of one machine share it.
        weights = ray.put(arrays)
        _got(ray, [actor.take.remote(weights) for actor in self._actors])

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling | Sequence[Sampling],
        seeds: Sequence[int] | None = None,
    ) -> list[Completion]:
        if not isinstance(sampling, Sampling):
            raise ValueError("Ray actors draw all prompts with one sampling")
        ray, count = _ray(), len(self._actors)
        rows = [list(prompt) for prompt in prompts]
        numbers = [sampling.seed] * len(rows) if seeds is None else list(seeds)
        asked = [
            actor.generate.remote(rows[place::count], sampling, numbers[place::count])
            for place, actor in enumerate(self._actors)
        ]
        found: list[Any] = [None] * len(rows)
        for place, part in enumerate(_got(ray, asked)):
            found[place::count] = part
        return found

    def close(self) -> None:
        for actor in self._actors:
            _ray().kill(actor)
        self._actors = []


def _got(ray: Any, asked: list[Any]) -> list[Any]:
    """What actors answered.

    Raises:
        MachineError: one of them failed or is gone.
    """
    try:
        return ray.get(asked)
    except ray.exceptions.RayError as error:
        raise MachineError(
            f"a Ray actor failed ({last_line(error)}); run the same command again to go on"
        ) from error


def _ray() -> Any:
    """The library.

    Raises:
        InputError: it is not installed.
    """
    return require("ray", "ray", "for rl.engine.kind=ray")
