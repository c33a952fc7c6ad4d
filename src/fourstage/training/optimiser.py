"""AdamW over a module's parameters, in groups by decay and by learning rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from fourstage.training.settings import TrainSettings


def decays(name: str, parameter: Tensor) -> bool:
    """Matrices decay; norms, biases and embeddings do not (their scale is not a matter of fit)."""
    return parameter.dim() >= 2 and not name.endswith("embed_tokens.weight")


def multiplier(name: str, multipliers: Mapping[str, float]) -> float:
    """The factor of the longest prefix of `name`, 1 where none fits."""
    fitting = [prefix for prefix in multipliers if name.startswith(prefix)]
    return multipliers[max(fitting, key=len)] if fitting else 1.0


class Optimiser:
    """AdamW (Loshchilov and Hutter, 2019), its state by parameter name.

    A parameter that a step did not reach has gradient zero, on one process as on several.

    Attributes:
        names, parameters: what is trained, in the module's order; a tied weight counts once.
    """

    def __init__(self, module: nn.Module, settings: TrainSettings):
        trained = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        self.names = [name for name, _ in trained]
        self.parameters = [parameter for _, parameter in trained]
        groups: dict[tuple[bool, float], list[Tensor]] = {}
        for name, parameter in trained:
            key = (decays(name, parameter), multiplier(name, settings.rate_multipliers))
            groups.setdefault(key, []).append(parameter)
        self._adamw = torch.optim.AdamW(
            [
                {
                    "params": members,
                    "weight_decay": settings.weight_decay if decayed else 0.0,
                    "multiplier": factor,
                }
                for (decayed, factor), members in groups.items()
            ],
            lr=settings.learning_rate,
            betas=(settings.beta1, settings.beta2),
            eps=settings.eps,
            fused=all(p.device.type in ("cpu", "cuda", "mps") for p in self.parameters),
        )

    def gradients(self) -> list[Tensor]:
        """The gradient of every parameter, in order."""
        found = []
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            found.append(parameter.grad)
        return found

    def step(self, learning_rate: float) -> None:
        for group in self._adamw.param_groups:
            group["lr"] = learning_rate * group["multiplier"]
        self._adamw.step()

    def zero_gradients(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def state(self) -> dict[str, Tensor]:
        """`<parameter>:<slot>` -> tensor; empty before the first step."""
        return {
            f"{name}:{slot}": value
            for name, parameter in zip(self.names, self.parameters, strict=True)
            for slot, value in self._adamw.state.get(parameter, {}).items()
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Puts back what `state` gave, into memory of this process's own."""
        slots: dict[str, dict[str, Tensor]] = {}
        for key, value in state.items():
            name, slot = key.rsplit(":", 1)
            slots.setdefault(name, {})[slot] = value.clone()
        whole = self._adamw.state_dict()
        order = {id(p): name for name, p in zip(self.names, self.parameters, strict=True)}
        members = [p for group in self._adamw.param_groups for p in group["params"]]
        whole["state"] = {
            index: slots[order[id(parameter)]]
            for index, parameter in enumerate(members)
            if order[id(parameter)] in slots
        }
        self._adamw.load_state_dict(whole)


class MovingAverage:
    """Exponential moving average of the weights: `average += (1 - decay) (weight - average)`.

    The decay starts at 1/10 and rises as `(1 + n) / (10 + n)` to its value, so that the weights
    training started from are forgotten in short runs too.
    """

    def __init__(self, parameters: Sequence[Tensor], decay: float):
        self.decay = decay
        self.updates = 0
        self._parameters = list(parameters)
        self._average = [parameter.detach().clone() for parameter in parameters]

    @torch.no_grad()
    def update(self) -> None:
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self._average, self._parameters, 1 - decay)
        self.updates += 1

    @torch.no_grad()
    def swap(self) -> None:
        """Exchanges the weights with their average; a second call puts them back, bit for bit."""
        for parameter, average in zip(self._parameters, self._average, strict=True):
            held = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(held)

    def state(self, names: list[str]) -> dict[str, Tensor]:
        tensors = dict(zip(names, self._average, strict=True))
        return tensors | {":updates": torch.tensor(self.updates)}

    @torch.no_grad()
    def restore(self, names: list[str], state: Mapping[str, Tensor]) -> None:
        for name, average in zip(names, self._average, strict=True):
            average.copy_(state[name])
        self.updates = int(state[":updates"])
