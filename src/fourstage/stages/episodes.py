"""Episodes: who plays, what was drawn, and the batch that it becomes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from fourstage.data.batch import Batch, Example
from fourstage.evaluation.responses import Response
from fourstage.model.actor_critic import ActorCritic
from fourstage.model.transformer import Transformer
from fourstage.objectives.estimating import PLACED
from fourstage.parallel.group import Group
from fourstage.rewards.total import Judged
from fourstage.stages.playing import Dialogue


@dataclass(frozen=True)
class Players:
    """The models of reinforcement learning; only `trained` changes.

    Attributes:
        trained: the policy, and the critic where the algorithm has one.
        reference: the policy as it was before the first update, or at the last reset; None where
            nothing is compared with it.
        reward_model: scores a response; its mean and deviation are applied here. None where other
            rewards take its place.
    """

    trained: ActorCritic
    reference: Transformer | None = None
    reward_model: Transformer | None = None


@dataclass
class Episodes:
    """All that an iteration drew; of it `kept` is trained on.

    Attributes:
        tasks: [drawn] index of each one's prompt; responses to one prompt stand together.
        scores: [drawn] what training gets, float32.
        outcomes: what each part of the rewards said.
        dead: [drawn] whether all responses to its prompt have the same score.
        kept: indices of those that are trained on.
    """

    tasks: list[int] = field(default_factory=list)
    responses: list[Response] = field(default_factory=list)
    scores: Tensor = field(default_factory=lambda: torch.zeros(0))
    judged: Judged = field(default_factory=lambda: Judged([], {}))
    dead: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))
    kept: list[int] = field(default_factory=list)

    def add(
        self,
        tasks: Sequence[int],
        responses: Sequence[Response],
        scores: Tensor,
        judged: Judged,
        dead: Tensor,
    ) -> None:
        """Adds a round of drawing; none of it is kept yet."""
        self.tasks += tasks
        self.responses += responses
        self.scores = torch.cat([self.scores, scores])
        self.dead = torch.cat([self.dead, dead])
        self.judged = self.judged.followed_by(judged)

    def batch(self) -> Batch:
        """What is kept, each with its score, and where that is a sum with the parts of it."""
        batch = as_batch([self.responses[index] for index in self.kept])
        batch.documents["scores"] = self.scores[self.kept]
        if len(self.judged.outcomes) > 1:
            for name, found in self.judged.outcomes.items():
                told = [found[index].score for index in self.kept]
                numbers = [math.nan if each is None else each for each in told]
                batch.documents[f"reward/{name}"] = torch.tensor(numbers)
        if self.judged.placed:
            placed = [self.judged.placed[index] for index in self.kept]
            batch.streams[PLACED] = placed_rewards(batch, placed)
        return batch


def placed_rewards(batch: Batch, placed: Sequence[Sequence[tuple[int, float]]]) -> Tensor:
    """[cells] the numbers of each response's tokens, at the cells that predict them.

    Args:
        batch: with `prompt_tokens`.
        placed: [documents] (token of the response, number).
    """
    found = torch.zeros(batch.cells)
    start = 0
    for length, prompt, each in zip(
        batch.lengths, batch.documents["prompt_tokens"].tolist(), placed, strict=True
    ):
        for token, number in each:
            found[start + prompt + token - 1] += number
        start += length
    return found


def as_batch(responses: Sequence[Response]) -> Batch:
    """Prompt and response as one document each; the response's tokens alone are trained.

    Of episodes, only what the policy drew; the stream `observed` marks the cells of what it was
    told.
    """
    examples, observed = [], []
    for each in responses:
        tokens = np.array([*each.prompt, *each.tokens], np.int64)
        mask = np.arange(len(tokens)) >= len(each.prompt)
        if isinstance(each, Dialogue):
            nothing = np.zeros(len(each.prompt) - 1, np.float32)
            mask[len(each.prompt) :] = each.drawn
            observed += [nothing, ~each.drawn]
        examples.append(Example(tokens, mask))
    batch = Batch.language(examples)
    if observed:
        batch.streams["observed"] = torch.from_numpy(np.concatenate(observed).astype(np.float32))
    batch.documents["prompt_tokens"] = torch.tensor([len(each.prompt) for each in responses])
    return batch


def of_each(group: Group, batch: Batch, number: Callable[[Batch], Tensor]) -> Tensor:
    """`number(batch)` [cells], of which each process works out that of its documents."""
    if group.world_size == 1:
        return number(batch)
    documents = group.share(range(len(batch.lengths)))
    part = batch.select(documents) if documents else None
    own = list(number(part).split(part.lengths)) if part else []
    return torch.cat(group.collect(own, len(batch.lengths)))


def with_text(minibatch: Batch, text: Batch) -> Batch:
    """The minibatch with documents of pretraining text behind it, which `mix_weights` mark.

    Every other stream, and the numbers a document has, are zero on them.
    """
    cells, documents = text.cells, len(text.lengths)
    streams = {
        name: torch.cat([stream, stream.new_zeros(cells)])
        for name, stream in minibatch.streams.items()
    }
    own = torch.zeros(minibatch.cells)
    streams["mix_weights"] = torch.cat([own, text.streams["loss_weights"]])
    return Batch(
        torch.cat([minibatch.tokens, text.tokens]),
        (*minibatch.lengths, *text.lengths),
        torch.cat([minibatch.targets, text.targets]),
        streams,
        {
            name: torch.cat([values, values.new_zeros(documents)])
            for name, values in minibatch.documents.items()
        },
    )
