"""The data section of a recipe: where text and rows come from, and how text is prepared."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from fourstage.recipe.numbers import Real, Whole


def _named(paths: str | list[Any]) -> str | list[Any]:
    if not paths or (isinstance(paths, list) and "" in paths):
        raise ValueError("must name a file or a folder")
    return paths


Paths = Annotated[str | list[str], AfterValidator(_named)]
Cut = Literal["auto", "file", "paragraph", "line"]
# What the source of earlier text is called.
REPLAY = "replay"
PositiveInt = Annotated[Whole, Field(gt=0)]
Count = Annotated[Whole, Field(ge=0)]
Positive = Annotated[Real, Field(gt=0)]
NonNegative = Annotated[Real, Field(ge=0)]
Fraction = Annotated[Real, Field(ge=0, le=1)]


class Section(BaseModel):
    """A part of a recipe. A key it does not know is a fault, and a number may be no infinity."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=()
    )

    def changed(self) -> set[str]:
        """The fields that are not as they are by default."""
        return {
            name
            for name, field in type(self).model_fields.items()
            if getattr(self, name) != field.get_default(call_default_factory=True)
        }


class DataSource(Section):
    """One source of pretraining text, where it needs more than a path.

    What is left out is as `data` has it.
    """

    path: Paths
    name: str | None = None
    document: Cut | None = None
    clean: str | list[str] | None = None
    map: dict[str, str] | None = None

    @property
    def paths(self) -> list[str]:
        return [self.path] if isinstance(self.path, str) else list(self.path)


class Deduplicate(Section):
    """Which repeats are removed, within and across sources; the first of them stays.

    `near` is the Jaccard similarity of word 5-grams from which two documents are one; `passages`
    the fewest words of a repeated passage that is cut out; `lines` the number of documents from
    which on a line they share is cut out. 0 is never.
    """

    exact: bool = True
    near: Annotated[Real, Field(ge=0, lt=1)] = 0.7
    passages: Count = 0
    lines: Count = 0


class Decontaminate(Section):
    """Which texts training documents must not hold: those of `against`, and the RL prompts.

    A document that shares `ngram` words in a row with one of them is dropped. Prompts given to a
    finished run would change its text, so without `prompts` what they share is only reported.
    """

    against: Paths | None = None
    prompts: bool = False
    ngram: Annotated[Whole, Field(ge=5)] = 13


class Quality(Section):
    """A small classifier that tells text like a good sample from the rest of the pile.

    A document scoring below `threshold` is dropped; without one by GPT-3's rule, which keeps some
    of low score.
    """

    good: Paths | None = None
    threshold: Fraction | None = None


class Phase(Section):
    """Proportions that hold until this share of pretraining is done."""

    until: Annotated[Real, Field(gt=0, le=1)]
    weights: dict[str, NonNegative]


class Mixture(Section):
    """How much is drawn from each source, by its name: the last part of its path, or `name`.

    Without weights, sources are drawn by tokens ** (1 / temperature).
    """

    weights: dict[str, NonNegative] = {}
    temperature: Positive = 1.0
    max_epochs: Positive | dict[str, Positive] | None = None
    phases: list[Phase] = []

    @model_validator(mode="after")
    def _phases_go_on_to_the_end(self) -> Mixture:
        ends = [phase.until for phase in self.phases]
        if ends and (ends != sorted(set(ends)) or ends[-1] != 1):
            raise ValueError(
                f"phases end at {', '.join(f'{end:g}' for end in ends)}: write rising numbers "
                "of which the last is 1"
            )
        if self.phases and self.weights:
            raise ValueError("weights and phases are both given: write the weights of each phase")
        return self

    @property
    def is_natural(self) -> bool:
        """Whether every document is simply read once an epoch."""
        return self == Mixture()


class Replay(Section):
    """Earlier text that is read beside a run's own, so that it is not forgotten.

    `from` names its files or folders, or an earlier run whose prepared text it is; `share` is its
    part of all tokens. 5% keeps nearly all where the next text is of the same language (Ibrahim et
    al., *Simple and Scalable Strategies to Continually Pre-train LLMs*, 2024).
    """

    source: Paths = Field(alias="from")
    share: Annotated[Real, Field(gt=0, lt=1)] = 0.05


class Data(Section):
    """Where the text, the demonstrations, the comparisons and the prompts come from.

    Paths are files or folders, several as a list; "world" is the embedded world. A part left out
    comes from the world when the text does, and is made from the text otherwise.
    """

    pretrain: Annotated[str | list[str | DataSource], AfterValidator(_named)] | None = None
    sft: Paths | None = None
    preferences: Paths | None = None
    prompts: Paths | None = None
    document: Cut = "auto"
    key: str | None = None
    map: dict[str, str] = {}
    bad_rows: Literal["auto", "skip", "refuse"] = "auto"
    clean: str | list[str] = "light"
    languages: str | list[str] | None = None
    quality: Quality = Quality()
    deduplicate: Deduplicate = Deduplicate()
    decontaminate: Decontaminate = Decontaminate()
    mixture: Mixture = Mixture()
    replay: Replay | None = None
    validation: Annotated[Real, Field(gt=0, lt=1)] = 0.02
    overlap: Count = 0
    workers: PositiveInt | None = None
    demonstrations: PositiveInt | None = None
    comparisons: PositiveInt | None = None
    rl_prompts: PositiveInt | None = None

    @model_validator(mode="after")
    def _replays_beside_text(self) -> Data:
        if self.replay is not None and self.pretrain is None:
            raise ValueError(
                "replay is read beside text of one's own: write pretrain=FOLDER, or leave it out"
            )
        return self

    def origin(self, part: str) -> str:
        """Where `part` comes from: "world", "made" (from the text) or "files"."""
        value = getattr(self, part)
        if value is None:
            return "world" if self.pretrain == "world" else "made"
        return "world" if value == "world" else "files"

    def paths(self, part: str) -> list[str]:
        """The paths of a part, or of the replay, that is read from files; none otherwise."""
        if part == REPLAY:
            given = self.replay.source if self.replay else []
            return [given] if isinstance(given, str) else list(given)
        if self.origin(part) != "files":
            return []
        if part == "pretrain":
            return [path for source in self.sources() for path in source.paths]
        value = getattr(self, part)
        return [value] if isinstance(value, str) else list(value)

    def sources(self) -> list[DataSource]:
        """The sources of pretraining text, each with a name of its own and nothing left out."""
        if not self.pretrain or self.origin("pretrain") != "files":
            return []
        given = [self.pretrain] if isinstance(self.pretrain, str) else self.pretrain
        sources: list[DataSource] = []
        for entry in given:
            source = DataSource(path=entry) if isinstance(entry, str) else entry
            name = source.name or _last_part(source.paths[0])
            taken = {other.name for other in sources} | ({REPLAY} if self.replay else set())
            number = 2
            while name in taken:
                name, number = f"{name.partition('#')[0]}#{number}", number + 1
            sources.append(
                source.model_copy(
                    update={
                        "name": name,
                        "document": source.document or self.document,
                        "clean": source.clean if source.clean is not None else self.clean,
                        "map": {**self.keys, **(source.map or {})},
                    }
                )
            )
        return sources

    @property
    def keys(self) -> dict[str, str]:
        """Our names of keys to those the rows have; `data.key` is the text's."""
        return {**({"text": self.key} if self.key else {}), **self.map}


def _last_part(path: str) -> str:
    """What a path is called: its last part without the endings of a file."""
    name = Path(path).resolve().name if path in (".", "..") else Path(path).name
    return name.split(".")[0] or name or path


def source_names(data: Data) -> list[str]:
    return [str(source.name) for source in data.sources()]
