"""Copies of a module in threads of one process, each with cores of its own.

A matrix product on two threads waits for the slower one at every operation, and small products are
cut too small; two threads that each compute whole operations on their own half of a step do not
wait before its end. The copies share the memory of the weights and have gradients of their own.
"""

from __future__ import annotations

import copy
import queue
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch
from torch import nn

Item = TypeVar("Item")
Result = TypeVar("Result")

# Cells below which a part of a step is not worth a thread.
FEWEST_CELLS = 128
# Each has gradients of its own, and more of them than this gain little.
_MOST = 16


def one_a_core() -> int:
    """Copies that share out a step best: one for each thread that torch may use."""
    return min(torch.get_num_threads(), _MOST)


def sharing_weights(module: nn.Module) -> nn.Module:
    """A copy of `module` whose parameters and buffers are in the memory of the original's."""
    shared: dict[int, object] = {id(buffer): buffer for buffer in module.buffers()}
    for parameter in module.parameters():
        twin = nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad)
        shared[id(parameter)] = twin
    return copy.deepcopy(module, shared)


class Replicas:
    """`count` modules that share weights: the module given, and copies in threads of their own.

    Attributes:
        modules: the module given first, then the copies.
        threads: of torch's own, for each.
    """

    def __init__(self, module: nn.Module, count: int):
        self.modules = [module, *(sharing_weights(module) for _ in range(count - 1))]
        self.threads = max(1, torch.get_num_threads() // count)
        self._workers = [_Worker(self.threads) for _ in range(count - 1)]

    @property
    def count(self) -> int:
        return len(self.modules)

    def each(
        self, work: Callable[[nn.Module, Item], Result], items: Sequence[Item]
    ) -> list[Result]:
        """`work(module, item)` for each item, at most one a module, side by side; in order.

        What an item raises is raised here, once all of them have ended.
        """
        modules = self.modules[: len(items)]
        workers = self._workers[: len(items) - 1]
        before = torch.get_num_threads()
        # Before a copy begins: MKL has one number for all threads.
        torch.set_num_threads(self.threads)
        for worker, module, item in zip(workers, modules[1:], items[1:], strict=True):
            worker.start(lambda module=module, item=item: work(module, item))
        try:
            first = work(modules[0], items[0])
        finally:
            others = [worker.wait() for worker in workers]
            torch.set_num_threads(before)
        for _, error in others:
            if error is not None:
                raise error
        return [first, *(result for result, _ in others)]  # ty: ignore[invalid-explicit-return]

    def gather_gradients(self) -> None:
        """Adds the gradients of the copies to those of the module, in order, and drops them."""
        own = list(self.modules[0].parameters())
        for module in self.modules[1:]:
            for parameter, twin in zip(own, module.parameters(), strict=True):
                if twin.grad is None:
                    continue
                if parameter.grad is None:
                    parameter.grad = twin.grad
                else:
                    parameter.grad += twin.grad
                twin.grad = None

    def drop_gradients(self) -> None:
        """Forgets the gradients of the copies, such as those of a step that failed."""
        for module in self.modules[1:]:
            module.zero_grad(set_to_none=True)


class _Worker(Generic[Result]):
    """A thread that does one piece of work at a time; it ends when this object is let go of."""

    def __init__(self, threads: int):
        self._asked: queue.SimpleQueue[Callable[[], Result] | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[tuple[Result | None, BaseException | None]] = (
            queue.SimpleQueue()
        )
        before = torch.get_num_threads()
        ready = threading.Event()
        given = (self._asked, self._done, threads, ready)
        threading.Thread(target=_serve, args=given, daemon=True).start()
        weakref.finalize(self, self._asked.put, None)
        # MKL has one number for all threads, which the new one has just set.
        ready.wait()
        torch.set_num_threads(before)

    def start(self, work: Callable[[], Result]) -> None:
        self._asked.put(work)

    def wait(self) -> tuple[Result | None, BaseException | None]:
        return self._done.get()


def _serve(
    asked: queue.SimpleQueue, done: queue.SimpleQueue, threads: int, ready: threading.Event
) -> None:
    """Does what is asked, until None is."""
    torch.set_num_threads(threads)
    ready.set()
    while (work := asked.get()) is not None:
        try:
            done.put((work(), None))
        except BaseException as error:
            done.put((None, error))
        # What it holds of a model and a batch is not to wait for the next piece.
        del work
