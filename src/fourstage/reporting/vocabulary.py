"""The report of a vocabulary as tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.text import Text

from fourstage.reporting.tables import print_table
from fourstage.reporting.tokens import visible


def print_tokenizer_report(report: Mapping[str, Any], console: Console | None = None) -> None:
    """Prints what `tokenizer_report` found: bytes a token beside other vocabularies, and faults."""
    console = console or Console(highlight=False)
    samples: Mapping[str, Mapping[str, Any]] = report["samples"]
    others = list(dict.fromkeys(name for row in samples.values() for name in row["others"]))
    header = ["text", "MB", "tokens", "tokens a word", "bytes a token", *others]
    rows = [
        [
            name,
            row["bytes"] / 1e6,
            row["tokens"],
            row["tokens_per_word"],
            row["bytes_per_token"],
            *(row["others"].get(other) for other in others),
        ]
        for name, row in samples.items()
    ]
    print_table(header, rows, f"Vocabulary of {report['vocab_size']:,} tokens", console)
    if report["not_at_hand"]:
        console.print(Text(f"not at hand, so not compared: {', '.join(report['not_at_hand'])}"))
    console.print(Text(f"unused: {report['unused']:,} tokens, {report['unused_share']:.1%}"))
    longest = "  ".join(visible(text) for text in report["longest"])
    console.print(Text(f"longest: {longest}"))
    console.print(Text(_round_trip(report["lost"])))


def _round_trip(lost: str | None) -> str:
    if lost is None:
        return "round trip: every text comes back"
    codes = " ".join(f"U+{ord(character):04X}" for character in lost[:8])
    return f"round trip: text is lost, first {codes}; a model of this vocabulary cannot write it"
