"""Materials from a person's own rows: conversations, comparisons and prompts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fourstage.data.documents import content_hash, place
from fourstage.data.encoding import Demonstration, Judgement, Pair, answered
from fourstage.data.judgements import Judged, Ranking, Stepped
from fourstage.data.judging import Judging
from fourstage.data.making import Limits, free_task, reference_task
from fourstage.data.reading import (
    BadRow,
    RawFile,
    inspect_file,
    read_rows_and_faults,
    read_text,
)
from fourstage.data.shapes import (
    SHAPES,
    Malformed,
    Row,
    Unteachable,
    fits,
    misfit,
    needed,
    recognise,
    settle,
)
from fourstage.data.words import Vocabulary
from fourstage.errors import InputError
from fourstage.tasks import Messages, Task

# Two percent of a small file would measure nothing: so many are held out, or a tenth.
_LEAST_HELD_OUT = 100
# More faults than these help nobody.
_SHOWN = 5


@dataclass
class Rows:
    """Rows kept for training and held out, and what was dropped.

    Attributes:
        bad: rows that cannot be used: {file, line, why}.
    """

    train: list[Row] = field(default_factory=list)
    validation: list[Row] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    bad: list[dict[str, Any]] = field(default_factory=list)


def read_part(
    raw: Sequence[RawFile],
    kinds: tuple[str, ...],
    part: str,
    share: float,
    mapping: Mapping[str, str] | None = None,
    skip_bad: bool = False,
    judging: Judging | None = None,
    columns: bool = False,
) -> Rows:
    """Rows of one part of the data, without duplicates, split by a hash of their prompts.

    A prompt with several answers stays on one side; a ranking becomes its comparisons, unless
    `judging` keeps it whole.

    Args:
        kinds: of rows that the part takes.
        mapping: our names of keys to those of the rows.
        skip_bad: leave rows out that cannot be used, instead of refusing the data.
        judging: what a reward model asks of them; rankings are then kept whole.
        columns: keep each row as it was read.

    Raises:
        InputError: unreadable files, rows that cannot be used, none, or too few to split.
    """
    name = f"data.{part}"
    rows = Rows(counts=Counter({"read": 0, "duplicate": 0, "unusable": 0}))
    seen: set[bytes] = set()
    kept: list[Row] = []
    for file in raw:
        for row in _rows_of(file, kinds, name, mapping or {}, rows, judging, columns):
            said: list[Any] = [row.messages, row.chosen, row.rejected, row.responses]
            if judging:
                # What two people say of one answer is no repeat.
                said += [row.head, row.label, row.scores, row.ranks, dict(row.attributes)]
            elif row.label is not None:
                said.append(row.label)
            content = content_hash(json.dumps(said))
            if content in seen:
                rows.counts["duplicate"] += 1
            else:
                seen.add(content)
                kept.append(row)
    if rows.bad and not skip_bad:
        paths = {file.name: file.path for file in raw}
        faults = [f"{paths[bad['file']]}:{bad['line']}: {bad['why']}" for bad in rows.bad]
        shown = faults[:_SHOWN]
        if len(faults) > len(shown):
            shown.append(f"... and {len(faults) - len(shown)} more")
        shown[-1] += f" ({name} can leave such rows out: data.bad_rows=skip)"
        raise InputError(*shown)
    if not kept:
        raise InputError(f"{name}: there is no row in it that can be used; give at least two")
    rows.train, rows.validation = _split(kept, share, name)
    rows.counts |= Counter(train=len(rows.train), validation=len(rows.validation))
    rows.counts |= Counter(bad_rows=len(rows.bad)) if rows.bad else Counter()
    return rows


def _rows_of(
    file: RawFile,
    kinds: tuple[str, ...],
    name: str,
    mapping: Mapping[str, str],
    rows: Rows,
    judging: Judging | None,
    columns: bool,
) -> Iterator[Row]:
    """Rows of a file that the part takes; what is wrong with others is noted in `rows.bad`."""
    if not inspect_file(file).holds_rows:
        lines = _lines_of(file, kinds, name)
        rows.counts["read"] += len(lines)
        yield from lines
        return
    known: list[tuple[int, Row]] = []
    for raw in read_rows_and_faults(file):
        rows.counts["read"] += 1
        if isinstance(raw, BadRow):
            rows.bad.append({"file": file.name, "line": raw.line, "why": raw.why})
            continue
        try:
            row = recognise(raw.value, raw.where, mapping)
            row = judging.annotated(row, raw.value, mapping) if judging else row
            if columns:
                row = replace(row, columns=_columns(raw.value))
            known.append((raw.line, row))
        except Unteachable:
            rows.counts["unusable"] += 1
        except Malformed as fault:
            rows.bad.append({"file": file.name, "line": raw.line, "why": str(fault)})
    shape = settle(Counter(row.shape for _, row in known)) if known else ""
    for line, row in known:
        why = ""
        if not fits(row.shape, shape):
            why = misfit(row.shape, shape)
        elif row.kind not in kinds:
            why = f"{name} needs {needed(kinds[0])}; this row is {SHAPES.get(row.shape, row.kind)}"
            if row.kind == "unpaired" and "comparison" in kinds:
                why += ", which rl.algorithm=kto and reward.objective=binary learn from"
        elif judging:
            why = judging.fault(row)
        if why:
            rows.bad.append({"file": file.name, "line": line, "why": why})
        elif row.kind in ("comparison", "ranking") and judging is None:
            yield from row.pairs()
        else:
            yield row


def _columns(value: Any) -> dict[str, Any] | None:
    """The columns of a row as JSON holds them: what it has no word for as text."""
    return json.loads(json.dumps(value, default=str)) if isinstance(value, dict) else None


def _lines_of(file: RawFile, kinds: tuple[str, ...], name: str) -> list[Row]:
    """Prompts as lines of a text file; other parts need rows.

    Raises:
        InputError: the part is not made of prompts.
    """
    if kinds[0] != "prompt":
        what = "empty" if inspect_file(file).format == "empty" else "plain text"
        raise InputError(f"{name}: {file.path} is {what}; write JSON lines or a JSON list of rows")
    lines = [line.strip() for line in read_text(file).split("\n")]
    return [
        Row("prompt", f"{file.path}:{number}", messages=[{"role": "user", "content": line}])
        for number, line in enumerate(lines, 1)
        if line
    ]


def _split(rows: list[Row], share: float, name: str) -> tuple[list[Row], list[Row]]:
    places = [place(json.dumps(_asked(row))) for row in rows]
    least = max(1, min(_LEAST_HELD_OUT, len(rows) // 10))
    bound = max(share, sorted(places)[least - 1])
    train = [row for row, at in zip(rows, places, strict=True) if at > bound]
    held_out = [row for row, at in zip(rows, places, strict=True) if at <= bound]
    if not train:
        raise InputError(
            f"{name}: {len(rows)} row(s) with data.validation={share:g} leave nothing to train "
            "on; give rows with at least two different prompts"
        )
    return train, held_out


def _asked(row: Row) -> Messages:
    messages = row.messages or []
    return messages[:-1] if row.kind in ("dialogue", "unpaired") else messages


def _prompt(messages: Messages) -> str | Messages:
    """A lone user's message as its text, else the conversation."""
    if len(messages) == 1 and messages[0]["role"] == "user":
        return messages[0]["content"]
    return messages


def demonstration(row: Row) -> Demonstration:
    messages = row.messages or []
    task = reference_task(_prompt(messages[:-1]), messages[-1]["content"])
    return Demonstration(task, messages, row.trained)


def pair(row: Row) -> Pair:
    task = counted_under(row, reference_task(_prompt(row.messages or []), row.chosen))
    return Pair(task, row.chosen, row.rejected, margin=row.margin)


def counted_under(row: Row, task: Task) -> Task:
    """The task, of the kind that its row names."""
    return replace(task, kind=row.category) if row.category else task


def ranking(row: Row) -> Ranking:
    """A comparison or a ranking; answers that are the same text are one."""
    if row.kind == "comparison":
        responses, places, qualities = (row.chosen, row.rejected), (1, 2), ()
        if row.margin is not None:
            qualities = (row.margin, 0.0)
    else:
        first = {text: index for index, text in reversed(list(enumerate(row.responses)))}
        kept = sorted(first.values())
        responses = tuple(row.responses[index] for index in kept)
        places = tuple(row.standings()[index] for index in kept)
        qualities = tuple(row.scores[index] for index in kept) if row.scores else ()
    best = responses[min(range(len(places)), key=places.__getitem__)]
    task = counted_under(row, reference_task(_prompt(row.messages or []), best))
    return Ranking(task, responses, places, qualities, row.head)


def judged(row: Row) -> list[Judged]:
    """The answers of a row with their scores or labels, by head."""
    if row.kind == "ranking":
        task = reference_task(_prompt(row.messages or []), row.responses[row.standings().index(1)])
        told = zip(row.responses, row.scores, strict=True)
        return [Judged(counted_under(row, task), text, {"": score}) for text, score in told]
    messages = row.messages or []
    answer = messages[-1]["content"]
    task = counted_under(row, reference_task(_prompt(messages[:-1]), answer))
    if row.attributes:
        return [Judged(task, answer, row.attributes)]
    label = float(row.label) if row.label is not None else row.scores[0]
    return [Judged(task, answer, {row.head: label})]


def stepped(row: Row) -> Stepped:
    task = reference_task(_prompt(row.messages or []), "\n".join(row.responses))
    return Stepped(counted_under(row, task), row.responses, row.scores)


def judgements(row: Row) -> list[Judgement]:
    """The judgement that a row is, or those of both sides of a comparison."""
    messages = row.messages or []
    if row.kind == "unpaired":
        task = reference_task(_prompt(messages[:-1]), messages[-1]["content"])
        return [Judgement(task, messages, bool(row.label))]
    task = reference_task(_prompt(messages), row.chosen)
    sides = ((row.chosen, True), (row.rejected, False))
    return [Judgement(task, answered(task.prompt, said), is_good) for said, is_good in sides]


def task_maker(vocabulary: Vocabulary | None, limits: Limits) -> Callable[[Row], Task]:
    """How a row of prompts becomes a task: with a reference where it has an answer, and with its
    columns where they were kept."""

    def make(row: Row) -> Task:
        task = _task(row, vocabulary, limits)
        if row.columns is None:
            return task
        return replace(task, facts=task.facts | {"columns": row.columns})

    return make


def _task(row: Row, vocabulary: Vocabulary | None, limits: Limits) -> Task:
    if row.kind == "dialogue":
        return demonstration(row).task
    prompt = _prompt(row.messages or [])
    if row.answer is not None:
        return reference_task(prompt, row.answer)
    return free_task(prompt, vocabulary, limits)
