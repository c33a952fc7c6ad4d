"""The report of a vocabulary as tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from fourstage.reporting.tables import print_table
from fourstage.reporting.tokens import visible

if TYPE_CHECKING:
    from fourstage.recipe import Recipe


# Characters of held-out text of each source: more of it measures the same.
_MEASURED = 2_000_000
_WORLD_DOCUMENTS = 1000


def print_run_tokenizer(run: Path, recipe: Recipe, console: Console | None = None) -> None:
    """Prints the report of a run's tokenizer, measured on text that was held out from training."""
    from fourstage.data import fromworld
    from fourstage.data.corpus import Corpus
    from fourstage.tokenizer import Tokenizer
    from fourstage.tokenizer.report import tokenizer_report

    folder, samples = run / "data" / "corpus", {}
    if recipe.data.pretrain == "world":
        rows = fromworld.held_out_documents(recipe.seed, _WORLD_DOCUMENTS)
        samples = {"world": [row["text"] for row in rows]}
    elif (folder / "corpus.json").exists():
        samples = Corpus(folder).samples("validation", _MEASURED)
    print_tokenizer_report(tokenizer_report(Tokenizer.load(run / "tokenizer"), samples), console)


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
