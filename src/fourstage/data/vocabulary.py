"""The tokenizer of a run: one that is named, that of the model it starts from, or a trained one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from fourstage.errors import InputError
from fourstage.planning.shapes import vocabulary_for
from fourstage.recipe.schema import STAGES, Recipe
from fourstage.tokenizer import Tokenizer, train_tokenizer

# Merges counted on more text than this come out the same.
_MOST_CHARACTERS = 100_000_000
_USUAL_PARAMS = 1e6


def tokenizer_source(recipe: Recipe) -> Path | None:
    """The tokenizer.json to adopt; None where one is trained.

    It is `tokenizer.path`, else that of the first model that a stage starts from.

    Raises:
        InputError: `tokenizer.path`, or a model to start from, holds none.
    """
    if recipe.tokenizer.path:
        path = Path(recipe.tokenizer.path)
        path = path / "tokenizer.json" if path.is_dir() else path
        if not path.is_file():
            raise InputError(
                f"tokenizer.path={recipe.tokenizer.path}: no tokenizer.json there; write a folder "
                "that holds one, or that file"
            )
        return path
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
) -> tuple[Tokenizer, dict[str, Any]]:
    """The tokenizer adopted from `source`, or trained on `texts`; and a report of it.

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
    wanted = recipe.tokenizer.vocab_size
    size = wanted or vocabulary_for(recipe.model.params or _USUAL_PARAMS)
    tokenizer = train_tokenizer(counted, size, exact=exact and wanted is not None)
    short = f" (of {size:,}: the text has no more)" if tokenizer.vocab_size < size else ""
    say(f"tokenizer: trained, {tokenizer.vocab_size:,} tokens{short}")
    report = {"origin": "trained", "asked_for": size, "vocab_size": tokenizer.vocab_size}
    return tokenizer, report | {"texts": counted.texts, "characters": counted.characters}


class _Counted:
    """Passes texts on until there are enough, and counts them."""

    def __init__(self, source: Iterable[str]):
        self._source = source
        self.texts = self.characters = 0

    def __iter__(self) -> Iterator[str]:
        for text in self._source:
            self.texts += 1
            self.characters += len(text)
            yield text
            if self.characters > _MOST_CHARACTERS:
                return
