"""Well-known vocabularies to compare with, where this machine has them; none is downloaded."""

from __future__ import annotations

import base64
import hashlib
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fourstage.tokenizer.splitting import tiktoken_pattern
from fourstage.tokenizer.tokenizer import Tokenizer

# Texts -> number of tokens.
Count = Callable[[Sequence[str]], int]
_FILES = "https://openaipublic.blob.core.windows.net/encodings/"


@dataclass(frozen=True)
class Known:
    """A vocabulary by name, where the caches of `tiktoken` and Hugging Face would have it.

    Attributes:
        repositories: on the hub, any of them.
        file: what tiktoken's cache is asked for.
        split, digits: how tiktoken cuts text for it.
    """

    name: str
    repositories: tuple[str, ...] = ()
    file: str | None = None
    split: str = "gpt4"
    digits: int | None = 3


KNOWN = (
    Known("GPT-2", ("openai-community/gpt2", "gpt2"), "r50k_base.tiktoken", "gpt2", None),
    Known("cl100k", ("Xenova/gpt-4", "Xenova/gpt-3.5-turbo"), "cl100k_base.tiktoken"),
    Known(
        "Llama 2",
        (
            "meta-llama/Llama-2-7b-hf",
            "NousResearch/Llama-2-7b-hf",
            "hf-internal-testing/llama-tokenizer",
        ),
    ),
    Known(
        "Llama 3",
        (
            "meta-llama/Meta-Llama-3-8B",
            "meta-llama/Llama-3.1-8B",
            "meta-llama/Llama-3.2-1B",
            "NousResearch/Meta-Llama-3-8B",
        ),
    ),
)


def counters(given: Mapping[str, Path] | None = None) -> dict[str, Count | None]:
    """How many tokens other vocabularies need; None for a known one that is not at hand.

    Args:
        given: names and folders, or files, of more tokenizers; a known name stands for that one.

    Raises:
        InputError: a path of `given` holds no tokenizer.
    """
    found: dict[str, Count | None] = {known.name: None for known in KNOWN}
    for known in KNOWN:
        if given is None or known.name not in given:
            found[known.name] = _cached_by_hub(known) or _cached_by_tiktoken(known)
    for name, path in (given or {}).items():
        found[name] = _by_tokenizer(Path(path))
    return found


def _by_tokenizer(path: Path) -> Count:
    tokenizer = Tokenizer.load(path)
    return lambda texts: len(tokenizer.encode_batch_flat(texts)[0])


def _cached_by_hub(known: Known) -> Count | None:
    from huggingface_hub import try_to_load_from_cache

    for repository in known.repositories:
        path = try_to_load_from_cache(repository, "tokenizer.json")
        if isinstance(path, str):
            return _by_tokenizer(Path(path))
    return None


def _cached_by_tiktoken(known: Known) -> Count | None:
    """Reads tiktoken's cache itself: tiktoken would download what it does not find there."""
    if known.file is None:
        return None
    folder = os.environ.get("TIKTOKEN_CACHE_DIR") or os.environ.get("DATA_GYM_CACHE_DIR")
    folder = folder or os.path.join(tempfile.gettempdir(), "data-gym-cache")
    path = Path(folder, hashlib.sha1((_FILES + known.file).encode()).hexdigest())
    if not path.is_file():
        return None
    try:
        import tiktoken
    except ImportError:
        return None
    lines = [line.split() for line in path.read_bytes().splitlines() if line]
    encoding = tiktoken.Encoding(
        known.name,
        pat_str=tiktoken_pattern(known.split, known.digits),
        mergeable_ranks={base64.b64decode(token): int(rank) for token, rank in lines},
        special_tokens={},
    )
    return lambda texts: sum(len(encoding.encode_ordinary(text)) for text in texts)
