"""What was found, for people: a line a file, then one table a topic."""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from fourstage.data.reading.finding import shown
from fourstage.reporting.doctor.examining import Findings
from fourstage.reporting.doctor.examples import print_example, print_legend
from fourstage.reporting.doctor.fields import fitting
from fourstage.reporting.doctor.lengths import BYTES_PER_TOKEN, quantiles
from fourstage.reporting.doctor.measuring import HITS, Measured, Tools
from fourstage.reporting.numbers import figures, share
from fourstage.reporting.tables import print_table

_FAULTS, _LINES, _LANGUAGES, _EXAMPLES = 20, 20, 5, 10


def print_report(
    findings: Sequence[Findings],
    tools: Tools,
    console: Console,
    passed: Sequence[str] = (),
    folders: Sequence[str] = (),
) -> None:
    """The whole report; what there is nothing to say of is left out.

    Args:
        passed: paths that were passed over. folders: those that were looked at whole.
    """
    names = _short_names(findings, console)
    _print_files(findings, names, console)
    if passed:
        count = f"{figures(len(passed))} passed over"
        _print_lines(count, [shown(name) for name in passed], console, most=3)
    _print_lines("fits", [_field_line(*each) for each in fitting(findings, folders)], console)
    measured = [(names[each.path], each, each.measured) for each in findings if each.measured]
    _print_lengths(measured, tools, console)
    _print_repeats(measured, tools, console)
    if tools.tells_languages:
        _print_counts("languages", measured, _languages, console)
    else:
        _print_lines("languages", ["to tell them: pip install 'fourstage[data]'"], console)
    _print_counts("personal data (PII)", measured, lambda m: _listed(m.pii), console)
    if tools.contamination is not None:
        _print_contamination(measured, console)
    _print_bad(findings, console)
    _print_examples(measured, tools, console)


def _short_names(findings: Sequence[Findings], console: Console) -> dict[str, str]:
    """What tables call each file: its path from the folder on that all of them lie in."""
    paths = [each.path for each in findings]
    folder = ""
    if len(paths) > 1 and len({os.path.isabs(path) for path in paths}) == 1:
        folder = os.path.commonpath([os.path.dirname(path) for path in paths])
    if not folder:
        return {path: shown(path) for path in paths}
    console.print(Text(f"files in {shown(folder)}", style="bold"), soft_wrap=True)
    return {path: shown(os.path.relpath(path, folder)) for path in paths}


def _print_files(findings: Sequence[Findings], names: dict[str, str], console: Console) -> None:
    rows = []
    for each in findings:
        found = each.survey
        packed = f"{found.format}, {found.compression}" if found.compression else found.format
        junk = f" ({len(found.junk)} junk)" if found.junk else ""
        shape = Text("refused", style="red") if found.error else found.shape
        bad = Text(figures(len(each.bad)), style="red") if each.bad else 0
        cells = [
            names[each.path],
            packed + junk,
            found.encoding,
            shape,
            each.rows,
            each.usable,
            bad,
        ]
        rows.append(cells)
    header = ["file", "format", "encoding", "shape", "rows", "usable", "bad"]
    print_table(header, rows, console=console)


def _field_line(path: str, fields: Sequence[str]) -> str:
    """A field of the recipe with the path, ready to be pasted into a shell."""
    others = f"   (or {', '.join(fields[1:])})" if len(fields) > 1 else ""
    return f"{fields[0]}={shlex.quote(shown(path))}{others}"


def _print_lines(title: str, lines: Sequence[str], console: Console, most: int = _LINES) -> None:
    if not lines:
        return
    console.print(Text(title, style="bold"))
    for line in lines[:most]:
        console.print(Text(f"  {line}"), soft_wrap=True)
    if len(lines) > most:
        console.print(Text(f"  ... and {figures(len(lines) - most)} more", style="dim"))
    console.print()


# What tables call the file, and what was found.
Measurements = Sequence[tuple[str, Findings, Measured]]


def _print_lengths(measured: Measurements, tools: Tools, console: Console) -> None:
    rows: list[list[Any]] = []
    for name, each, found in measured:
        row: list[Any] = [name, *quantiles(found.tokens).values()]
        if tools.context is not None:
            # Plain text that is longer goes on in the next row; nothing of it is lost.
            row += [found.over, "split" if _is_text(each) else "cut"]
        rows.append(row)
    header = ["file", "median", "90%", "longest", "in all"]
    if tools.context is not None:
        header += [f"over {tools.context}", "these are"]
    how = f"about, at {BYTES_PER_TOKEN} bytes a token: --tokenizer DIR counts them"
    title = "length of rows in tokens" + (f" ({how})" if tools.tokenizer is None else "")
    _print_titled(title, header, rows, console)


def _is_text(found: Findings) -> bool:
    return found.kinds == ["text"]


def _print_titled(
    title: str, header: Sequence[str], rows: Sequence[Sequence[Any]], console: Console
) -> None:
    if rows:
        console.print(Text(title, style="bold"))
        print_table(header, rows, console=console)


def _print_repeats(measured: Measurements, tools: Tools, console: Console) -> None:
    rows = []
    for name, _, found in measured:
        if found.exact or found.near or found.elsewhere:
            looked = "all" if found.signed == len(found.tokens) else f"first {found.signed:,}"
            rows.append([name, found.exact, found.near, looked, found.elsewhere])
    threshold = f"{tools.hasher.threshold:g}"
    header = ["file", "exact", f"near (Jaccard {threshold})", "near among", "in earlier files"]
    _print_titled("rows that repeat an earlier one", header, rows, console)


def _print_counts(
    title: str, measured: Measurements, told: Callable[[Measured], str], console: Console
) -> None:
    rows = [[name, line] for name, _, found in measured if (line := told(found))]
    _print_titled(title, ["file", ""], rows, console)


def _languages(found: Measured) -> str:
    common = found.languages.most_common(_LANGUAGES)
    line = ", ".join(f"{name} {share(count / found.listened)}" for name, count in common)
    is_sample = found.listened < len(found.tokens)
    return line + (f" (of {figures(found.listened)} rows)" if is_sample else "")


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {figures(count)}" for name, count in counts.most_common())


def _print_contamination(measured: Measurements, console: Console) -> None:
    lines = []
    for _, each, found in measured:
        for hit in found.hits[:_FAULTS]:
            place = "/".join(filter(None, [shown(each.path), hit.get("member")]))
            lines.append(
                f"{place}:{hit['line']} holds {hit['references'][0]}: {hit['words']!r:.120}"
            )
        if found.contaminated > min(_FAULTS, HITS):
            lines.append(f"{shown(each.path)}: {figures(found.contaminated)} rows in all")
    _print_lines("contamination", lines or ["no row holds a text of --against"], console)


def _print_bad(findings: Sequence[Findings], console: Console) -> None:
    """The first bad rows, of every file some; rows that share a reason share a line."""
    faulty = [each for each in findings if each.bad]
    if not faulty:
        return
    console.print(Text("bad rows", style="bold"))
    most = max(2, _FAULTS // len(faulty))
    for each in faulty:
        lines: dict[str, list[int]] = {}
        for bad in each.bad:
            lines.setdefault(bad.why, []).append(bad.line)
        for why, places in list(lines.items())[:most]:
            place = f"{shown(each.path)}:{places[0]}" if places[0] else shown(each.path)
            line = Text(f"  {place}: {shown(why)}", style="red")
            console.print(line.append(_others(places[1:]), style="dim"), soft_wrap=True)
        if len(lines) > most:
            more = f"  ... and {figures(len(lines) - most)} more reasons in {shown(each.path)}"
            console.print(Text(f"{more} (--json tells all)", style="dim"), soft_wrap=True)
    console.print()


def _others(places: Sequence[int]) -> str:
    if not places:
        return ""
    first = ", ".join(map(str, places[:3]))
    dots = ", ..." if len(places) > 3 else ""
    return f" (and {figures(len(places))} more: {first}{dots})"


def _print_examples(measured: Measurements, tools: Tools, console: Console) -> None:
    chosen = [row for _, _, found in measured for row in found.examples]
    if not chosen:
        return
    print_legend(console)
    most = max(_EXAMPLES, tools.examples)
    for row in chosen[:most]:
        console.print(Text(f"{row.shape}, {shown(row.where)}", style="dim"), soft_wrap=True)
        print_example(row, tools.tokenizer, console)
    if len(chosen) > most:
        more = f"... and {len(chosen) - most} more: give fewer files to see theirs"
        console.print(Text(more, style="dim"))
