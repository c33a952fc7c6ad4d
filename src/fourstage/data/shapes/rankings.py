"""Rankings: several answers to one prompt, with scores, ranks or votes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fourstage.data.shapes.answered import SCORES, SEVERAL
from fourstage.data.shapes.asked import before
from fourstage.data.shapes.comparisons import compared_turns
from fourstage.data.shapes.row import Malformed, Row, Unteachable
from fourstage.data.shapes.turns import Turn, as_messages, is_conversation, read_turns
from fourstage.data.shapes.values import Columns, kind_of, number, unpacked
from fourstage.data.shapes.votes import SCORE_STEMS, vote

_ANSWER = ("response", "text", "content", "answer", "completion", "output", "value")
# pm_score: the votes that StackExchange's answers got, as a logarithm.
_WITHIN = (*SCORES, "pm_score", "votes")
_LIST_SCORES = ("scores", "ratings", "rewards", "score", "rating")
_LIST_RANKS = ("ranks", "ranking", "rankings", "rank")
_STEMS = ("response", "answer", "completion", "output", "human_ref", "conversation", "generation")
_SUFFIXES = (("1", "2"), ("_1", "_2"), ("_a", "_b"), ("_0", "_1"))
_TWO = tuple((stem + pair[0], stem + pair[1], pair) for stem in _STEMS for pair in _SUFFIXES)


def read_ranking(columns: Columns, where: str) -> Row | None:
    """Rows of several answers of which it is told how good each is.

    Raises:
        Malformed: answers that are no text, or scores that do not fit them.
        Unteachable: an answer is empty.
    """
    return _read_list(columns, where) or _read_two(columns, where)


def _read_list(columns: Columns, where: str) -> Row | None:
    key = columns.first(SEVERAL)
    value = unpacked(columns[key]) if key else None
    if key is None or not isinstance(value, list) or not value:
        return None
    name = columns.written(key)
    if key == "summaries" and "choice" in columns:
        votes = [float(number(columns["choice"]) != place) for place in range(len(value))]
        if sum(votes) != len(votes) - 1:
            raise Malformed(f"{columns.written('choice')} names none of the summaries")
        return _ranking(columns, where, _texts(value, name), ranks=[1 + vote for vote in votes])
    inner = [Columns(item) for item in value if isinstance(item, dict)]
    scores = _told(columns, inner, _LIST_SCORES, _WITHIN, len(value))
    ranks = _told(columns, inner, _LIST_RANKS, ("rank", "ranking"), len(value))
    if key == "ranked" and scores is None and ranks is None:
        ranks = [float(place) for place in range(1, len(value) + 1)]
    if scores is None and ranks is None:
        return None
    return _ranking(columns, where, _texts(value, name), scores, ranks)


def _told(
    columns: Columns,
    inner: Sequence[Columns],
    beside: tuple[str, ...],
    within: tuple[str, ...],
    count: int,
) -> list[float] | None:
    """A number for each of `count` answers: in a list beside them, or within each of them."""
    key = columns.first(beside)
    if key is not None and isinstance(unpacked(columns[key]), list):
        return _numbers(unpacked(columns[key]), columns.written(key), count)
    if len(inner) != count:
        return None
    key = next((name for name in within if all(name in each for each in inner)), None)
    if key is None:
        told = [name for name in within if any(name in each for each in inner)]
        if told:
            raise Malformed(f"some answers have a {told[0]!r} and some have none")
        return None
    return _numbers([each[key] for each in inner], repr(key), count)


def _numbers(values: Sequence[Any], name: str, count: int) -> list[float]:
    found = [number(value) for value in values]
    numbers = [value for value in found if value is not None]
    if len(numbers) < len(found):
        raise Malformed(f"{name} holds something that is no number")
    if len(numbers) != count:
        raise Malformed(f"{name} holds {len(numbers)} numbers for {count} answers")
    return numbers


def _texts(values: Sequence[Any], name: str) -> list[str]:
    texts = []
    for place, value in enumerate(values, 1):
        if isinstance(value, dict):
            inner = Columns(value)
            key = inner.first(_ANSWER)
            value = inner[key] if key else None
        if is_conversation(value):
            value = read_turns(value, f"answer {place} of {name}")[-1].content
        texts.append(_said(value, f"answer {place} of {name}"))
    return texts


def _said(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise Malformed(f"{name} is {kind_of(value)}: write a string")
    if not value.strip():
        raise Unteachable(f"{name} is empty")
    return value.strip()


def _ranking(
    columns: Columns,
    where: str,
    responses: Sequence[str],
    scores: Sequence[float] | None = None,
    ranks: Sequence[float] | None = None,
    asked: list[Turn] | None = None,
) -> Row:
    if len(responses) < 2:
        raise Malformed("a ranking of a single answer compares nothing")
    asked = asked or before(columns)
    if asked is None:
        raise Malformed("answers without a prompt: add the key 'prompt'")
    if asked[-1].role != "user":
        raise Malformed("the prompt of a ranking ends with a message of the user")
    return Row(
        "ranking",
        where,
        messages=as_messages(asked),
        shape="scored" if scores else "ranking",
        responses=tuple(responses),
        scores=tuple(scores or ()),
        ranks=tuple(ranks or ()),
    )


def _read_two(columns: Columns, where: str) -> Row | None:
    """Two answers in keys of their own, with scores, or with a vote for one of them."""
    for first, second, suffixes in _TWO:
        if first in columns and second in columns:
            return _two(columns, where, (first, second), suffixes)
    return None


def _two(columns: Columns, where: str, names: tuple[str, str], suffixes: tuple[str, str]) -> Row:
    asked, responses = None, [columns[name] for name in names]
    written = (columns.written(names[0]), columns.written(names[1]))
    if all(map(is_conversation, responses)):
        turns = [read_turns(*each) for each in zip(responses, written, strict=True)]
        asked, *responses = compared_turns(before(columns), *turns, written)
    texts = [_said(response, name) for response, name in zip(responses, written, strict=True)]
    for stem in SCORE_STEMS:
        scores = [number(columns.get(stem + suffix)) for suffix in suffixes]
        if scores[0] is not None and scores[1] is not None:
            return _ranking(columns, where, texts, [scores[0], scores[1]], asked=asked)
    verdict, strength = vote(columns, suffixes)
    ranks = {-1: [1.0, 2.0], 0: [1.0, 1.0], 1: [2.0, 1.0]}[verdict]
    scores = [-strength / 2, strength / 2] if strength else None
    return _ranking(columns, where, texts, scores, ranks, asked)
