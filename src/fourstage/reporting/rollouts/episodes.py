"""Episodes of a rollout as columns of numbers, one a response token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fourstage.data.batch import Batch
from fourstage.errors import InputError
from fourstage.reporting.numbers import figures

# Columns in the order they are shown: heading, and the stream it is.
COLUMNS = (
    ("rollout", "rollout_logprobs"),
    ("old", "old_logprobs"),
    ("ref", "ref_logprobs"),
    ("now", "now_logprobs"),
    ("KL", "kl"),
    ("reward", "rewards"),
    ("value", "old_values"),
    ("return", "returns"),
    ("advantage", "advantages"),
    ("ratio", "ratios"),
)
# Only the sums of these over a response mean something.
SUMMED = frozenset({"rollout", "old", "ref", "now", "KL", "reward"})
CLIPPED, FINISHED, GOLD = "clipped", "finished", "gold"
# What a document carries for the training's own sake.
_INNER = frozenset(
    {"prompt_tokens", "group", "weights", "critic_alone", "labels", "left_out", FINISHED}
)


@dataclass(frozen=True)
class Episode:
    """A prompt and the response to it.

    Attributes:
        number: its place in the rollout.
        prompt, response: token ids; of several turns all that follows the first messages.
        columns: heading -> [response tokens] what the cell that predicts each token holds; nats,
            but for `ratio` (now / old, of the token or of the response as the algorithm has it).
        drawn: [response tokens] whether the policy drew each; the others an environment wrote, and
            no number of theirs means anything.
        clipped: [response tokens] whether the algorithm's clip took hold; None where not known.
        numbers: what the episode has as a whole: its score, parts of it, gold where it is known.
        is_finished: whether the response ended by itself; None where not known.
        is_trained: whether any of its tokens is in the loss.
    """

    number: int
    prompt: list[int]
    response: list[int]
    columns: dict[str, Tensor]
    drawn: Tensor
    clipped: Tensor | None = None
    numbers: dict[str, float] = field(default_factory=dict)
    is_finished: bool | None = None
    is_trained: bool = True

    def total(self, column: str) -> float | None:
        """The sum of a column over the response; None where it has none or it means nothing."""
        if column not in self.columns or column not in SUMMED:
            return None
        return float(self.columns[column].sum())

    def summary(self, count: int) -> str:
        """One line: what it earned, how far from the reference, how long, how it ended."""
        facts = [f"{name} {figures(value)}" for name, value in self.numbers.items()]
        kl, reward = self.total("KL"), self.total("reward")
        if reward is not None:
            facts.append(f"rewards sum to {figures(reward)}")
        if kl is not None:
            facts.append(f"KL {figures(kl)} nats")
        facts.append(f"{int(self.drawn.sum())} tokens")
        if self.is_finished is not None:
            facts.append("finished" if self.is_finished else "cut off")
        if self.clipped is not None:
            facts.append(f"{int(self.clipped.sum())} clipped")
        if not self.is_trained:
            facts.append("left out of the loss")
        return f"episode {self.number} of {count}: {', '.join(facts)}"


def response_weights(batch: Batch) -> Tensor:
    """[cells] 1 where a token that the policy drew is predicted, whether the loss counts it or
    not."""
    drawn = _follows_prompt(batch)
    if "observed" in batch.streams:
        drawn &= batch.streams["observed"] == 0
    return drawn.float()


def _follows_prompt(batch: Batch) -> Tensor:
    """[cells] whether a token behind the prompt is predicted, whoever wrote it."""
    if "prompt_tokens" not in batch.documents:
        return batch.streams["loss_weights"] != 0
    prompts = batch.documents["prompt_tokens"].long()
    return batch.positions >= prompts[batch.document_ids] - 1


def with_kl(batch: Batch) -> dict[str, Tensor]:
    """The streams, and where old policy and reference are known the k1 estimate of each token."""
    streams = dict(batch.streams)
    if "old_logprobs" in streams and "ref_logprobs" in streams:
        streams["kl"] = streams["old_logprobs"] - streams["ref_logprobs"]
    return streams


def episodes_of(batch: Batch) -> list[Episode]:
    """The episodes of a rollout, in order."""
    streams, is_response = with_kl(batch), _follows_prompt(batch)
    is_drawn = response_weights(batch).bool()
    found, start = [], 0
    for number, length in enumerate(batch.lengths):
        cells = torch.arange(start, start + length)
        start += length
        own = cells[is_response[cells]]
        ids = [*batch.tokens[cells].tolist(), int(batch.targets[cells[-1]])]
        told = {name: float(values[number]) for name, values in batch.documents.items()}
        split = len(ids) - len(own)
        finished = told.get(FINISHED)
        found.append(
            Episode(
                number,
                ids[:split],
                ids[split:],
                {name: streams[stream][own] for name, stream in COLUMNS if stream in streams},
                is_drawn[own],
                streams[CLIPPED][own] != 0 if CLIPPED in streams else None,
                {
                    _name(n): value
                    for n, value in told.items()
                    if n not in _INNER and value == value
                },
                None if finished is None else finished > 0,
                bool(streams["loss_weights"][own].any()),
            )
        )
    return found


def _name(number: str) -> str:
    return "score" if number == "scores" else number


def chosen(episodes: Sequence[Episode], first: int, most: int) -> list[Episode]:
    """Up to `most` episodes from `first` on.

    Raises:
        InputError: there is no episode `first`.
    """
    if not 0 <= first < len(episodes):
        raise InputError(
            f"--episode {first}: the rollout has {len(episodes)} episodes; "
            f"write a number from 0 to {len(episodes) - 1}"
        )
    return list(episodes[first : first + most])
