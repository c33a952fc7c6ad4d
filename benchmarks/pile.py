"""A made pile of text with known repeats, for timing preparation and watching its memory.

    python benchmarks/pile.py FOLDER --megabytes 200 [--files 4] [--seed 0]

Writes JSON lines {"text", "id"}: English-like pages of sentences drawn from a Zipf vocabulary with
its function words, of which 5% repeat an earlier page exactly, 5% with a few words changed, and 5%
are junk (symbols, one line again and again) that the usual filters drop.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

_FUNCTION = (
    "the of and to a in that is was for it with as his on be at by i this had not are but from or "
    "have an they which one you were all her she there would their we him been has when who will "
    "no more if out so up said what its about than into them can only other time new some could"
).split()
_SYLLABLES = (
    "ba be bi bo bu ca ce co cu da de di do fa fe fi fo ga ge go ha he hi ho la le li lo lu ma me "
    "mi mo mu na ne ni no nu pa pe pi po ra re ri ro ru sa se si so su ta te ti to tu va ve vi vo"
).split()


def vocabulary(size: int, rng: np.random.Generator) -> np.ndarray:
    """Function words first, then words of two to four syllables, the shorter the commoner."""
    words = dict.fromkeys(_FUNCTION)
    while len(words) < size:
        count = 2 + (len(words) > size // 10) + (len(words) > size // 2)
        word = "".join(rng.choice(_SYLLABLES, count))
        words.setdefault(word + str(rng.choice(["", "n", "r", "s", "st"])))
    return np.array(list(words), dtype=object)


def pages(megabytes: float, seed: int) -> Iterator[str]:
    """Pages of together about `megabytes`; a function of both arguments."""
    rng = np.random.default_rng(seed)
    words = vocabulary(60_000, rng)
    chances = 1 / (np.arange(len(words)) + 5.0)
    ends = np.cumsum(chances / chances.sum())
    written, kept = 0, []
    while written < megabytes * 1e6:
        kind = rng.random()
        if kept and kind < 0.05:
            page = kept[rng.integers(len(kept))]
        elif kept and kind < 0.10:
            page = _changed(kept[rng.integers(len(kept))], words, rng)
        elif kind < 0.15:
            page = _junk(rng)
        else:
            page = _page(words, ends, rng)
            if len(kept) < 5000:
                kept.append(page)
        written += len(page)
        yield page


def _page(words: np.ndarray, ends: np.ndarray, rng: np.random.Generator) -> str:
    """Paragraphs of sentences; all words of a page are drawn at once."""
    lengths = rng.integers(8, 26, size=int(rng.integers(12, 48)))
    places = np.searchsorted(ends, rng.random(int(lengths.sum())))
    drawn = words[places.clip(max=len(words) - 1)].tolist()
    parts, at = [], 0
    for length, breaks in zip(lengths.tolist(), rng.random(len(lengths)).tolist(), strict=True):
        parts.append(" ".join(drawn[at : at + length]).capitalize())
        parts.append(".\n" if breaks < 0.2 else ". ")
        at += length
    return "".join(parts).strip()


def _changed(page: str, words: np.ndarray, rng: np.random.Generator) -> str:
    parts = page.split(" ")
    for place in rng.integers(len(parts), size=2):
        parts[place] = str(words[rng.integers(len(words))])
    return " ".join(parts)


def _junk(rng: np.random.Generator) -> str:
    if rng.random() < 0.5:
        return "\n".join(["Click here to read more about this and other offers"] * 30)
    return " ".join("".join(signs) for signs in rng.choice(list("#@{}%^&*"), (200, 6)))


def write(folder: Path, megabytes: float, files: int, seed: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(files):
        with open(folder / f"{number:03d}.jsonl", "w", encoding="utf-8") as file:
            for place, page in enumerate(pages(megabytes / files, seed * 1000 + number)):
                row = {"text": page, "id": f"{number}/{place}"}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--megabytes", type=float, default=200)
    parser.add_argument("--files", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    write(given.folder, given.megabytes, given.files, given.seed)


if __name__ == "__main__":
    main()
