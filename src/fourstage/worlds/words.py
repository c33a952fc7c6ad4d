"""The words of the calibration world. Within a list no word begins another, so reading is exact."""

from __future__ import annotations

NAMES = (
    "Ann Bob Carl Dora Emma Finn Gus Hana Ivan Jack Kim Leo "
    "Mia Nina Otto Paul Rosa Sam Tom Uma Vera Will Yara Zoe"
).split()

ANIMALS = "bear cat dog duck fox frog goat hen horse lion mouse owl pig rabbit sheep wolf".split()

COLOURS = "black blue brown green pink red white yellow".split()

THINGS = (
    "bag ball basket bell boat book bottle box brush candle chair clock coin comb cup drum "
    "flag fork hat kite knife lamp map mirror needle pencil ring rope spoon stone table wheel"
).split()

DEEDS = (
    "climbs cooks dances digs hums jumps knits laughs paints reads runs sings skates sleeps swims "
    "writes"
).split()

PLACES = (
    "attic barn cave cellar field forest garden harbour kitchen library market mill park "
    "river school tower"
).split()

TRAITS = (
    "brave calm clever friendly gentle happy jolly kind lazy patient polite proud quiet shy "
    "strong wise"
).split()


def plural(thing: str) -> str:
    """`box` -> `boxes`, `knife` -> `knives`."""
    if thing == "knife":
        return "knives"
    return thing + ("es" if thing.endswith(("x", "sh")) else "s")
