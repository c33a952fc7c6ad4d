"""`fourstage report`: one self-contained page from the files of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="The folder of a run, finished or not")
    ],
) -> None:
    """Build report.html of a run from its files, and print where it is."""
    from fourstage.reporting import build_report

    print(build_report(run))
