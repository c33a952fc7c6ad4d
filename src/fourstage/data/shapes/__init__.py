"""Shapes: rows in any of the forms that people write them in, recognised without being told."""

from fourstage.data.shapes.families import (
    SHAPES,
    STAGES_OF,
    fits,
    misfit,
    needed,
    settle,
)
from fourstage.data.shapes.hints import FORMS
from fourstage.data.shapes.recognising import NAMES, check_mapping, recognise
from fourstage.data.shapes.row import Malformed, Row, Unteachable

__all__ = [
    "FORMS",
    "NAMES",
    "SHAPES",
    "STAGES_OF",
    "Malformed",
    "Row",
    "Unteachable",
    "check_mapping",
    "fits",
    "misfit",
    "needed",
    "recognise",
    "settle",
]
