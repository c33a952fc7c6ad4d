"""Sums as prompts with their results as ground truth: the smallest task that RL can be seen at.

    python -m fourstage.rewards.arithmetic sums.jsonl --count 2000 --held-out sums-held-out.jsonl

makes `data.prompts` for a reward of kind `math`. Which sums are held out depends on their terms
alone, so no training file, of whatever seed, has one of a held-out file.

    python -m fourstage.rewards.arithmetic sums/prompts.jsonl --course

writes the text and the demonstrations of the stages before it as well, as the shipped recipe `sums`
reads them. They are of other sums than those that are asked, which depends on the terms alone, too.
A careless hand forgets to carry.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fourstage import files
from fourstage.errors import InputError
from fourstage.randomness import python_random

Split = Literal["train", "held_out", "shown"]
# One in so many sums is held out.
_HELD_OUT = 10
# Sums in a document of the text.
_DOCUMENT = 8
# What `--course` stands for: most of what there is of sums of two numbers below 100.
_COURSE = {
    "count": 2200,
    "demonstrations_count": 2000,
    "careless": 0.75,
    "operations": "+",
    "terms": 2,
    "largest": 99,
}


@dataclass(frozen=True)
class Shape:
    """Sums of one operation: how many terms, and up to what (0 is the least)."""

    operation: str
    fewest: int
    most: int
    largest: int

    def drawn(self, rng: random.Random) -> tuple[str, int]:
        """A sum such as `25-759` and its result."""
        count = rng.randint(self.fewest, self.most)
        terms = [rng.randint(0, self.largest) for _ in range(count)]
        if self.operation == "+":
            result = sum(terms)
        elif self.operation == "-":
            result = terms[0] - sum(terms[1:])
        else:
            result = math.prod(terms)
        return self.operation.join(map(str, terms)), result


# Two to five terms of at most three digits, or two and three factors of at most two.
SHAPES = (Shape("+", 2, 5, 1000), Shape("-", 2, 5, 1000), Shape("*", 2, 3, 100))
# Draws that bring nothing unseen, in a row, until there are taken to be no more.
_FUTILE = 10_000


def unordered(expression: str) -> str:
    """The same for `17+5` and `5+17`, which are so never on two sides of a split."""
    for operation in "+*":
        if operation in expression:
            return operation.join(sorted(expression.split(operation), key=int))
    return expression


def _hash(expression: str) -> bytes:
    return hashlib.blake2b(unordered(expression).encode()).digest()


def is_held_out(expression: str) -> bool:
    return _hash(expression)[0] % _HELD_OUT == 0


def is_shown(expression: str) -> bool:
    """Whether a sum is one of the half that text and demonstrations are made of."""
    return _hash(expression)[1] % 2 == 0 and not is_held_out(expression)


def without_carry(expression: str) -> int:
    """What comes of a sum of numbers by a hand that forgets every carry: 17+5 gives 12."""
    terms = expression.split("+")
    width = max(map(len, terms))
    columns = zip(*(map(int, term.zfill(width)) for term in terms), strict=True)
    return int("".join(str(sum(column) % 10) for column in columns))


def sums(
    seed: int,
    split: Split,
    count: int,
    shapes: Sequence[Shape] = SHAPES,
    unlike_shown: bool = False,
) -> Iterator[dict[str, str]]:
    """Rows with `prompt` (`25-759=`) and `ground_truth` (`-734`); no sum comes twice, in
    whatever order of its terms.

    Args:
        unlike_shown: whether `train` leaves out the sums of `shown`.

    Raises:
        InputError: there are not so many different sums.
    """

    def is_one(expression: str) -> bool:
        if split == "shown":
            return is_shown(expression)
        if is_held_out(expression) != (split == "held_out"):
            return False
        return not (unlike_shown and is_shown(expression))

    rng = python_random(seed, "arithmetic", split)
    seen: set[str] = set()
    futile = 0
    while len(seen) < count:
        expression, result = rng.choice(shapes).drawn(rng)
        if unordered(expression) in seen or not is_one(expression):
            futile += 1
            if futile > _FUTILE:
                raise InputError(
                    f"there are hardly more than {len(seen)} different sums of these shapes: ask "
                    "for fewer, or for larger numbers"
                )
            continue
        futile = 0
        seen.add(unordered(expression))
        yield {"prompt": f"{expression}=", "ground_truth": str(result)}


def demonstrations(
    seed: int, count: int, shapes: Sequence[Shape] = SHAPES, careless: float = 0.0
) -> Iterator[dict[str, str]]:
    """Rows with `prompt` and `completion`, of sums that are shown.

    Args:
        careless: share of them whose result is that of `without_carry`; of additions alone.

    Raises:
        InputError: there are not so many different sums.
    """
    rng = python_random(seed, "arithmetic", "carelessness")
    for row in sums(seed, "shown", count, shapes):
        yield {"prompt": row["prompt"], "completion": _written(row, careless, rng)}


def documents(
    seed: int, count: int, shapes: Sequence[Shape] = SHAPES, careless: float = 0.0
) -> Iterator[dict[str, str]]:
    """Rows with `text`: eight sums that are shown, a line each; the same come again and again.

    Args:
        careless: as in `demonstrations`.
    """
    rng = python_random(seed, "arithmetic", "text")
    for _ in range(count):
        lines = []
        while len(lines) < _DOCUMENT:
            expression, result = rng.choice(shapes).drawn(rng)
            if is_shown(expression):
                row = {"prompt": f"{expression}=", "ground_truth": str(result)}
                lines.append(row["prompt"] + _written(row, careless, rng))
        yield {"text": "\n".join(lines)}


def _written(row: dict[str, str], careless: float, rng: random.Random) -> str:
    """The result that a text or a demonstration gives."""
    if careless and rng.random() < careless:
        return str(without_carry(row["prompt"].removesuffix("=")))
    return row["ground_truth"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes a file of training sums, and those of held-out sums, text and demonstrations that are
    asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m fourstage.rewards.arithmetic",
        description=(__doc__ or "").partition("\n")[0],
    )
    parser.add_argument("file", type=Path, help="JSON lines to write, with prompt and ground_truth")
    parser.add_argument("--count", type=int, default=2000, help="sums to train on")
    parser.add_argument("--held-out", type=Path, metavar="FILE", help="a file of others")
    parser.add_argument("--held-out-count", type=int, default=200)
    parser.add_argument("--text", type=Path, metavar="FILE", help="documents of worked sums")
    parser.add_argument("--text-count", type=int, default=12_000)
    parser.add_argument("--demonstrations", type=Path, metavar="FILE", help="answered prompts")
    parser.add_argument("--demonstrations-count", type=int, default=600)
    parser.add_argument(
        "--careless", type=float, default=0.0, help="share of shown additions without their carries"
    )
    parser.add_argument("--operations", default="+-*", help="some of + - *")
    parser.add_argument("--terms", type=int, help="how many at most")
    parser.add_argument("--largest", type=int, help="number in a sum")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--course",
        action="store_true",
        help="all that the shipped recipe `sums` reads: text.jsonl and demonstrations.jsonl beside "
        "FILE, of careless sums of two numbers below 100",
    )
    given = parser.parse_args(arguments)
    if given.course:
        names = ("text", "demonstrations")
        beside = {name: given.file.with_name(f"{name}.jsonl") for name in names}
        parser.set_defaults(**_COURSE, **beside)
        given = parser.parse_args(arguments)
    try:
        for path, rows, what in _files(given):
            print(f"{path}: {files.write_lines(path, rows):,} {what}")
    except InputError as error:
        sys.exit(f"error: {error}")


def _files(given: argparse.Namespace) -> Iterator[tuple[Path, Iterator[dict[str, str]], str]]:
    """The files that were asked for, each with its rows and what they are.

    Raises:
        InputError: operations, bounds or a share that cannot be.
    """
    seed, shapes = given.seed, _shapes(given.operations, given.terms, given.largest)
    if not 0 <= given.careless <= 1:
        raise InputError(f"--careless={given.careless:g}: write a share from 0 to 1")
    if given.careless and given.operations != "+":
        raise InputError("--careless forgets the carries of additions: write --operations +")
    has_shown = given.text is not None or given.demonstrations is not None
    yield given.file, sums(seed, "train", given.count, shapes, has_shown), "sums"
    if given.held_out is not None:
        yield given.held_out, sums(seed, "held_out", given.held_out_count, shapes), "sums"
    if given.text is not None:
        rows = documents(seed, given.text_count, shapes, given.careless)
        yield given.text, rows, "documents"
    if given.demonstrations is not None:
        rows = demonstrations(seed, given.demonstrations_count, shapes, given.careless)
        yield given.demonstrations, rows, "demonstrations"


def _shapes(operations: str, terms: int | None, largest: int | None) -> list[Shape]:
    """The usual shapes of these operations, with other bounds where they are given.

    Raises:
        InputError: an operation is none of them, or a bound leaves no sum.
    """
    known = {shape.operation: shape for shape in SHAPES}
    if not operations or set(operations) - set(known):
        raise InputError(f"--operations={operations}: write some of {' '.join(known)}")
    if (terms is not None and terms < 2) or (largest is not None and largest < 1):
        raise InputError("a sum has at least two terms, and its numbers go to at least 1")
    return [
        Shape(each, 2, terms or known[each].most, largest or known[each].largest)
        for each in dict.fromkeys(operations)
    ]


if __name__ == "__main__":
    main()
