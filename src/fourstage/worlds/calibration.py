"""The calibration world: documents, instructions, preferences and prompts with known ceilings.

Everything is a function of (seed, split, index). Documents follow a grammar whose probabilities are
exact; instructions are checked by a program; preferences are drawn by Bradley-Terry from a hidden
gold reward with one published scale.
"""

from __future__ import annotations

import hashlib
import math
import random
from dataclasses import dataclass, replace
from typing import Any

from fourstage.errors import InputError
from fourstage.randomness import python_random
from fourstage.tasks import Task
from fourstage.worlds import documents
from fourstage.worlds.answers import INSTRUCTIONS, form_of, write_answer
from fourstage.worlds.manners import (
    CLOSINGS,
    FILLERS,
    OPENINGS,
    dress,
    gold_reward,
    undress,
)
from fourstage.worlds.script import Reader, Unreadable, Writer

KINDS = tuple(documents.KINDS)
PREFERENCE_SCALE = 8.0
# Shares of the instructions, by a hash of their text.
SPLITS = {"train": 0.6, "rl": 0.2, "validation": 0.2}


@dataclass(frozen=True)
class WorldDocument:
    """A text, `-log2` of its probability, and the character spans determined by what is above."""

    text: str
    kind: str
    bits: float
    determined: list[tuple[int, int]]


@dataclass(frozen=True)
class Comparison:
    """Two responses to one task; `chosen` was drawn by Bradley-Terry from their gold rewards."""

    task: Task
    chosen: str
    rejected: str
    gold_chosen: float
    gold_rejected: float

    @property
    def right_against_wrong(self) -> bool:
        """Whether exactly one of the two is right."""
        return success(self.task, self.chosen) != success(self.task, self.rejected)


def document(seed: int, split: str, index: int) -> WorldDocument:
    """The document at `index` of `split`."""
    writer = Writer(python_random(seed, "document", split, index))
    kind = documents.write(writer)
    return WorldDocument(writer.text, kind, writer.bits, writer.determined)


def read(text: str) -> WorldDocument:
    """The one derivation of a text of the world.

    Raises:
        InputError: the world cannot write this text.
    """
    reader = Reader(text)
    try:
        kind = documents.write(reader)
        reader.finish()
    except Unreadable as fault:
        raise InputError(f"not a document of the calibration world: {fault}") from fault
    return WorldDocument(text, kind, reader.bits, reader.determined)


def log2_probability(text: str) -> float:
    """`log2 p(text)`, exactly; raises `InputError` for a text the world cannot write."""
    return -read(text).bits


def split_of(prompt: str) -> str:
    """The split an instruction belongs to: decided by its text alone."""
    digest = hashlib.blake2b(prompt.encode(), digest_size=8).digest()
    place = int.from_bytes(digest, "big") / 2**64
    for split, share in SPLITS.items():
        place -= share
        if place < 0:
            return split
    return split


def _draw_task(rng: random.Random, split: str) -> Task:
    kind = rng.choice(list(INSTRUCTIONS))
    instruction = INSTRUCTIONS[kind]
    while True:
        facts = instruction.ask(rng)
        prompt = instruction.prompt(facts)
        if split_of(prompt) == split:
            return Task(prompt, kind, facts | {"checker": "world"})


def instruction(seed: int, split: str, index: int) -> Task:
    """The instruction at `index` of `split` (train, rl or validation)."""
    return _draw_task(python_random(seed, "instruction", split, index), split)


@dataclass(frozen=True)
class Style:
    """How often an answer is complete, right, opened, closed, padded and stacked."""

    right: float
    full: float
    opened: float
    closed: float
    filler: float
    stacked: float


DEMONSTRATED = Style(right=1.0, full=0.5, opened=0.4, closed=0.4, filler=0.3, stacked=0.1)
COMPARED = Style(right=0.7, full=0.5, opened=0.5, closed=0.5, filler=0.35, stacked=0.25)


@dataclass(frozen=True)
class _Answer:
    """The parts of a response, so that one of them can be changed alone."""

    right: bool
    full: bool
    before: tuple[str, ...]
    after: tuple[str, ...]

    def text(self, task: Task, rng: random.Random) -> str:
        facts = task.facts if self.right else _mistaken(task, rng)
        core = write_answer(task.kind, facts, "full" if self.full else "short", rng)
        return dress(self.before, core, self.after)


def _mistaken(task: Task, rng: random.Random) -> dict[str, Any]:
    """Facts of a wrong answer: half the time those of another instruction of the kind, else the
    task's own with a part of them changed."""
    instruction = INSTRUCTIONS[task.kind]
    if rng.random() < 0.5:
        return instruction.spoil(rng, task.facts)
    while True:
        other = instruction.ask(rng)
        answer = write_answer(task.kind, other, "full", rng)
        if form_of(task.kind, task.facts, answer) is None:
            return other


def _phrases(rng: random.Random, style: Style, polite: float, courtesies: tuple) -> tuple[str, ...]:
    """What stands on one side of an answer: courtesies, perhaps stacked, and perhaps filler."""
    said = [rng.choice(courtesies)] if rng.random() < polite else []
    while said and rng.random() < style.stacked:
        said.append(rng.choice(courtesies))
    if rng.random() < style.filler / 2:
        said.insert(rng.randint(0, len(said)), rng.choice(FILLERS))
    return tuple(said)


def _draw_answer(rng: random.Random, style: Style) -> _Answer:
    return _Answer(
        right=rng.random() < style.right,
        full=rng.random() < style.full,
        before=_phrases(rng, style, style.opened, OPENINGS),
        after=_phrases(rng, style, style.closed, CLOSINGS),
    )


def _edited(rng: random.Random, answer: _Answer, style: Style) -> _Answer:
    """The same answer with one part changed: two times in five whether it is right."""
    other = _draw_answer(rng, style)
    part = rng.choice(("right", "right", "full", "before", "after"))
    value = getattr(other, part) if part in ("before", "after") else not getattr(answer, part)
    changed: dict[str, Any] = {part: value}
    return replace(answer, **changed)


def demonstration(seed: int, index: int) -> tuple[Task, str]:
    """A training instruction and a right response, in mixed style."""
    task = instruction(seed, "train", index)
    rng = python_random(seed, "demonstration", index)
    return task, _draw_answer(rng, DEMONSTRATED).text(task, rng)


def comparison(seed: int, split: str, index: int) -> Comparison:
    """Two different responses to one instruction; the first is preferred with probability

    `sigmoid(PREFERENCE_SCALE * (gold_first - gold_second))`. Half of the pairs are independent, in
    the other half one part of the first response was changed.
    """
    rng = python_random(seed, "comparison", split, index)
    task = _draw_task(rng, split)
    first = second = ""
    while first == second:
        answer = _draw_answer(rng, COMPARED)
        independent = rng.random() < 0.5
        rival = _draw_answer(rng, COMPARED) if independent else _edited(rng, answer, COMPARED)
        first, second = answer.text(task, rng), rival.text(task, rng)
    gold_first, gold_second = gold(task, first), gold(task, second)
    if rng.random() < preference(gold_first, gold_second):
        return Comparison(task, first, second, gold_first, gold_second)
    return Comparison(task, second, first, gold_second, gold_first)


def preference(gold_first: float, gold_second: float) -> float:
    """Bradley-Terry: the probability that the first response is preferred."""
    return 1 / (1 + math.exp(-PREFERENCE_SCALE * (gold_first - gold_second)))


def success(task: Task, response: str) -> bool:
    """Whether the response, without its courtesies and filler, is a right answer."""
    return form_of(task.kind, task.facts, undress(response).core) is not None


def gold(task: Task, response: str) -> float:
    """The hidden gold reward, in [0, 1]."""
    return gold_reward(task.kind, task.facts, response)


def best_gold(task: Task) -> float:
    """The gold of the best response: right, complete, opened and closed kindly, nothing more."""
    rng = random.Random(0)
    core = write_answer(task.kind, task.facts, "full", rng)
    return gold(task, dress(OPENINGS[:1], core, CLOSINGS[:1]))


__all__ = [
    "KINDS",
    "PREFERENCE_SCALE",
    "Comparison",
    "WorldDocument",
    "best_gold",
    "comparison",
    "demonstration",
    "document",
    "gold",
    "instruction",
    "log2_probability",
    "preference",
    "read",
    "split_of",
    "success",
]
