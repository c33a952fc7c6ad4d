"""Deduplication: equal documents, near duplicates, and what several documents share."""

from fourstage.data.deduplication.clusters import clusters, first_of_equal, near_duplicates
from fourstage.data.deduplication.minhash import MinHasher
from fourstage.data.deduplication.passages import Spans, repeated, spans, without
from fourstage.data.deduplication.words import Words, normalised

__all__ = [
    "MinHasher",
    "Spans",
    "Words",
    "clusters",
    "first_of_equal",
    "near_duplicates",
    "normalised",
    "repeated",
    "spans",
    "without",
]
