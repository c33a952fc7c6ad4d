"""The batch of a step: which one it is, and a thread that draws the next one meanwhile."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

import torch

from fourstage.data.batch import Batch
from fourstage.randomness import seed_for
from fourstage.training.contracts import Source
from fourstage.training.reactions import Stability
from fourstage.training.settings import TrainSettings


class Batches:
    """Draws the batches of a source, past those that were left out.

    A source whose batch depends on its number alone (`depends_on_number_alone`) can be asked ahead:
    the bits are those of drawing in turn, and a draw that was not needed leaves no trace. What it
    raises is raised at the step that the batch is for.

    Attributes:
        ahead: whether the next batch is drawn while a step computes. On a CUDA device it then lies
            in page-locked memory, from which it is copied beside the computations.
    """

    def __init__(
        self, source: Source, settings: TrainSettings, stability: Stability, device: torch.device
    ):
        self.source = source
        self.settings = settings
        self.stability = stability
        self.on_cuda = device.type == "cuda"
        wanted = self.on_cuda if settings.prefetch is None else settings.prefetch
        self.ahead = wanted and getattr(source, "depends_on_number_alone", False)
        self._thread: ThreadPoolExecutor | None = None
        self._next: tuple[int, Future[Batch]] | None = None

    def __enter__(self) -> Batches:
        if self.ahead:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
        return self

    def __exit__(self, *_: object) -> None:
        """Waits for the draw at work, if there is one, and forgets it."""
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
        self._thread = self._next = None

    def batch(self, step: int) -> Batch:
        """The batch of a step."""
        number = self.stability.batch_of(step)
        # Whatever draws from the global stream draws by batch, not by what ran before.
        torch.manual_seed(seed_for(self.settings.seed, "step", number))
        if self._thread is None:
            return self.source.batch(number)
        expected, self._next = self._next, None
        if expected is None or expected[0] != number:
            expected = number, self._thread.submit(self._draw, number)
        found = expected[1].result()
        if step + 1 < self.settings.steps:
            number = self.stability.batch_of(step + 1)
            self._next = number, self._thread.submit(self._draw, number)
        return found

    def _draw(self, number: int) -> Batch:
        batch = self.source.batch(number)
        return batch.pin_memory() if self.on_cuda else batch
