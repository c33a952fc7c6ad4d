"""Responses to held-out prompts: through the chat template, or as plain text from a base model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from fourstage.generation.engine import Completion, Engine
from fourstage.generation.sampling import Sampling
from fourstage.model.transformer import Transformer
from fourstage.randomness import seed_for
from fourstage.tasks import Messages, Task

if TYPE_CHECKING:
    from fourstage.tokenizer import Tokenizer


@dataclass(frozen=True)
class Response:
    """What a model wrote to a prompt.

    Attributes:
        prompt: token ids the model read. tokens: token ids it wrote, with the stop token if any.
        text: what it wrote, without special tokens.
        finished: whether it drew a stop token, rather than running out of room.
        logprobs: [tokens] as drawn, where they were kept.
    """

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    text: str
    finished: bool
    logprobs: np.ndarray | None = field(default=None, compare=False)

    @property
    def turn_lengths(self) -> tuple[int, ...]:
        """Tokens of each of its turns; of a single answer the one."""
        return (len(self.tokens),)

    @property
    def own_tokens(self) -> tuple[int, ...]:
        """The tokens that the model drew; an episode has others between its turns."""
        return self.tokens


@dataclass(frozen=True)
class Chat:
    """A model with its tokenizer and the longest response it may write."""

    model: Transformer
    tokenizer: Tokenizer
    max_new_tokens: int
    seed: int = 0

    def fits(self, prompt: Sequence[int]) -> bool:
        """Whether the context holds the prompt and a token of response."""
        return len(prompt) < self.model.config.context

    def answerable(self, tasks: Sequence[Task]) -> list[Task]:
        """The tasks whose prompts fit the context."""
        return [task for task in tasks if self.fits(self.tokenizer.chat_prompt(task.prompt))]

    def respond(
        self,
        prompts: Sequence[str | Messages],
        temperature: float = 0.0,
        purpose: str = "responses",
    ) -> list[Response]:
        """A response to each prompt through the template; 0 is greedy.

        At a temperature, response i depends on (seed, purpose, i) and its prompt alone.
        """
        return self.continued(
            [self.tokenizer.chat_prompt(prompt) for prompt in prompts],
            temperature,
            purpose,
            self.tokenizer.stop_ids,
        )

    def complete(
        self, prompts: Sequence[str], temperature: float = 0.0, purpose: str = "completions"
    ) -> list[Response]:
        """Each prompt continued as a document: after its start token, up to its end token."""
        tokenizer = self.tokenizer
        rows = [[tokenizer.start_of_text, *tokenizer.encode(prompt)] for prompt in prompts]
        return self.continued(rows, temperature, purpose, (tokenizer.end_of_text,))

    def as_text(
        self, prompts: Sequence[str | Messages], temperature: float = 0.0, purpose: str = "texts"
    ) -> list[Response]:
        """What each prompt asks last, continued as a document: how a base model is asked."""
        return self.complete([last_turn(prompt) for prompt in prompts], temperature, purpose)

    def continued(
        self,
        rows: Sequence[Sequence[int]],
        temperature: float,
        purpose: str,
        stop_ids: Sequence[int],
    ) -> list[Response]:
        """Token rows continued; those that leave no room get an empty response."""
        sampling = Sampling(
            temperature=temperature, max_new_tokens=self.max_new_tokens, stop_ids=tuple(stop_ids)
        )
        room = [index for index, row in enumerate(rows) if self.fits(row)]
        seeds = [seed_for(self.seed, purpose, index) for index in room]
        done = Engine(self.model).generate([rows[index] for index in room], sampling, seeds)
        found = {index: each for index, each in zip(room, done, strict=True)}
        return [self._response(row, found.get(index)) for index, row in enumerate(rows)]

    def _response(self, row: Sequence[int], completion: Completion | None) -> Response:
        tokens = tuple(completion.tokens) if completion else ()
        finished = completion is not None and completion.finish == "stop"
        return Response(tuple(row), tokens, self.tokenizer.decode(list(tokens)), finished)


def turns(prompt: str | Messages) -> Messages:
    """A prompt as messages."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)


def last_turn(prompt: str | Messages) -> str:
    """What a prompt asks last, as plain text."""
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]


def with_response(prompt: str | Messages, response: str) -> Messages:
    """A conversation that ends in `response`."""
    return [*turns(prompt), {"role": "assistant", "content": response}]
