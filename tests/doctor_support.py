"""What the tests of the data doctor share: files, and the doctor as a person calls it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from fourstage.cli.app import main
from fourstage.reporting.doctor import Findings, Tools, examine, locate, print_report
from fourstage.tokenizer import Tokenizer
from fourstage.tokenizer.training import train_tokenizer

STORY = (
    "The keeper of the old lighthouse walked down the stairs every evening and counted the ships "
    "that passed the harbour before the fog came in from the sea and hid them all from his sight."
)
DIALOGUE = {
    "messages": [
        {"role": "user", "content": "What is the capital of France?"},
        {"role": "assistant", "content": "It is Paris."},
    ]
}


def lines_file(path: Path, *rows: Any) -> Path:
    """JSON lines; a string is written as it is."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def findings(*paths: Path | str, tools: Tools | None = None) -> list[Findings]:
    return examine(locate([str(path) for path in paths]).files, tools or Tools())


def found(path: Path | str, tools: Tools | None = None) -> Findings:
    (only,) = findings(path, tools=tools)
    return only


def called(capsys, *arguments: Any) -> tuple[int, str, str]:
    """Exit code, output and errors of `fourstage inspect data`."""
    try:
        main(["inspect", "data", *map(str, arguments)])
    except SystemExit as stop:
        out, err = capsys.readouterr()
        return int(stop.code or 0), out, err
    raise AssertionError("a command ends with an exit code")


def told(capsys, *arguments: Any) -> list[dict[str, Any]]:
    """The entries of `--json`."""
    code, out, err = called(capsys, *arguments, "--json")
    assert (code, err) == (0, "")
    return json.loads(out)["files"]


def printed(found: list[Findings], tools: Tools | None = None, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    print_report(found, tools or Tools(), console)
    return console.file.getvalue()  # ty: ignore


def tokenizer() -> Tokenizer:
    return train_tokenizer([STORY, "Paris is the capital of France."], 300, exact=False)
