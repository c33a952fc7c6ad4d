"""Tokenizers from elsewhere: a tokenizer.json, and what the files beside it say of its tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from fourstage import files
from fourstage.errors import InputError

# Models of which text does not come back: words they do not know are lost, as are spaces and case.
_FORGETFUL = ("WordPiece", "WordLevel")
# Other forms of a vocabulary, which tokenizer.json replaces.
_OTHER_FILES = ("tokenizer.model", "vocab.json", "merges.txt", "vocab.txt", "tiktoken.model")
_ROLES = ("bos_token", "eos_token", "pad_token", "unk_token")


def tokenizer_file(path: Path) -> Path:
    """The tokenizer.json that a path names: that file, or the one in that folder (or run).

    Raises:
        InputError: there is none.
    """
    path = Path(path)
    for found in (path, path / "tokenizer.json", path / "tokenizer" / "tokenizer.json"):
        if found.is_file():
            return found
    others = [name for name in _OTHER_FILES if path.is_dir() and (path / name).is_file()]
    if others:
        raise InputError(
            f"{path} holds no tokenizer.json but {', '.join(others)}: write one with "
            f'transformers.AutoTokenizer.from_pretrained("{path}").save_pretrained("{path}")'
        )
    raise InputError(
        f"{path} holds no tokenizer: write a folder with a tokenizer.json, or that file"
    )


def read_tokenizer(path: Path) -> tuple[Backend, dict[str, str]]:
    """A tokenizer with the special tokens that the files beside it name, and their roles.

    tokenizer_config.json and special_tokens_map.json are read as `transformers` reads them: the
    tokens that they name are special ones even where tokenizer.json does not say so.

    Returns:
        the tokenizer, and the contents of `bos_token`, `eos_token`, `pad_token` where named.

    Raises:
        InputError: no tokenizer, damaged files, or a kind of model that loses text.
    """
    path = tokenizer_file(path)
    try:
        text = path.read_text(encoding="utf-8")
        backend = Backend.from_str(text)
    except Exception as error:  # the tokenizers library raises bare Exceptions
        raise InputError(f"{path} is not a tokenizer of the tokenizers library: {error}") from error
    kind = type(backend.model).__name__
    if kind in _FORGETFUL:
        raise InputError(
            f"{path} is a {kind} tokenizer: text does not come back from its ids, so that no model "
            "can learn to write with it; take a BPE or Unigram one, or train one by leaving "
            "tokenizer.path out"
        )
    named = {
        **_settings(path.parent / "special_tokens_map.json"),
        **_settings(path.parent / "tokenizer_config.json"),
    }
    _make_special(backend, named)
    roles = {role: _content(named.get(role)) for role in _ROLES if role != "unk_token"}
    return backend, {role: content for role, content in roles.items() if content}


def _make_special(backend: Backend, named: dict[str, Any]) -> None:
    """Makes the named tokens special: those of the vocabulary keep their ids, others follow."""
    special = {t.content for t in backend.get_added_tokens_decoder().values() if t.special}
    missing = [token for token in _special_tokens(named) if token not in special]
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in missing])


def _special_tokens(named: dict[str, Any]) -> Iterator[str]:
    decoder = named.get("added_tokens_decoder") or {}
    listed = [decoder[key] for key in sorted(decoder, key=int) if decoder[key].get("special")]
    listed += [named.get(role) for role in _ROLES]
    for key in ("additional_special_tokens", "extra_special_tokens"):
        more = named.get(key) or []
        listed += list(more.values()) if isinstance(more, dict) else more
    yield from dict.fromkeys(filter(None, map(_content, listed)))


def _content(token: Any) -> str | None:
    """A token's text: written plainly, or as `content` among its settings."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) and content else None


def _settings(path: Path) -> dict[str, Any]:
    """What a JSON file says that is no null; nothing where there is none.

    Raises:
        InputError: it is not a JSON object.
    """
    if not path.is_file():
        return {}
    try:
        settings = files.read_json(path)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not JSON: {error}") from error
    if not isinstance(settings, dict):
        raise InputError(f"{path} is not a JSON object: write {{}}, or leave it out")
    return {key: value for key, value in settings.items() if value is not None}
