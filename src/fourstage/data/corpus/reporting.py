"""What preparation tells of the corpus: numbers for the report, and lists to look at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fourstage import files
from fourstage.data.corpus.columns import Notes, Part
from fourstage.data.corpus.corpus import TRAIN, VALIDATION, Corpus
from fourstage.data.corpus.judging import (
    DUPLICATE,
    MISSHAPEN,
    NEAR,
    REFUSED,
    REMNANT,
    Verdicts,
    characters_left,
    gathered,
)
from fourstage.data.corpus.parts import RawCorpus

# Lists written for people hold so many rows; the counts are of all.
_LISTED = 2000
_DROPPED = {DUPLICATE: "duplicate", NEAR: "near_duplicate", REMNANT: "repeated_passages"}
WHY = {
    "empty": "nothing but white space",
    "duplicate": "the same text was there before",
    "near_duplicate": "a text so alike was there before (data.deduplicate.near)",
    "repeated_passages": "little was left once repeated passages were cut out",
    "contaminated": "it holds a text that is measured on (contamination.jsonl)",
    "bad_rows": "rows that cannot be used (bad_rows.jsonl)",
    "refused_files": "damaged, binary or undecodable; nothing of them is used",
    "validation": "held out by a hash of the content",
}


def report_of(
    corpus: Corpus, parts: Sequence[Part], verdicts: Verdicts, notes: Notes, raw: RawCorpus
) -> dict[str, Any]:
    """Counts of what was read, kept, edited and dropped; of the whole and by source."""
    dropped = {
        key.removeprefix("dropped."): count
        for key, count in sorted(notes.counts.items())
        if key.startswith("dropped.")
    }
    report: dict[str, Any] = {
        "origin": "files",
        "files": sum(len(source.files) for source in raw.sources),
        "refused_files": dict(raw.refused),
        "rows": notes.counts["rows"],
        "bad_rows": len(notes.bad),
        # Documents of refused files and misshapen rows are no documents.
        "read": notes.counts["read"] - verdicts.count(REFUSED) - verdicts.count(MISSHAPEN),
        "empty": notes.counts["empty"],
        **{name: verdicts.count(code) for code, name in _DROPPED.items()},
        "dropped": dropped,
        "edits": dict(sorted(notes.edits.items())),
        "train": corpus.documents["train"],
        "validation": corpus.documents["validation"],
        "characters": sum(corpus.characters.values()),
        "languages": _languages(parts, verdicts),
        "sources": _sources(corpus, parts, verdicts, notes),
    }
    if len(verdicts.cut_documents):
        report["passages_cut"] = len(verdicts.cut_documents)
    named = {"contaminated", *report} if dropped.get("contaminated") else set(report)
    report["why"] = {name: why for name, why in WHY.items() if name in named}
    return report


def _languages(parts: Sequence[Part], verdicts: Verdicts) -> dict[str, int]:
    """Kept documents by language."""
    counts: Counter[str] = Counter()
    for number, part in enumerate(parts):
        of = verdicts.of[verdicts.firsts[number] : verdicts.firsts[number + 1]]
        labels = part.column("labels")[of <= VALIDATION]
        for label, count in enumerate(np.bincount(labels, minlength=len(part.names)).tolist()):
            counts[part.names[label][2]] += count
    told = {name: count for name, count in counts.most_common() if count}
    # Where no step tells languages there is nothing to say.
    return told if set(told) != {"und"} else {}


def _sources(
    corpus: Corpus, parts: Sequence[Part], verdicts: Verdicts, notes: Notes
) -> dict[str, dict[str, int]]:
    """Of each source: documents read and kept, and the characters of both."""
    sources = gathered(parts, "sources", (0,), np.uint16)
    sizes = characters_left(parts, verdicts)
    table = {}
    for number, name in enumerate(corpus.names):
        own = sources == number
        table[name] = {
            "read": notes.per_source[f"read\t{name}"],
            "characters_read": notes.per_source[f"characters\t{name}"],
            "train": int(np.count_nonzero(own & (verdicts.of == TRAIN))),
            "validation": int(np.count_nonzero(own & (verdicts.of == VALIDATION))),
            "characters": int(sizes[own & (verdicts.of <= VALIDATION)].sum()),
        }
    return table


def write_lists(folder: Path, parts: Sequence[Part], verdicts: Verdicts, notes: Notes) -> None:
    """Writes what a person looks at: bad rows, dropped documents, duplicates, contamination."""
    lists: dict[str, Iterable[dict[str, Any]]] = {
        "bad_rows": notes.bad,
        "dropped": (
            {"reason": reason, **row} for reason, rows in notes.examples.items() for row in rows
        ),
        "duplicates": _duplicates(parts, verdicts),
        "contamination": notes.hits,
    }
    for name, rows in lists.items():
        path = folder / f"{name}.jsonl"
        if not files.write_lines(path, rows):
            path.unlink()


def _duplicates(parts: Sequence[Part], verdicts: Verdicts) -> Iterator[dict[str, Any]]:
    """Documents dropped for an earlier one, and where both stand; the first few thousand."""
    repeats = np.flatnonzero((verdicts.of == DUPLICATE) | (verdicts.of == NEAR))[:_LISTED]
    labels, lines = (gathered(parts, name, (0,), np.int64) for name in ("labels", "lines"))

    def place(document: int) -> str:
        number = int(np.searchsorted(verdicts.firsts, document, side="right")) - 1
        return f"{parts[number].names[labels[document]][0]}:{lines[document]}"

    for repeat in repeats.tolist():
        how = _DROPPED[int(verdicts.of[repeat])]
        same = int(verdicts.same_as[repeat])
        yield {"document": place(repeat), "same_as": place(same), "how": how}


def told(report: dict[str, Any]) -> str:
    """One line of what became of the text."""
    kept = report["train"] + report["validation"]
    names = ("empty", "duplicate", "near_duplicate", "repeated_passages")
    lost = {name.replace("_", " "): report[name] for name in names}
    lost |= {name: count for name, count in report["dropped"].items()}
    dropped = ", ".join(f"{count:,} {name}" for name, count in lost.items() if count)
    line = f"text: {kept:,} documents kept of {report['read']:,} in {report['files']:,} files"
    line += f"; dropped: {dropped}" if dropped else ""
    for name, where in (("bad_rows", "data/corpus/bad_rows.jsonl"), ("refused_files", "")):
        found = report[name]
        count = found if isinstance(found, int) else len(found)
        if count:
            line += f"\nwarning: {count:,} {name.replace('_', ' ')} left out"
            line += f", listed in {where}" if where else ": " + _refusals(found)
    return line


def _refusals(found: dict[str, str]) -> str:
    shown = [f"{name} ({why})" for name, why in list(found.items())[:5]]
    return ", ".join(shown) + (f" and {len(found) - 5} more" if len(found) > 5 else "")
