"""Numbers that show trouble before the loss does: sizes of activations, logits and updates.

They are taken from a short forward pass of its own on the first cells of a step's batch, after the
update, and from a sample of the weights before and after it. Training sees nothing of them.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Generator
from typing import Any

import torch
from torch import Tensor, nn

from fourstage import kernels
from fourstage.compiled import as_written
from fourstage.data.batch import Batch
from fourstage.model.layout import Layout
from fourstage.model.transformer import Transformer
from fourstage.precision import autocast
from fourstage.training.optimiser import Optimiser
from fourstage.training.settings import TrainSettings

# The pass reads this share of a step's cells: a hundredth of the step's operations.
_SHARE, _FEWEST_CELLS, _MOST_CELLS = 1 / 32, 32, 1024
# Elements of each parameter that the update is measured on.
_SAMPLED = 2048
_LAYER = re.compile(r"model\.layers\.(\d+)\.")


class Watch:
    """Watches every transformer of a module; names of all but the first carry its own in front.

        activation_rms, activation_max   the residual stream behind each block
        attention_logit_max              bound on |q.k| * scale: the longest query and key of a head
        logit_max, log_z                 |logits|, and the log of the softmax's denominator
        update_ratio                     |update| / |weight| by group of parameters

    Looks every `watch_every` steps, the first and the last; unless it is said, at every second row.
    """

    def __init__(self, module: nn.Module, optimiser: Optimiser, settings: TrainSettings):
        self.settings = settings
        self.parameters = optimiser.parameters
        found = [(n, part) for n, part in module.named_modules() if isinstance(part, Transformer)]
        prefixes = {name: f"{name}." if place else "" for place, (name, _) in enumerate(found)}
        self.models = {prefixes[name]: model for name, model in found}
        self.groups: dict[tuple[str, str], list[int]] = {}
        for place, name in enumerate(optimiser.names):
            self.groups.setdefault(_group(name, prefixes), []).append(place)

    def before(self, step: int) -> list[Tensor] | None:
        """A sample of the weights ahead of the update that makes `step`; None where it is not
        watched."""
        every = self.settings.watch_every
        every = 2 * self.settings.log_every if every is None else every
        if not every or (step % every and step not in (1, self.settings.steps)):
            return None
        return self._weights()

    @torch.no_grad()
    def after(
        self, batch: Batch, before: list[Tensor]
    ) -> tuple[dict[str, float], dict[str, list[float | None]]]:
        """What is seen after the update, on the first cells of the step's batch.

        Returns:
            {name: number} over all layers, and {name: [layers] numbers}.
        """
        totals: dict[str, float] = {}
        layers: dict[str, list[float | None]] = {}
        device = next((p.device for p in self.parameters), torch.device("cpu"))
        tokens, layout = _first_cells(batch, device)
        for prefix, model in self.models.items():
            columns, single = _forward(model, tokens, layout)
            for name, column in columns.items():
                layers[prefix + name] = [_rounded(number) for number in column]
                totals[prefix + name] = max(column)
            totals |= {prefix + name: number for name, number in single.items()}
        ratios = self._update_ratios(before)
        for (kind, _), ratio in ratios.items():
            layers.setdefault(kind, []).append(_rounded(ratio))
        if ratios:
            totals["update_ratio"] = sorted(ratios.values())[len(ratios) // 2]
            totals["update_ratio_max"] = max(ratios.values())
        return totals, layers

    @torch.no_grad()
    def _weights(self) -> list[Tensor]:
        return [_sample(parameter) for parameter in self.parameters]

    def _update_ratios(self, before: list[Tensor]) -> dict[tuple[str, str], float]:
        """|update| / |weight| of each group, each parameter's sample standing for all of it."""
        if not before:
            return {}
        after = self._weights()
        changes = torch._foreach_norm(torch._foreach_sub(after, before))
        norms = torch.stack([torch.stack(changes), torch.stack(torch._foreach_norm(after))])
        pairs = zip(self.parameters, after, strict=True)
        stands_for = torch.tensor([p.numel() / max(1, sample.numel()) for p, sample in pairs])
        changed, there = (norms.cpu().square() * stands_for).tolist()
        ratios = {}
        for group, members in self.groups.items():
            size = sum(there[place] for place in members)
            ratios[group] = (sum(changed[place] for place in members) / (size or 1.0)) ** 0.5
        return ratios


def _group(name: str, prefixes: dict[str, str]) -> tuple[str, str]:
    """What a parameter is part of, and its layer: ("update_ratio/mlp", "3"),
    ("critic.update_ratio/head", "")."""
    owner = next((model for model in prefixes if model and name.startswith(f"{model}.")), "")
    rest = name[len(owner) + 1 :] if owner else name
    layer = _LAYER.match(rest)
    if "norm" in rest:
        kind = "norms"
    elif layer:
        kind = "attention" if "attn" in rest else "mlp"
    else:
        kind = "embedding" if "embed" in rest else "head"
    return f"{prefixes.get(owner, '')}update_ratio/{kind}", layer[1] if layer else ""


def _sample(parameter: Tensor) -> Tensor:
    """At most about `_SAMPLED` elements, evenly spread, as fp32; of a shard its local ones."""
    local = getattr(parameter, "to_local", lambda: parameter)().detach().flatten()
    # Odd, so that it does not walk down one column of a matrix whose width is a power of two.
    stride = max(1, local.numel() // _SAMPLED) | 1
    return local[::stride].float().clone()


def _first_cells(batch: Batch, device: torch.device) -> tuple[Tensor, Layout]:
    """The batch's first documents up to some cells, the last of them cut."""
    wanted = min(_MOST_CELLS, max(_FEWEST_CELLS, int(batch.cells * _SHARE)), batch.cells)
    lengths, left = [], wanted
    for length in batch.lengths:
        if not left:
            break
        lengths.append(min(length, left))
        left -= lengths[-1]
    return batch.tokens[:wanted].to(device), Layout(tuple(lengths), device)


def _forward(
    model: Transformer, tokens: Tensor, layout: Layout
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """What a forward pass shows, layer by layer and at its end; it waits for the device once."""
    norms: list[Tensor] = []
    largest: list[Tensor] = []
    scores: list[Tensor] = []

    def after_block(block: nn.Module, inputs: Any, output: Tensor) -> None:
        norms.append(torch.linalg.vector_norm(output, dtype=torch.float32))
        largest.append(torch.linalg.vector_norm(output, math.inf, dtype=torch.float32))

    def after_projection(q: Tensor, k: Tensor) -> None:
        # A score is at most the product of the two norms (Cauchy and Schwarz).
        longest = [torch.linalg.vector_norm(x, dim=-1, dtype=torch.float32).amax(0) for x in (q, k)]
        scores.append((longest[0].view(longest[1].shape[0], -1) * longest[1][:, None]).max())

    blocks: Any = model.model.layers
    hooks = [block.register_forward_hook(after_block) for block in blocks]
    try:
        with (
            _as_evaluated(model),
            autocast(tokens.device),
            kernels.without(),
            _told_of_projections(blocks, after_projection),
        ):
            hidden = model(tokens, layout)
            width = hidden.shape[-1] * hidden.shape[0]
            seen = [torch.stack(norms) / width**0.5, torch.stack(largest)]
            seen.append(torch.stack(scores) * model.config.attention_scale)
            if model.head == "language":
                logits = model.logits(hidden[:_FEWEST_CELLS]).float()
                seen += [logits.abs().max()[None], logits.logsumexp(-1).mean()[None]]
    finally:
        for hook in hooks:
            hook.remove()
    numbers = torch.cat(seen).tolist()
    depth = len(blocks)
    names = ("activation_rms", "activation_max", "attention_logit_max")
    columns = {name: numbers[i * depth : (i + 1) * depth] for i, name in enumerate(names)}
    return columns, dict(zip(("logit_max", "log_z"), numbers[3 * depth :], strict=False))


@contextlib.contextmanager
def _told_of_projections(blocks: Any, tell: Callable[[Tensor, Tensor], None]) -> Generator[None]:
    """Tells of the queries and keys of each layer, which no module hands out."""

    def telling(project: Callable[..., tuple[Tensor, Tensor, Tensor]]) -> Callable:
        def told(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
            q, k, v = project(*inputs)
            tell(q, k)
            return q, k, v

        return told

    for block in blocks:
        # On the object, before the method of its class.
        block.self_attn.project = telling(block.self_attn.project)
    try:
        yield
    finally:
        for block in blocks:
            del block.self_attn.project


@contextlib.contextmanager
def _as_evaluated(model: nn.Module) -> Generator[None]:
    """In evaluation mode, its blocks as written: compiled code calls no hooks added to it."""
    was_training = model.training
    model.eval()
    try:
        with as_written():
            yield
    finally:
        model.train(was_training)


def _rounded(number: float) -> float | None:
    """Four significant figures; what is not finite becomes null."""
    return float(f"{number:.4g}") if abs(number) < float("inf") else None
