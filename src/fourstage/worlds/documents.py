"""The kinds of document of the calibration world, each a program over a `Script`.

Choices are uniform: under skewed ones a model that fails to look back falls to the most frequent
word and looks better than it is. Documents open by naming what they will use, and answers repeat
the words of the fact in its own order; both make looking back learnable in minutes.
"""

from __future__ import annotations

from collections.abc import Callable

from fourstage.worlds.script import Script, without
from fourstage.worlds.words import ANIMALS, COLOURS, DEEDS, NAMES, PLACES, THINGS, TRAITS, plural

LARGEST_ADDEND = 9
LARGEST_COUNT = 6


def story(s: Script) -> None:
    """Someone wants a thing, searches, finds it and gives it away."""
    name = s.choose(NAMES)
    s.say(" the ")
    animal = s.choose(ANIMALS)
    s.say(" and a ")
    colour = s.choose(COLOURS)
    s.say(" ")
    thing = s.choose(THINGS)
    s.say(". ")
    tell_story(s, name, animal, colour, thing)


def tell_story(s: Script, name: str, animal: str, colour: str, thing: str) -> None:
    s.recall(f"{name} the {animal}")
    s.say(" wanted a ")
    s.recall(f"{colour} {thing}")
    s.say(". ")
    s.recall(name)
    s.say(" looked in the ")
    s.choose(PLACES)
    s.say(", but found only a ")
    s.choose(THINGS)
    s.say(". Then ")
    s.recall(name)
    s.say(" looked in the ")
    s.choose(PLACES)
    s.say(" and found the ")
    s.recall(f"{colour} {thing}")
    s.say(". ")
    s.recall(name)
    s.say(" gave the ")
    s.recall(thing)
    s.say(" to ")
    friend = s.choose(without(NAMES, name))
    s.say(". ")
    s.recall(friend)
    s.say(" was ")
    s.choose(TRAITS)
    s.say(".")


def description(s: Script) -> None:
    """Who someone is, what they are like, where they live, what they own."""
    name = s.choose(NAMES)
    s.say(" the ")
    animal = s.choose(ANIMALS)
    s.say(", who is ")
    trait = s.choose(TRAITS)
    s.say(" and lives in the ")
    place = s.choose(PLACES)
    s.say(". ")
    describe(s, name, animal, trait, place)
    s.say(" ")
    s.recall(name)
    s.say(" has a ")
    colour = s.choose(COLOURS)
    s.say(" ")
    thing = s.choose(THINGS)
    s.say(". ")
    s.recall(name)
    s.say(" keeps the ")
    s.recall(f"{colour} {thing}")
    s.say(" in the ")
    s.recall(place)
    s.say(" and is often ")
    s.choose(TRAITS)
    s.say(".")


def describe(s: Script, name: str, animal: str, trait: str, place: str) -> None:
    s.recall(name)
    s.say(" is a ")
    s.recall(f"{trait} {animal}")
    s.say(". ")
    s.recall(name)
    s.say(" lives in the ")
    s.recall(place)
    s.say(".")


def dialogue(s: Script) -> None:
    """Two people tell one another what they have, and each repeats what was heard."""
    one = s.choose(NAMES)
    s.say(" and ")
    other = s.choose(without(NAMES, one))
    s.say(" in the ")
    s.choose(PLACES)
    s.say(". ")
    belongings = {}
    for speaker in (one, other):
        s.recall(speaker)
        s.say(" said: I have a ")
        colour = s.choose(COLOURS)
        s.say(" ")
        thing = s.choose(without(THINGS, *(t for _, t in belongings.values())))
        s.say(". ")
        belongings[speaker] = (colour, thing)
    for speaker, listener in ((other, one), (one, other)):
        s.recall(speaker)
        s.say(" said: ")
        answer_having(s, listener, *belongings[listener])
        s.say("" if speaker == one else " ")


def answer_having(s: Script, name: str, colour: str, thing: str) -> None:
    s.recall(name)
    s.say(" has a ")
    s.recall(f"{colour} {thing}")
    s.say(".")


def sums(s: Script) -> None:
    """Additions, each with its result."""
    for index in range(5):
        first = s.choose(range(1, LARGEST_ADDEND + 1), lambda n: f"{n} +")
        s.say(" ")
        second = s.choose(range(1, LARGEST_ADDEND + 1), lambda n: f"{n} =")
        s.say(" ")
        s.recall(str(first + second))
        s.say("." if index == 4 else ". ")


def questions(s: Script) -> None:
    """Who does what, then questions whose answers stand above."""
    names: list[str] = []
    deeds: list[str] = []
    for _ in range(3):
        names.append(s.choose(without(NAMES, *names)))
        s.say(" ")
        deeds.append(s.choose(without(DEEDS, *deeds)))
        s.say(". ")
    does = dict(zip(names, deeds, strict=True))
    asked: list[str] = []
    for index in range(3):
        s.say("What does ")
        asked.append(s.choose(without(names, *asked)))
        s.say(" do? ")
        answer_doing(s, asked[-1], does[asked[-1]])
        s.say("" if index == 2 else " ")


def answer_doing(s: Script, name: str, deed: str) -> None:
    s.recall(f"{name} {deed}")
    s.say(".")


def sorting(s: Script) -> None:
    """Words, then the same words in the order of the alphabet."""
    for index in range(2):
        s.say("Words: " if index else "")
        words = draw_words(s, 4)
        s.say(" ")
        s.say("Sorted: ")
        s.recall(" ".join(sorted(words)))
        s.say("." if index else ". ")


def draw_words(s: Script, count: int) -> list[str]:
    words: list[str] = []
    for index in range(count):
        words.append(s.choose(without(THINGS, *words)))
        s.say("." if index == count - 1 else " ")
    return words


def counting(s: Script) -> None:
    """Counting aloud, one by one."""
    for index in range(3):
        s.say("Count " if index else "")
        number = s.choose(range(2, LARGEST_COUNT + 1))
        s.say(" ")
        thing = s.choose(THINGS, plural)
        s.say(": ")
        count_aloud(s, number, thing)
        s.say("" if index == 2 else " ")


def count_aloud(s: Script, number: int, thing: str) -> None:
    parts = [f"{n} {thing if n == 1 else plural(thing)}" for n in range(1, number + 1)]
    s.recall(", ".join(parts) + ".")


def song(s: Script) -> None:
    """A list of words, sung again from one of them on, several times."""
    s.choose(NAMES)
    s.say(": ")
    words = draw_words(s, 5)
    for _ in range(4):
        s.say(" Again: ")
        first = s.choose(words[:-1])
        s.say(" ")
        s.recall(" ".join(words[words.index(first) + 1 :]))
        s.say(".")


Kind = Callable[[Script], None]

# kind -> (opening words, program, share of the documents). What must be found above by its
# neighbours (song, questions) is learnt last and has the largest shares.
KINDS: dict[str, tuple[str, Kind, float]] = {
    "story": ("A story about ", story, 0.12),
    "description": ("This is about ", description, 0.09),
    "dialogue": ("A talk between ", dialogue, 0.09),
    "sums": ("Sums: ", sums, 0.10),
    "questions": ("Listen: ", questions, 0.25),
    "sorting": ("Words: ", sorting, 0.09),
    "counting": ("Count ", counting, 0.05),
    "song": ("A song by ", song, 0.21),
}


def write(s: Script) -> str:
    """A whole document: its kind shows itself in its opening words. Returns the kind."""
    kinds = list(KINDS)
    kind = s.choose(kinds, lambda k: KINDS[k][0], [KINDS[k][2] for k in kinds])
    KINDS[kind][1](s)
    return kind
