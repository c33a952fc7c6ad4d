"""What is known of a response without looking into it: its length, its end, a model's score."""

from __future__ import annotations

from fourstage.rewards.contracts import EachAlone, Item, Outcome, outcome


class Length(EachAlone):
    """Soft overlong punishment (Yu et al., *DAPO*, 2025, equation 13).

    0 up to `most - buffer` tokens, `((most - buffer) - tokens) / buffer` up to `most`, -1 above.

    Args:
        most: tokens from which on it is -1. buffer: tokens over which it falls to that.

    Raises:
        ValueError: the buffer is not in 1..most.
    """

    def __init__(self, most: int, buffer: int):
        if not 1 <= buffer <= most:
            raise ValueError(f"buffer={buffer} is not from 1 to most={most}")
        self.most, self.buffer = most, buffer

    def of(self, item: Item) -> Outcome:
        over = item.tokens - (self.most - self.buffer)
        # No `-0.0` where nothing is over.
        return Outcome(-min(1.0, over / self.buffer) if over > 0 else 0.0)


class MissingEnd(EachAlone):
    """-1 for a response that ran out of room before it ended its turn, else 0."""

    def of(self, item: Item) -> Outcome:
        return Outcome(0.0 if item.ended else -1.0)


class Learned(EachAlone):
    """The score that a reward model gave the response before."""

    def of(self, item: Item) -> Outcome:
        return outcome(item.learned)
