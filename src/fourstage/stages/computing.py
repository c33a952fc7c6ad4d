"""How a stage computes: in which precision; on a CPU also through the C kernels or torch alone, and
with how many workers.

All of it changes the last bits of a result. So what a stage began with is kept in run.json, and
holds until something else is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from fourstage import kernels, precision
from fourstage.kernels import library
from fourstage.memory import free_bytes
from fourstage.parallel.replicas import one_a_core
from fourstage.training.fitting import Measured

if TYPE_CHECKING:
    from fourstage.parallel.group import Group
    from fourstage.recipe.schema import Compute

# The gradients of all workers may take this share of the memory that is free.
_SHARE = 0.125


def settle_kernels(
    compute: Compute, device: torch.device, measured: Measured, say: Callable[[str], None]
) -> None:
    """Switches the C kernels on or off for this process, as the stage began.

    Says where they are missed, and where a stage goes on without those that it began with.
    """
    if device.type != "cpu":
        return
    asked = compute.kernels
    began = _noted(measured, "kernels", asked=asked)
    kernels.use(asked == "auto" and began is not False)
    if asked == "auto" and library.why_not() and began is not False:
        ending = "from here on the last digits differ" if began else "training is slower"
        say(f"without C kernels: {library.why_not()}; {ending}")
    if began is None:
        measured.note(kernels={"asked": asked, "taken": kernels.usable()})


def settle_precision(
    compute: Compute, device: torch.device, measured: Measured, say: Callable[[str], None]
) -> None:
    """Sets the precision of this process's products; says where it is another than fp32.

    Raises:
        MachineError: the device does not have it.
    """
    asked, began = compute.precision, _noted(measured, "precision", asked=compute.precision)
    taken = precision.resolve(asked, device)
    precision.use(taken)
    if began not in (None, taken):
        say(f"precision: begun with {began}, which is not what this device takes: now {taken}")
    elif line := precision.described(taken, device):
        say(line)
    measured.note(precision={"asked": asked, "taken": taken})


def settle_workers(
    compute: Compute, device: torch.device, measured: Measured, parameters: int, group: Group
) -> int:
    """Copies of a model of so many trained parameters that share out a step, one for each core.

    Each of several processes has as many; another number of them begins anew.
    """
    if device.type != "cpu":
        return 1
    holds_for = {"asked": compute.workers, "processes": group.world_size}
    workers = _noted(measured, "workers", **holds_for)
    if workers is None:
        workers = compute.workers or int(group.lowest(_one_a_core(device, parameters)))
        measured.note(workers={**holds_for, "taken": workers})
    return workers


def _noted(measured: Measured, what: str, **holds_for: Any) -> Any:
    """What the stage began with; None where it begins now, or something else is asked for."""
    found = measured.found.get(what)
    # Earlier versions noted less.
    if not found or any(found.get(key, value) != value for key, value in holds_for.items()):
        return None
    return found["taken"]


def _one_a_core(device: torch.device, parameters: int) -> int:
    free = free_bytes(device)
    cores = one_a_core()
    room = cores if free is None else int(_SHARE * free / (4 * max(1, parameters)))
    return max(1, min(cores, room))
