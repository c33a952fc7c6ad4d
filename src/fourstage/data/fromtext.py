"""Materials made from a person's own text, where they gave none."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from fourstage import files
from fourstage.data import made
from fourstage.data.documents import Kept
from fourstage.data.encoding import Demonstration, Pair, answered
from fourstage.data.making import Limits, Maker, paragraphs_of, pool
from fourstage.data.words import Vocabulary
from fourstage.errors import InputError
from fourstage.tasks import Task
from fourstage.tokenizer import Tokenizer

Sampler = Callable[[list[str]], list[str]]

# Prompts that are sampled, and saved, at a time.
_SAMPLED = 64
_MEASURED_ON = 200


class TextMaterials:
    """Instructions, comparisons and prompts from the passages of documents.

    Training material comes from training documents, each part from paragraphs of its own;
    held-out material from held-out documents.
    """

    def __init__(self, kept: Kept, tokenizer: Tokenizer, context: int, longest: int, seed: int):
        """Prepares to make from `kept`.

        Args:
            kept: documents for training and held out.
            tokenizer: decides what is short enough.
            context: most tokens of a prompt and its response.
            longest: most tokens of a response, its end included.
            seed: of all random choices.
        """
        self.tokenizer, self.context, self.longest = tokenizer, context, longest
        self.vocabulary = Vocabulary.of(kept.train)
        self.limits = limits_for(kept, tokenizer, longest)
        self.maker = Maker(self.vocabulary, self.limits, seed)
        self.train = paragraphs_of(kept.train)
        self.held_out = paragraphs_of(kept.validation)
        # A few short held-out documents may hold no two whole sentences.
        self.borrowed = not self.held_out
        if self.borrowed:
            self.held_out = pool(self.train, "held out")

    def fits(self, prompt: str, response: str) -> bool:
        answer = len(self.tokenizer.encode(response)) + 1
        whole = len(self.tokenizer.chat_prompt(prompt)) + answer
        return answer <= self.longest and whole < self.context

    def pairs(self, part: str, count: int) -> list[tuple[Task, str]]:
        """Tasks of a part with the real passages; parts named `... held out` are held out.

        Raises:
            InputError: the text has no passages from which to make any.
        """
        source = self.held_out if part.endswith("held out") else pool(self.train, part)
        found = list(self.maker.make(source, part, count, self.fits))
        if not found:
            raise InputError(
                "data.pretrain: no instructions could be made from this text (it needs whole "
                f"sentences that fit {self.longest} tokens): write data.sft=FILE, "
                "data.preferences=FILE and data.prompts=FILE"
            )
        return found

    def demonstrations(self, part: str, count: int) -> list[Demonstration]:
        made_pairs = self.pairs(part, count)
        return [Demonstration(task, answered(task.prompt, real)) for task, real in made_pairs]

    def comparisons(self, part: str, count: int, sample: Sampler, folder: Path) -> Iterator[Pair]:
        """The real passage against the sample of a model, where the two differ.

        Args:
            part: whose passages are taken.
            count: how many instructions at most.
            sample: responses of the model to prompts; a function of the prompts alone.
            folder: keeps the samples drawn so far, so that a killed run goes on from them.
        """
        made_pairs = self.pairs(part, count)
        for first in range(0, len(made_pairs), _SAMPLED):
            chunk = made_pairs[first : first + _SAMPLED]
            path = folder / f"{first:07d}.json"
            if path.exists():
                samples = files.read_json(path)
            else:
                samples = [text.strip() for text in sample([str(task.prompt) for task, _ in chunk])]
                files.write_bytes(path, json.dumps(samples, ensure_ascii=False).encode())
            for (task, real), other in zip(chunk, samples, strict=True):
                if other != real:
                    yield Pair(task, real, other, made.gold(task, real), made.gold(task, other))

    def tasks(self, part: str, count: int) -> list[Task]:
        return [task for task, _ in self.pairs(part, count)]


def limits_for(kept: Kept, tokenizer: Tokenizer, longest: int) -> Limits:
    """Lengths of responses in characters, by how many the text has a token."""
    some = kept.train[:: max(1, len(kept.train) // _MEASURED_ON)][:_MEASURED_ON]
    tokens = sum(map(len, tokenizer.encode_batch(some)))
    return Limits.within(longest, sum(map(len, some)) / max(1, tokens))
