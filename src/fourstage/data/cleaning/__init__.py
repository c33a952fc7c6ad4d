"""Cleaning of documents: steps with names, each optional, each counted."""

from fourstage.data.cleaning.cleaner import Cleaned, Cleaner
from fourstage.data.cleaning.language import identify
from fourstage.data.cleaning.pii import count_pii
from fourstage.data.cleaning.quality import Classifier, train_classifier
from fourstage.data.cleaning.steps import PRESETS, STEPS, expand
from fourstage.data.cleaning.structure import looks_like_code, looks_like_table

__all__ = [
    "PRESETS",
    "STEPS",
    "Classifier",
    "Cleaned",
    "Cleaner",
    "count_pii",
    "expand",
    "identify",
    "looks_like_code",
    "looks_like_table",
    "train_classifier",
]
