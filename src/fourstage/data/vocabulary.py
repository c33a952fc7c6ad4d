"""The tokenizer of a run: one that is named, that of the model it starts from, or a trained one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from fourstage.errors import InputError
from fourstage.planning.rules import vocabulary_size
from fourstage.recipe.schema import STAGES, Recipe
from fourstage.tokenizer import Tokenizer, train_tokenizer
from fourstage.tokenizer.adoption import tokenizer_file

_USUAL_PARAMS = 1e6


def tokenizer_source(recipe: Recipe) -> Path | None:
    """The tokenizer.json to adopt; None where one is trained.

    It is `tokenizer.path`, else, without `tokenizer.train`, that of the first model that a stage
    starts from.

    Raises:
        InputError: `tokenizer.path`, or a model to start from, holds none.
    """
    if recipe.tokenizer.path:
        try:
            return tokenizer_file(Path(recipe.tokenizer.path))
        except InputError as error:
            raise InputError(f"tokenizer.path={recipe.tokenizer.path}: {error}") from error
    if recipe.tokenizer.train:
        return None
    for stage in STAGES:
        folder = recipe.stage(stage).source_model
        if folder and (Path(folder) / "tokenizer.json").is_file():
            return Path(folder) / "tokenizer.json"
        if folder:
            raise InputError(
                f"{stage}.from={folder} has no tokenizer.json, and a model without its tokenizer "
                "cannot go on: put it there, or name it with tokenizer.path=FILE"
            )
    return None


def make_tokenizer(
    recipe: Recipe,
    source: Path | None,
    texts: Iterable[str] | None,
    exact: bool,
    say: Callable[[str], None],
    corpus_bytes: float | None = None,
) -> tuple[Tokenizer, dict[str, Any]]:
    """The tokenizer adopted from `source`, or trained on `texts`; and a report of it.

    Args:
        corpus_bytes: of all text that `texts` are drawn from, where it is known.

    Raises:
        InputError: with `exact`, the vocabulary asked for is too large for the text.
    """
    if source is not None:
        tokenizer = Tokenizer.load(source)
        added = f", {len(tokenizer.added)} special tokens added" if tokenizer.added else ""
        say(f"tokenizer: adopted, {tokenizer.vocab_size:,} tokens{added}")
        report = {"origin": "adopted", "added": list(tokenizer.added)}
        return tokenizer, report | {"vocab_size": tokenizer.vocab_size, "chat": tokenizer.chat.name}
    counted = _Counted(texts or [])
    section = recipe.tokenizer
    size = section.vocab_size
    if size is None:
        size, rule = vocabulary_size(recipe.model.params or _USUAL_PARAMS, corpus_bytes)
        say(f"tokenizer.vocab_size = {size:,}  ({rule})")
    tokenizer = train_tokenizer(
        counted,
        size,
        split=section.split,
        digits=section.digits,
        exact=exact and section.vocab_size is not None,
    )
    short = f" (of {size:,}: the text has no more)" if tokenizer.vocab_size < size else ""
    say(f"tokenizer: trained, {tokenizer.vocab_size:,} tokens{short}")
    report = {"origin": "trained", "asked_for": size, "vocab_size": tokenizer.vocab_size}
    report |= {"split": section.split, "digits": section.digits}
    return tokenizer, report | {"texts": counted.texts, "characters": counted.characters}


class _Counted:
    """Passes texts on, and counts them."""

    def __init__(self, source: Iterable[str]):
        self._source = source
        self.texts = self.characters = 0

    def __iter__(self) -> Iterator[str]:
        for text in self._source:
            self.texts += 1
            self.characters += len(text)
            yield text
