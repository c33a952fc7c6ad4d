"""A rollout as one self-contained page: coloured responses, numbers on hover and in tables.

What the colours stand for is switched by radio buttons and the style alone; there is no script.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from typing import Any

from fourstage.reporting.html import Markup, join, table, tag
from fourstage.reporting.numbers import signed
from fourstage.reporting.page import POLICY
from fourstage.reporting.rollouts.episodes import Episode
from fourstage.reporting.rollouts.shades import Shading, shading_by, shadings
from fourstage.reporting.tokens import Speaks, visible

# Above and below zero; nearly every eye tells blue from orange, on light paper and on dark.
_ABOVE, _BELOW = "43,120,200", "225,125,30"
_STRONGEST = 0.75
_STYLE = """
input.by { position: absolute; opacity: 0; }
.by-names { font: 13.5px/2 var(--sans); }
.by-names label { padding: .2rem .6rem; border: 1px solid var(--rule); cursor: pointer; }
.episode { border-top: 1px solid var(--rule); padding-top: .7rem; margin-top: 2rem; }
.tokens { font: 14px/1.9 var(--mono); white-space: pre-wrap; max-width: none; }
.tokens .read { color: var(--soft); }
.t { border-radius: 2px; border-bottom: 1px solid transparent; }
.t.cut { border-bottom: 2px dotted var(--ink); }
.t:hover { outline: 1.5px solid var(--ink); }
.scale { display: none; font: 12.5px/1.6 var(--sans); color: var(--soft); }
.scale i { display: inline-block; width: 8rem; height: .8rem; margin: 0 .4rem; }
"""


def rollout_page(
    episodes: Sequence[Episode],
    shown: Sequence[Episode],
    tokenizer: Speaks,
    title: str,
    words: str,
    colour: str | None = None,
) -> str:
    """The page of the episodes `shown`, with one colour scale for all `episodes`.

    Args:
        words: what the page says of the rollout as a whole.
        colour: what is coloured at first.

    Raises:
        InputError: nothing of that name to colour by.
    """
    known = shadings(episodes)
    first = shading_by(colour, known)
    style = resources.files("fourstage.reporting").joinpath("style.css").read_text(encoding="utf-8")
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("title", title),
        tag("style", Markup(style + _STYLE + _switches(known))),
    )
    body = tag(
        "body",
        tag("h1", title),
        tag("p", words),
        (_button(shading, shading is first) for shading in known.values()),
        tag("p", "Colour by ", (_label(name) for name in known), class_="by-names"),
        (_scale(shading) for shading in known.values()),
        tag(
            "main",
            (_episode(each, len(episodes), tokenizer, known) for each in shown),
        ),
        tag(
            "footer",
            "Made by fourstage from a checkpoint of this run. Log-probabilities, KL, rewards, "
            "values and advantages of the token under the pointer are in nats or in units of the "
            "reward; a dotted line marks where the clip took hold.",
        ),
    )
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def _switches(known: dict[str, Shading]) -> str:
    """Which of a token's colours is its background, by the button that is on."""
    rules = []
    for name in known:
        chosen = f"#by-{name}:checked ~"
        rules += [
            f"{chosen} main .t {{ background: var(--{name}, none); }}",
            f"{chosen} .scale-{name} {{ display: block; }}",
            f"{chosen} .by-names label[for=by-{name}] {{ background: var(--ink); "
            "color: var(--paper); }",
            f"#by-{name}:focus-visible ~ .by-names label[for=by-{name}] {{ outline: 2px solid "
            "var(--c0); }",
        ]
    return "\n".join(rules)


def _button(shading: Shading, is_first: bool) -> Markup:
    on = "" if is_first else None
    return tag("input", type="radio", name="by", id=f"by-{shading.name}", class_="by", checked=on)


def _label(name: str) -> Markup:
    return tag("label", name, for_=f"by-{name}")


def _scale(shading: Shading) -> Markup:
    ends = f"rgba({_BELOW},{_STRONGEST}), transparent, rgba({_ABOVE},{_STRONGEST})"
    return tag(
        "div",
        shading.below(1.0),
        tag("i", style=f"background: linear-gradient(to right, {ends})"),
        shading.bound(1.0),
        class_=f"scale scale-{shading.name}",
    )


def _episode(episode: Episode, count: int, tokenizer: Speaks, known: dict[str, Shading]) -> Markup:
    pieces = [visible(tokenizer.token_text(int(token))) for token in episode.response]
    prompt = "".join(visible(tokenizer.token_text(int(token))) for token in episode.prompt)
    columns = {name: column.tolist() for name, column in episode.columns.items()}
    colours = _colours(episode, known)
    tokens = [
        tag(
            "span",
            piece,
            class_=_class(episode, place),
            style=colours[place] or None,
            title=_told(piece, place, episode, columns),
        )
        for place, piece in enumerate(pieces)
    ]
    return tag(
        "section",
        tag("p", tag("strong", episode.summary(count))),
        tag("p", tag("span", prompt, class_="read"), tokens, class_="tokens"),
        tag("details", tag("summary", "the numbers"), _table(episode, pieces, columns)),
        class_="episode",
        id=f"episode-{episode.number}",
    )


def _class(episode: Episode, place: int) -> str:
    if not episode.drawn[place]:
        return "read"
    return "t cut" if _is_cut(episode, place) else "t"


def _is_cut(episode: Episode, place: int) -> bool:
    return episode.clipped is not None and bool(episode.clipped[place])


def _colours(episode: Episode, known: dict[str, Shading]) -> list[str]:
    """[response tokens] a custom property for each quantity."""
    found: list[list[str]] = [[] for _ in episode.response]
    for name, shading in known.items():
        if name not in episode.columns:
            continue
        values = shading.values(episode).tolist()
        for place in episode.drawn.nonzero().flatten().tolist():
            value = values[place]
            strength = shading.strength(value)
            rgb = _ABOVE if strength > 0 else _BELOW
            found[place].append(f"--{name}:rgba({rgb},{abs(strength) * _STRONGEST:.2f})")
    return [";".join(each) for each in found]


def _told(piece: str, place: int, episode: Episode, columns: dict[str, list[float]]) -> str:
    lines = [f"{len(episode.prompt) + place}  {piece}"]
    if not episode.drawn[place]:
        return "\n".join([*lines, "written by the environment"])
    lines += [f"{name}  {signed(values[place], 4)}" for name, values in columns.items()]
    if _is_cut(episode, place):
        lines.append("clipped")
    return "\n".join(lines)


def _table(episode: Episode, pieces: list[str], columns: dict[str, list[float]]) -> Markup:
    header = ["place", "token", *columns, *(["clip"] if episode.clipped is not None else [])]
    rows: list[list[Any]] = []
    for place, piece in enumerate(pieces):
        is_drawn = bool(episode.drawn[place])
        numbers = [signed(values[place]) if is_drawn else "" for values in columns.values()]
        cut = [] if episode.clipped is None else ["×" if _is_cut(episode, place) else ""]
        rows.append([len(episode.prompt) + place, tag("code", piece), *numbers, *cut])
    sums = [episode.total(name) for name in columns]
    totals = ["" if total is None else signed(total) for total in sums]
    rows.append([join(""), "sum", *totals, *([] if episode.clipped is None else [""])])
    return table(header, rows, class_="numbers")
