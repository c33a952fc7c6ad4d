"""Checks that stop a run which would train the wrong thing, before its first update.

Each factory returns a guard `(module, objective, batch) -> None`; the trainer calls the guards of a
stage on its first batch.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fourstage.data.batch import Batch
from fourstage.errors import MachineError
from fourstage.objectives.objective import Objective
from fourstage.randomness import generator
from fourstage.training.contracts import Guard

# Token ids of a document -> whether each is to be trained.
Expected = Callable[[Sequence[int]], list[bool]]

_DOCUMENTS_CHECKED = 256


class GuardFailed(MachineError):
    """The first batch is not what the stage says it trains on."""


class NotFinite(MachineError):
    """Several steps in a row had no finite loss and gradient."""


def weights_are_finite(module: nn.Module) -> None:
    """What training starts from can be computed with.

    Raises:
        GuardFailed: a parameter holds NaN or infinity.
    """
    for name, parameter in module.named_parameters():
        if not bool(parameter.detach().isfinite().all()):
            raise GuardFailed(
                f"the weights of {name} are not finite before the first update: the model that is "
                "started from is broken; take another, such as an earlier checkpoint of it"
            )


def every_token(tokens: Sequence[int]) -> list[bool]:
    """Pretraining: all but the first, which nothing predicts."""
    return [index > 0 for index in range(len(tokens))]


def assistant_turns(assistant: int, ends: Collection[int]) -> Expected:
    """SFT: what follows each `assistant` mark, up to and with the token that ends the turn."""

    def expected(tokens: Sequence[int]) -> list[bool]:
        inside, trained = False, []
        for token in tokens:
            trained.append(inside)
            inside = token not in ends if inside else token == assistant
        return trained

    return expected


def trains_only(expected: Expected) -> Guard:
    """The trained cells are the ones `expected` names, and each predicts the token after it."""

    def guard(module: nn.Module, objective: Objective, batch: Batch) -> None:
        start = 0
        weights = batch.streams["loss_weights"] != 0
        for number, length in enumerate(batch.lengths[:_DOCUMENTS_CHECKED]):
            cells = slice(start, start + length)
            start += length
            tokens = batch.tokens[cells].tolist()
            targets = batch.targets[cells].tolist()
            trained = weights[cells].tolist()
            wanted = expected([*tokens, targets[-1]])[1:]
            for cell, (is_trained, is_wanted) in enumerate(zip(trained, wanted, strict=True)):
                if is_trained != is_wanted:
                    raise GuardFailed(
                        f"first batch, document {number}, cell {cell} (predicts token "
                        f"{targets[cell]}): it is {_word(is_trained)} but should be "
                        f"{_word(is_wanted)}; the loss mask does not match the text"
                    )
                if is_trained and cell + 1 < length and targets[cell] != tokens[cell + 1]:
                    raise GuardFailed(
                        f"first batch, document {number}, cell {cell}: it is trained on token "
                        f"{targets[cell]} but the next token is {tokens[cell + 1]}"
                    )

    return guard


def _word(trained: bool) -> str:
    return "trained" if trained else "not trained"


def documents_do_not_leak(tolerance: float = 1e-4, pairs: int = 4) -> Guard:
    """A document's loss is the same packed behind another as alone, within `tolerance` a cell.

    Matrices that are all zero (output projections at the start) hide a leak: they hold small
    random numbers while the guard looks. A loss that is not finite is left to the step, which says
    where it comes from.
    """

    def guard(module: nn.Module, objective: Objective, batch: Batch) -> None:
        units = batch.groups()
        device = next(module.parameters()).device
        with _awake(module), torch.no_grad():
            for first, second in itertools.islice(itertools.pairwise(units), pairs):
                cells = sum(batch.lengths[index] for index in second)
                packed = _losses(module, objective, batch.select([*first, *second]).to(device))
                alone = [
                    _losses(module, objective, batch.select(unit).to(device))
                    for unit in (first, second)
                ]
                for name, value in packed.items():
                    gap = abs(value - sum(part[name] for part in alone)) / cells
                    if gap > tolerance:
                        raise GuardFailed(
                            f"first batch, document {second[0]}: its loss ({name}) packed behind "
                            f"document {first[-1]} differs from its loss alone by {gap:.2g} a "
                            f"token; something crosses the boundary between documents"
                        )

    return guard


def _losses(module: nn.Module, objective: Objective, batch: Batch) -> dict[str, float]:
    terms, _ = objective.sums(module, batch)
    return {name: float(value) for name, value in terms.items()}


@contextmanager
def _awake(module: nn.Module) -> Generator[None]:
    """Fills matrices of zeros with N(0, 1/width) for a while."""
    silent = [
        parameter
        for parameter in module.parameters()
        if parameter.dim() >= 2 and not bool(parameter.detach().any())
    ]
    with torch.no_grad():
        for index, parameter in enumerate(silent):
            drawn = torch.randn(parameter.shape, generator=generator(0, "guard", index))
            parameter.copy_(drawn * parameter.shape[-1] ** -0.5)
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter in silent:
                parameter.zero_()


def first_ratio_is_one(
    logprobs: Callable[[nn.Module, Batch], Tensor], tolerance: float = 1e-5
) -> Guard:
    """RL: before any update the policy's probability of each token is that at the rollout.

    `logprobs(module, batch) -> [cells]` are the trainer's own, at the temperature of the rollout;
    the batch holds those of the rollout as `old_logprobs`.
    """

    def guard(module: nn.Module, objective: Objective, batch: Batch) -> None:
        batch = batch.to(next(module.parameters()).device)
        trained = batch.streams["loss_weights"] != 0
        with torch.no_grad():
            now = logprobs(module, batch)
        ratio = (now - batch.streams["old_logprobs"])[trained].exp()
        worst = float((ratio - 1).abs().max()) if ratio.numel() else 0.0
        if not worst <= tolerance:
            raise GuardFailed(
                f"first minibatch: a probability ratio is {worst:.2g} away from 1 before any "
                f"update; rollout and training do not see the same model, tokens or temperature"
            )

    return guard
