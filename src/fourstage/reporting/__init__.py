"""What a run shows of itself: the page `report.html`, terminal tables, and token-by-token views."""

from __future__ import annotations

from pathlib import Path


def build_report(run: Path) -> Path:
    """Writes `report.html` into the run folder from the files of the run alone; returns its path.

    Raises:
        InputError: `run` is not the folder of a run.
    """
    from fourstage.reporting.page import build_report as build

    return build(run)


__all__ = ["build_report"]
