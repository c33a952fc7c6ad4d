"""Materials from the embedded world: a function of (seed, split, index), kept exactly as drawn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from fourstage.data.documents import content_hash
from fourstage.data.encoding import Demonstration, Pair, answered
from fourstage.data.judgements import Judged
from fourstage.randomness import python_random
from fourstage.tasks import Messages, Task
from fourstage.worlds import calibration as world

# Documents and demonstrations that the vocabulary is counted on: the world's words are few.
_COUNTED_DOCUMENTS = 20_000
_COUNTED_DEMONSTRATIONS = 5_000
# Shares of conversations of one, two and three turns.
_TURNS = (0.6, 0.25, 0.15)


def documents(seed: int, count: int) -> Iterator[str]:
    return (world.document(seed, "train", index).text for index in range(count))


def held_out_documents(seed: int, count: int) -> list[dict]:
    """Rows {text, kind, bits, determined}; the texts' probabilities are their floor."""
    drawn = (world.document(seed, "validation", index) for index in range(count))
    return [
        {"text": d.text, "kind": d.kind, "bits": d.bits, "determined": d.determined} for d in drawn
    ]


def counted_texts(seed: int, count: int) -> Iterator[str]:
    """What the vocabulary is trained on: documents, prompts and responses."""
    yield from documents(seed, min(count, _COUNTED_DOCUMENTS))
    for index in range(min(count, _COUNTED_DEMONSTRATIONS)):
        task, response = world.demonstration(seed, index)
        yield str(task.prompt)
        yield response


def demonstrations(seed: int, first: int, count: int) -> Iterator[Demonstration]:
    """Conversations of one to three turns, so that a second question is answered like the first."""
    for index in range(first, first + count):
        turns = python_random(seed, "turns", index).choices((1, 2, 3), _TURNS)[0]
        messages: Messages = []
        for turn in range(turns):
            task, response = world.demonstration(seed, len(_TURNS) * index + turn)
            messages += answered(task.prompt, response)
        yield Demonstration(task, messages)


def comparisons(seed: int, split: str, count: int) -> Iterator[Pair]:
    for index in range(count):
        drawn = world.comparison(seed, split, index)
        yield Pair(drawn.task, drawn.chosen, drawn.rejected, drawn.gold_chosen, drawn.gold_rejected)


def judged(seed: int, split: str, count: int, objective: str) -> Iterator[Judged]:
    """The answers of comparisons, judged alone: by their gold, or by a thumb drawn from it.

    A thumb is up with probability `sigmoid(s (gold - 1/2))`, as an answer beats one of gold 1/2.
    """
    for index in range(count):
        drawn = world.comparison(seed, split, index // 2)
        sides = ((drawn.chosen, drawn.gold_chosen), (drawn.rejected, drawn.gold_rejected))
        response, label = sides[index % 2]
        if objective == "binary":
            up = python_random(seed, "thumb", split, index).random()
            label = float(up < world.preference(label, 0.5))
        yield Judged(drawn.task, response, {"": label})


def tasks(seed: int, split: str, count: int, first: int = 0) -> Iterator[Task]:
    return (world.instruction(seed, split, index) for index in range(first, first + count))


class Seen:
    """Passes training documents on, and counts the held-out ones that are among them."""

    def __init__(self, train: Iterable[str], held_out: list[dict]):
        self._train = train
        self._held_out = Counter(content_hash(row["text"]) for row in held_out)
        self._found: set[bytes] = set()

    def __iter__(self) -> Iterator[str]:
        for text in self._train:
            name = content_hash(text)
            if name in self._held_out:
                self._found.add(name)
            yield text

    def share(self) -> float:
        """The share of held-out documents that occur in training; known once all were passed on."""
        seen = sum(self._held_out[name] for name in self._found)
        return seen / max(1, self._held_out.total())
