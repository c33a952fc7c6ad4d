"""An objective whose first batches train the critic alone."""

from __future__ import annotations

from typing import Any

from fourstage.data.batch import Batch
from fourstage.objectives.objective import Metrics, Objective, Sums

_VALUE = "value"


class CriticFirst:
    """`inner`, of which only the value's term has a gradient where a batch says `critic_alone`.

    A critic that knows nothing yet would make noise of its advantages. The documents' number
    `critic_alone` is 1 for all of a batch or 0 for all; the other terms are multiplied by what is
    left of 1, so that losses are the same in every micro-batch and on every process.
    """

    def __init__(self, inner: Objective):
        self.inner = inner

    def counts(self, batch: Batch) -> dict[str, float]:
        return self.inner.counts(batch)

    def sums(self, module: Any, micro: Batch) -> tuple[Sums, Metrics]:
        sums, metrics = self.inner.sums(module, micro)
        share = 1.0 - micro.documents["critic_alone"].max()
        return {
            name: term if name == _VALUE else share * term for name, term in sums.items()
        }, metrics
