"""What decides which documents there are: the recipe's data section, as the workers read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from fourstage.data.cleaning import expand
from fourstage.data.mixture import check_names
from fourstage.data.reading import as_paths
from fourstage.data.shapes import check_mapping
from fourstage.recipe.data import Data, source_names

# Changes when the same files and settings would give other documents.
_FORMAT = 1


@dataclass(frozen=True)
class SourceSettings:
    """How the files of one source become documents."""

    name: str
    paths: tuple[str, ...]
    document: str
    steps: tuple[str, ...]
    mapping: Mapping[str, str]


@dataclass(frozen=True)
class CorpusSettings:
    """How the sources become one corpus.

    Attributes:
        near: Jaccard similarity from which two documents are one; 0: they are kept.
        passages: fewest words of a repeated passage that is cut out; 0: none is.
        lines: documents that share a line from which on it is cut out; 0: never.
        ngram: words in a row that a document may not share with a reference.
        validation: share of the documents that is held out.
        skip_bad_rows: leave them out, or refuse the data.
        threshold: least score of the quality classifier, where there is one.
    """

    sources: tuple[SourceSettings, ...]
    languages: tuple[str, ...] | None
    exact: bool
    near: float
    passages: int
    lines: int
    ngram: int
    validation: float
    skip_bad_rows: bool
    threshold: float | None = None

    @classmethod
    def of(cls, data: Data) -> CorpusSettings:
        """The settings of a recipe.

        Raises:
            InputError: a cleaning step, a key of `data.map` or a source of the mixture that does
                not exist.
        """
        for source in data.sources():
            check_mapping(source.map or {})
        mixture, names = data.mixture, dict.fromkeys(source_names(data), 1)
        phases = [phase.model_dump() for phase in mixture.phases]
        check_names(names, mixture.weights, mixture.max_epochs, phases)
        sources = tuple(
            SourceSettings(
                str(source.name),
                tuple(source.paths),
                source.document or data.document,
                expand(source.clean if source.clean is not None else data.clean),
                source.map or {},
            )
            for source in data.sources()
        )
        languages = [data.languages] if isinstance(data.languages, str) else data.languages
        return cls(
            sources,
            tuple(languages) if languages else None,
            data.deduplicate.exact,
            data.deduplicate.near,
            data.deduplicate.passages,
            data.deduplicate.lines,
            data.decontaminate.ngram,
            data.validation,
            data.bad_rows != "refuse",
            data.quality.threshold,
        )

    def to_json(self) -> dict[str, Any]:
        """All of it but where the files lie."""
        told = asdict(self)
        for source in told["sources"]:
            source.pop("paths")
            if len(self.sources) == 1:
                # The folder's name: the same files elsewhere are the same text.
                source.pop("name")
        return told | {"format": _FORMAT}


def reference_paths(data: Data) -> list[str]:
    """Files whose texts the corpus must not hold."""
    against = as_paths(data.decontaminate.against or [])
    prompts = data.paths("prompts") if data.decontaminate.prompts else []
    return [*map(str, against), *prompts]
