"""A pile of files to documents that can be trusted: read, cleaned, each kept once, split."""

from fourstage.data.corpus.corpus import Corpus
from fourstage.data.corpus.prompts import shared_with_text
from fourstage.data.corpus.recipes import build_corpus, corpus_inputs, text_files, text_size
from fourstage.data.corpus.reporting import told

__all__ = [
    "Corpus",
    "build_corpus",
    "corpus_inputs",
    "shared_with_text",
    "text_files",
    "text_size",
    "told",
]
