"""Sums as prompts with their results as ground truth: the smallest task that RL can be seen at.

    python -m fourstage.rewards.arithmetic sums.jsonl --count 2000 --held-out sums-held-out.jsonl

makes `data.prompts` for a reward of kind `math`. Which sums are held out depends on the sum alone,
so no training file, of whatever seed, has one of a held-out file.
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

Split = Literal["train", "held_out"]
# One in so many sums is held out.
_HELD_OUT = 10


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


def is_held_out(expression: str) -> bool:
    return hashlib.blake2b(expression.encode()).digest()[0] % _HELD_OUT == 0


def sums(
    seed: int, split: Split, count: int, shapes: Sequence[Shape] = SHAPES
) -> Iterator[dict[str, str]]:
    """Rows with `prompt` (`25-759=`) and `ground_truth` (`-734`); no sum comes twice.

    Raises:
        InputError: there are not so many different sums.
    """
    rng = python_random(seed, "arithmetic", split)
    seen: set[str] = set()
    futile = 0
    while len(seen) < count:
        expression, result = rng.choice(shapes).drawn(rng)
        if expression in seen or is_held_out(expression) != (split == "held_out"):
            futile += 1
            if futile > _FUTILE:
                raise InputError(
                    f"there are hardly more than {len(seen)} different sums of these shapes: ask "
                    "for fewer, or for larger numbers"
                )
            continue
        futile = 0
        seen.add(expression)
        yield {"prompt": f"{expression}=", "ground_truth": str(result)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes a file of training sums, and one of held-out sums where that is asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m fourstage.rewards.arithmetic",
        description=(__doc__ or "").partition("\n")[0],
    )
    parser.add_argument("file", type=Path, help="JSON lines to write, with prompt and ground_truth")
    parser.add_argument("--count", type=int, default=2000, help="sums to train on")
    parser.add_argument("--held-out", type=Path, metavar="FILE", help="a file of others")
    parser.add_argument("--held-out-count", type=int, default=200)
    parser.add_argument("--operations", default="+-*", help="some of + - *")
    parser.add_argument("--terms", type=int, help="how many at most")
    parser.add_argument("--largest", type=int, help="number in a sum")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    try:
        shapes = _shapes(given.operations, given.terms, given.largest)
        wanted: list[tuple[Path, Split, int]] = [(given.file, "train", given.count)]
        if given.held_out is not None:
            wanted.append((given.held_out, "held_out", given.held_out_count))
        for path, split, count in wanted:
            files.write_lines(path, sums(given.seed, split, count, shapes))
            print(f"{path}: {count:,} sums")
    except InputError as error:
        sys.exit(f"error: {error}")


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
