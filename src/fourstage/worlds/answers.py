"""Instructions of the calibration world: a prompt for each kind, and every right answer to it.

An answer has two right forms, `full` and `short`; each is a program over a `Script`, so the same
lines write demonstrations and check what a model wrote.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fourstage.worlds import documents
from fourstage.worlds.script import Reader, Script, Unreadable, Writer, without
from fourstage.worlds.words import ANIMALS, COLOURS, DEEDS, NAMES, PLACES, THINGS, TRAITS, plural

Facts = dict[str, Any]


@dataclass(frozen=True)
class Instruction:
    """A kind of task: `ask` draws facts, `prompt` words them, `full` and `short` answer, `spoil`
    changes the facts into ones whose answer is wrong."""

    ask: Callable[[random.Random], Facts]
    prompt: Callable[[Facts], str]
    full: Callable[[Script, Facts], None]
    short: Callable[[Script, Facts], None]
    spoil: Callable[[random.Random, Facts], Facts]


def write_answer(kind: str, facts: Facts, form: str, rng: random.Random) -> str:
    """A right answer to the facts, `full` or `short`."""
    writer = Writer(rng)
    getattr(INSTRUCTIONS[kind], form)(writer, facts)
    return writer.text


def form_of(kind: str, facts: Facts, answer: str) -> str | None:
    """`full` or `short` when `answer` is right for the facts, else None."""
    for form in ("full", "short"):
        reader = Reader(answer)
        try:
            getattr(INSTRUCTIONS[kind], form)(reader, facts)
            reader.finish()
        except Unreadable:
            continue
        return form
    return None


def _swap(rng: random.Random, facts: Facts, options: Mapping[str, Sequence[str]]) -> Facts:
    """The facts with two of the named words replaced by others of their lists."""
    keys = rng.sample(sorted(options), 2)
    return facts | {key: rng.choice(without(options[key], facts[key])) for key in keys}


def _story_facts(rng: random.Random) -> Facts:
    return {
        "name": rng.choice(NAMES),
        "animal": rng.choice(ANIMALS),
        "colour": rng.choice(COLOURS),
        "thing": rng.choice(THINGS),
    }


def _story_prompt(f: Facts) -> str:
    return f"Tell a story about {f['name']} the {f['animal']} and a {f['colour']} {f['thing']}."


def _story_full(s: Script, f: Facts) -> None:
    documents.tell_story(s, f["name"], f["animal"], f["colour"], f["thing"])


def _story_short(s: Script, f: Facts) -> None:
    s.say(f"{f['name']} the {f['animal']} wanted a {f['colour']} {f['thing']}. ")
    s.say(f"{f['name']} looked in the ")
    s.choose(PLACES)
    s.say(f" and found the {f['colour']} {f['thing']}.")


def _story_spoil(rng: random.Random, f: Facts) -> Facts:
    words = {"name": NAMES, "animal": ANIMALS, "colour": COLOURS, "thing": THINGS}
    return _swap(rng, f, words)


def _description_facts(rng: random.Random) -> Facts:
    return {
        "name": rng.choice(NAMES),
        "animal": rng.choice(ANIMALS),
        "trait": rng.choice(TRAITS),
        "place": rng.choice(PLACES),
    }


def _description_prompt(f: Facts) -> str:
    return (
        f"Describe {f['name']} the {f['animal']}, who is {f['trait']} and lives in the "
        f"{f['place']}."
    )


def _description_full(s: Script, f: Facts) -> None:
    _description_short(s, f)
    s.say(f" That is {f['name']} the {f['animal']}.")


def _description_short(s: Script, f: Facts) -> None:
    documents.describe(s, f["name"], f["animal"], f["trait"], f["place"])


def _description_spoil(rng: random.Random, f: Facts) -> Facts:
    words = {"name": NAMES, "animal": ANIMALS, "trait": TRAITS, "place": PLACES}
    return _swap(rng, f, words)


def _sum_facts(rng: random.Random) -> Facts:
    first, second = (rng.randint(1, documents.LARGEST_ADDEND) for _ in range(2))
    return {"first": first, "second": second, "sum": first + second}


def _sum_full(s: Script, f: Facts) -> None:
    _sum_short(s, f)
    s.say(f" The sum is {f['sum']}.")


def _sum_short(s: Script, f: Facts) -> None:
    s.say(f"{f['first']} + {f['second']} = {f['sum']}.")


def _sum_spoil(rng: random.Random, f: Facts) -> Facts:
    """Another sum, or another result."""
    if rng.random() < 0.5:
        first = rng.choice([n for n in range(1, documents.LARGEST_ADDEND + 1) if n != f["first"]])
        return f | {"first": first, "sum": first + f["second"]}
    wrong = [n for n in range(2, 2 * documents.LARGEST_ADDEND + 1) if n != f["sum"]]
    return f | {"sum": rng.choice(wrong)}


def _question_facts(rng: random.Random) -> Facts:
    names, deeds = rng.sample(NAMES, 3), rng.sample(DEEDS, 3)
    asked = rng.randrange(3)
    return {"names": names, "deeds": deeds, "name": names[asked], "deed": deeds[asked]}


def _question_prompt(f: Facts) -> str:
    pairs = zip(f["names"], f["deeds"], strict=True)
    return " ".join(f"{n} {d}." for n, d in pairs) + f" What does {f['name']} do?"


def _question_full(s: Script, f: Facts) -> None:
    _question_short(s, f)
    s.say(f" That is what {f['name']} does.")


def _question_short(s: Script, f: Facts) -> None:
    documents.answer_doing(s, f["name"], f["deed"])


def _question_spoil(rng: random.Random, f: Facts) -> Facts:
    others = without(f["deeds"], f["deed"])
    options = others if rng.random() < _DISTRACTED else without(DEEDS, *f["deeds"])
    return f | {"deed": rng.choice(options)}


def _words_facts(count: int) -> Callable[[random.Random], Facts]:
    return lambda rng: {"words": rng.sample(THINGS, count)}


def _words_spoil(rng: random.Random, f: Facts) -> Facts:
    """Two of the words replaced by others."""
    words = list(f["words"])
    for place in rng.sample(range(len(words)), 2):
        words[place] = rng.choice(without(THINGS, *words, *f["words"]))
    return f | {"words": words}


def _sort_full(s: Script, f: Facts) -> None:
    s.say("Sorted: ")
    _sort_short(s, f)


def _sort_short(s: Script, f: Facts) -> None:
    s.say(" ".join(sorted(f["words"])) + ".")


def _song_full(s: Script, f: Facts) -> None:
    s.say("I sing: ")
    _song_short(s, f)


def _song_short(s: Script, f: Facts) -> None:
    s.say(" ".join(f["words"]) + ".")


def _again_facts(rng: random.Random) -> Facts:
    words = rng.sample(THINGS, 5)
    first = rng.randrange(4)
    return {"song": words, "words": words[first:]}


def _again_prompt(f: Facts) -> str:
    return f"Sing {' '.join(f['song'])}. Again from {f['words'][0]}."


def _again_full(s: Script, f: Facts) -> None:
    s.say("Again: ")
    _song_short(s, f)


def _count_facts(rng: random.Random) -> Facts:
    return {"number": rng.randint(2, documents.LARGEST_COUNT), "thing": rng.choice(THINGS)}


def _count_full(s: Script, f: Facts) -> None:
    _count_short(s, f)
    s.say(f" That makes {f['number']} {plural(f['thing'])}.")


def _count_short(s: Script, f: Facts) -> None:
    documents.count_aloud(s, f["number"], f["thing"])


def _count_spoil(rng: random.Random, f: Facts) -> Facts:
    """Another number of another thing."""
    numbers = [n for n in range(2, documents.LARGEST_COUNT + 1) if n != f["number"]]
    return {"number": rng.choice(numbers), "thing": rng.choice(without(THINGS, f["thing"]))}


# How often a wrong answer takes a word that was said of somebody else, not one that was never said.
_DISTRACTED = 0.2

INSTRUCTIONS: dict[str, Instruction] = {
    "story": Instruction(_story_facts, _story_prompt, _story_full, _story_short, _story_spoil),
    "description": Instruction(
        _description_facts,
        _description_prompt,
        _description_full,
        _description_short,
        _description_spoil,
    ),
    "sum": Instruction(
        _sum_facts,
        lambda f: f"What is {f['first']} + {f['second']}?",
        _sum_full,
        _sum_short,
        _sum_spoil,
    ),
    "question": Instruction(
        _question_facts, _question_prompt, _question_full, _question_short, _question_spoil
    ),
    "sort": Instruction(
        _words_facts(4),
        lambda f: f"Sort these words: {' '.join(f['words'])}.",
        _sort_full,
        _sort_short,
        _words_spoil,
    ),
    "count": Instruction(
        _count_facts,
        lambda f: f"Count {f['number']} {plural(f['thing'])}.",
        _count_full,
        _count_short,
        _count_spoil,
    ),
    "again": Instruction(_again_facts, _again_prompt, _again_full, _song_short, _words_spoil),
    "song": Instruction(
        _words_facts(5),
        lambda f: f"Sing this: {' '.join(f['words'])}.",
        _song_full,
        _song_short,
        _words_spoil,
    ),
}
