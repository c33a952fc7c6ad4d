"""Data files before anything is trained on them: what they are taken for, what is wrong."""

from fourstage.reporting.doctor.entries import as_json
from fourstage.reporting.doctor.examining import Bad, Findings, examine
from fourstage.reporting.doctor.locating import Located, locate
from fourstage.reporting.doctor.measuring import Measured, Tools
from fourstage.reporting.doctor.printing import print_report
from fourstage.reporting.doctor.runs import RunFindings, inspect_run, is_run, print_run

__all__ = [
    "Bad",
    "Findings",
    "Located",
    "Measured",
    "RunFindings",
    "Tools",
    "as_json",
    "examine",
    "inspect_run",
    "is_run",
    "locate",
    "print_report",
    "print_run",
]
