"""The optimiser of a module's parameters, in groups by rule, decay and learning rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fourstage.errors import InputError
from fourstage.training.optimisers.adamw8bit import LEAST, AdamW8bit
from fourstage.training.optimisers.muon import Muon
from fourstage.training.optimisers.roles import Role, decays, roles, width_factor
from fourstage.training.optimisers.sharding import Slices
from fourstage.training.settings import TrainSettings


def multiplier(name: str, multipliers: Mapping[str, float]) -> float:
    """The factor of the longest prefix of `name`, 1 where none fits."""
    fitting = [prefix for prefix in multipliers if name.startswith(prefix)]
    return multipliers[max(fitting, key=len)] if fitting else 1.0


def rule_of(optimiser: str, role: Role, parameter: Tensor) -> str:
    """Which update a parameter gets where `optimiser` is asked for: AdamW where it is not for it.

    Muon is for the matrices inside the model, not for the factors of an adapter. A byte a moment is
    for matrices and heads: tables need all 32 bits (Dettmers et al., *8-bit Optimizers*, 2022,
    section 2.3), small ones save nothing.
    """
    if optimiser == "muon" and role == "matrix":
        return "muon"
    if optimiser == "adamw8bit" and decays(role) and parameter.numel() >= LEAST:
        return "adamw8bit"
    return "adamw"


def _groups(
    module: nn.Module,
    trained: Sequence[tuple[str, nn.Parameter]],
    settings: TrainSettings,
    axes: Mapping[str, int],
) -> dict[str, list[dict[str, Any]]]:
    """Rule -> torch's groups of the parameters that it updates alike, in the module's order."""
    role_of = roles(module)
    alike: dict[tuple[str, int | None, bool, float, float], list[Tensor]] = {}
    for name, parameter in trained:
        role = role_of[name]
        rule = rule_of(settings.optimiser, role, parameter)
        key = (
            rule,
            axes.get(name) if rule == "muon" else None,
            decays(role),
            multiplier(name, settings.rate_multipliers),
            width_factor(role, settings.optimiser, settings.width_ratio),
        )
        alike.setdefault(key, []).append(parameter)
    found: dict[str, list[dict[str, Any]]] = {}
    for (rule, axis, decayed, factor, by_width), members in alike.items():
        group = {
            "params": members,
            "axis": axis,
            "multiplier": factor * by_width,
            # The rate goes with the width, how fast weights shrink does not: else rates would not
            # transfer (Wang and Aitchison, *How to set AdamW's weight decay*, 2024).
            "weight_decay": settings.weight_decay / by_width if decayed else 0.0,
        }
        found.setdefault(rule, []).append(group)
    return found


class Optimiser:
    """AdamW (Loshchilov and Hutter, 2019), Muon or 8-bit AdamW; its state by parameter name.

    A parameter that a step did not reach has gradient zero, on one process as on several.

    Args:
        slices: what of the module is cut over processes (`parallel.tensor`).

    Attributes:
        names, parameters: what is trained, in the module's order; a tied weight counts once.

    Raises:
        InputError: every parameter is frozen.
    """

    def __init__(
        self, module: nn.Module, settings: TrainSettings, slices: Slices | None = None
    ):
        self._slices = slices or Slices()
        trained = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        if not trained:
            raise InputError("nothing is left to train, as every parameter is frozen: freeze less")
        self.names = [name for name, _ in trained]
        self.parameters = [parameter for _, parameter in trained]
        by_rule = _groups(module, trained, settings, self._slices.axes)
        self._rules = [self._rule(rule, groups, settings) for rule, groups in by_rule.items()]

    def _rule(
        self, rule: str, groups: list[dict[str, Any]], settings: TrainSettings
    ) -> torch.optim.Optimizer:
        if rule == "muon":
            return Muon(groups, settings.learning_rate, sliced=self._slices.group)
        betas = (settings.beta1, settings.beta2)
        if rule == "adamw8bit":
            return AdamW8bit(groups, settings.learning_rate, betas, settings.eps)
        return torch.optim.AdamW(
            groups,
            lr=settings.learning_rate,
            betas=betas,
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
        for rule in self._rules:
            for group in rule.param_groups:
                group["lr"] = learning_rate * group["multiplier"]
            rule.step()

    def zero_gradients(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def state(self) -> dict[str, Tensor]:
        """`<parameter>:<slot>` -> tensor; empty before the first step."""
        slots = {id(p): held for rule in self._rules for p, held in rule.state.items()}
        return {
            f"{name}:{slot}": value
            for name, parameter in zip(self.names, self.parameters, strict=True)
            for slot, value in slots.get(id(parameter), {}).items()
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Puts back what `state` gave, into memory of this process's own."""
        slots: dict[str, dict[str, Tensor]] = {}
        for key, value in state.items():
            name, slot = key.rsplit(":", 1)
            slots.setdefault(name, {})[slot] = value
        name_of = {id(p): name for name, p in zip(self.names, self.parameters, strict=True)}
        for rule in self._rules:
            rule.state.clear()
            # torch's fused AdamW counts its steps beside the weights, the others on the CPU.
            counts_beside = bool(rule.defaults.get("fused"))
            for parameter in (p for group in rule.param_groups for p in group["params"]):
                for slot, value in slots.get(name_of[id(parameter)], {}).items():
                    away = slot == "step" and not counts_beside
                    where = torch.device("cpu") if away else parameter.device
                    rule.state[parameter][slot] = value.to(where, copy=True)


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
