"""Prompts that the text already holds."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

from fourstage.data.corpus.corpus import Corpus
from fourstage.data.decontamination import Contamination

# Characters of the text that are looked through, spread over it; documents at a time.
_LOOKED_THROUGH = 100_000_000
_CHUNK = 1000


def shared_with_text(prompts: Sequence[str], corpus: Corpus, ngram: int) -> list[dict[str, Any]]:
    """Prompts that share words in a row with training documents.

    Args:
        ngram: how many words in a row.

    Returns:
        `prompt`, and the `words` it shares, in the order of the prompts.
    """
    references = [(str(number), prompt) for number, prompt in enumerate(prompts)]
    contamination = Contamination(references, ngram)
    texts = corpus.texts("train", _LOOKED_THROUGH)
    words: dict[int, str] = {}
    while chunk := list(islice(texts, _CHUNK)):
        for text, hit in zip(chunk, contamination.find_each(chunk), strict=True):
            for number in map(int, hit.references) if hit is not None else ():
                if number not in words:
                    words[number] = _shared_words(prompts[number], text, ngram)
    return [{"prompt": prompts[n], "words": words[n]} for n in sorted(words)]


def _shared_words(prompt: str, text: str, ngram: int) -> str:
    """The first words that one of the prompts shares with a text that holds some of several."""
    hit = Contamination([("", prompt)], ngram).find(text)
    return hit.words if hit is not None else ""
