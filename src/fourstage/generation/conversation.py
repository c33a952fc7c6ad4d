"""A conversation with a model: what was said, what of it still fits, and replies as drawn."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING

from fourstage.errors import InputError
from fourstage.generation.engine import Engine
from fourstage.generation.sampling import Sampling

if TYPE_CHECKING:
    from fourstage.tokenizer import Tokenizer


def text_pieces(tokens: Iterator[int], decode: Callable[[list[int]], str]) -> Iterator[str]:
    """Text as tokens arrive; a character spread over several tokens is held until it is whole.

    Each piece is what new tokens add to the text of those before: some vocabularies write the
    space between words only where a word follows another.
    """
    before: list[int] = []
    held: list[int] = []
    for token in tokens:
        held.append(token)
        known, text = decode(before), decode(before + held)
        if len(text) > len(known) and not text.endswith("\N{REPLACEMENT CHARACTER}"):
            yield text[len(known) :]
            before, held = held, []
    if held and (rest := decode(before + held)[len(decode(before)) :]):
        yield rest


class Conversation:
    """Turns of a user and a model. The oldest are dropped when the context is full.

    Attributes:
        messages: `{"role": ..., "content": ...}` of every turn that is still remembered.
        dropped: how many turns were dropped for the last reply.
    """

    def __init__(
        self, engine: Engine, tokenizer: Tokenizer, sampling: Sampling, system: str | None = None
    ):
        self.engine = engine
        self.tokenizer = tokenizer
        self.sampling = sampling
        self.system = system
        self.turns = 0
        self.reset()

    def reset(self) -> None:
        self.messages: list[dict[str, str]] = []
        self.dropped = 0
        if self.system:
            self.messages.append({"role": "system", "content": self.system})

    def reply(self, content: str) -> Generator[str, None, None]:
        """Pieces of the reply to `content`; both turns are remembered, even if stopped half-way.

        Raises:
            InputError: the message alone does not fit the context. Nothing is remembered then.
        """
        said = [*self.messages, {"role": "user", "content": content}]
        prompt, said = self._fitting(said)
        self.messages = said
        self.turns += 1
        sampling = dataclasses.replace(self.sampling, seed=self.sampling.seed + self.turns - 1)
        pieces: list[str] = []
        try:
            for piece in text_pieces(self.engine.stream(prompt, sampling), self.tokenizer.decode):
                pieces.append(piece)
                yield piece
        finally:
            self.messages.append({"role": "assistant", "content": "".join(pieces)})

    def _fitting(self, said: list[dict[str, str]]) -> tuple[list[int], list[dict[str, str]]]:
        """The prompt's tokens and the turns in it, the oldest dropped until a reply has room."""
        context = self.engine.model.config.context
        # A reply gets at least a quarter of the context before old turns are given up.
        room = context - min(self.sampling.max_new_tokens, context // 4)
        first = 1 if said[0]["role"] == "system" else 0
        self.dropped = 0
        prompt = self.tokenizer.chat_prompt(said)
        while len(prompt) > room and len(said) > first + 1:
            del said[first : first + 2]
            self.dropped += 2
            prompt = self.tokenizer.chat_prompt(said)
        if len(prompt) > context:
            raise InputError(
                f"the message has {len(prompt)} tokens and the model's context holds {context}: "
                "write a shorter one"
            )
        return prompt, said
