"""The parts of `rl.rewards`: what gives a number to a response beside or instead of a model."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from fourstage.errors import InputError, nearest
from fourstage.posting import address
from fourstage.recipe.data import Count, NonNegative, PositiveInt, Section
from fourstage.recipe.numbers import Real, Seconds
from fourstage.rewards.importing import WRITTEN, split_name

Limit = Annotated[Seconds, Field(gt=0)]
Extraction = Literal["strict", "lenient"]


# Fields without a default, and how they are written.
_NEEDED = {
    "function": WRITTEN["function"],
    "url": "http://HOST:PORT/PATH, or https://...",
}


def check_address(name: str, url: str) -> None:
    """Raises a `ValueError` for what nothing can be posted to, or holds a password."""
    if address(url) is not None:
        return
    if "@" in url.partition("://")[2].partition("/")[0]:
        raise ValueError(f"{name} holds a password: name a variable that holds it by token_env")
    raise ValueError(f"{name}={url}: write http://HOST:PORT/PATH, or https://...")


def _importable(function: str) -> str:
    try:
        split_name(function)
    except InputError as error:
        raise ValueError(f"write {_NEEDED['function']}") from error
    return function


def _several_letters(letters: str) -> str:
    is_good = letters.isascii() and letters.isalpha() and len(set(letters.upper())) == len(letters)
    if not is_good or len(letters) < 2:
        raise ValueError("write the letters of the choices, such as ABCD")
    return letters


class RewardPart(Section):
    """What every part has.

    Attributes:
        name: what it is logged as; the kind unless said.
        weight: its factor in the sum; 0 is logged only.
        fault_score: what a response gets where the part fails on it.
        only: column -> value: the part says nothing of rows that have others.
    """

    kind: str
    name: Annotated[str, Field(pattern=r"^[\w.-]+$")] | None = None
    weight: NonNegative = 1.0
    fault_score: Real = -1.0
    only: dict[str, Any] = Field(default_factory=dict)


class ModelPart(RewardPart):
    """The score of the reward model, as the stage `reward` or `rl.reward_model` gives it."""

    kind: Literal["model"] = "model"


class MathPart(RewardPart):
    """The final answer against the ground truth."""

    kind: Literal["math"] = "math"
    verifier: Literal["numbers", "math_verify"] = "numbers"
    extraction: Extraction = "strict"
    truth: str | None = None
    tolerance: NonNegative = 0.0
    seconds: Limit = 5.0
    workers: PositiveInt | None = None

    @model_validator(mode="after")
    def _only_numbers_have_a_tolerance(self) -> MathPart:
        if self.tolerance and self.verifier == "math_verify":
            raise ValueError(
                f"tolerance={self.tolerance:g} is of verifier=numbers: leave it out, or write that"
            )
        return self


class ExactPart(RewardPart):
    """The ground truth itself."""

    kind: Literal["exact"] = "exact"
    place: Literal["whole", "answer", "contains"] = "whole"
    normalise: Literal["none", "spaces", "squad"] = "spaces"
    truth: str | None = None


class RegexPart(RewardPart):
    """A pattern that must stand in the response, of the recipe or of each row."""

    kind: Literal["regex"] = "regex"
    pattern: str | None = None
    column: str | None = None
    seconds: Limit = 1.0

    @model_validator(mode="after")
    def _has_one_pattern(self) -> RegexPart:
        if self.pattern is not None and self.column is not None:
            raise ValueError("pattern and column are both given: leave one of the two out")
        return self


class FormatPart(RewardPart):
    """A pattern that the whole response must match."""

    kind: Literal["format"] = "format"
    pattern: str = r"<think>(?:(?!</?think>).)*</think>\s*<answer>(?:(?!</?answer>).)*</answer>"
    seconds: Limit = 1.0


class ChoicePart(RewardPart):
    """The right letter of a multiple choice."""

    kind: Literal["choice"] = "choice"
    letters: Annotated[str, AfterValidator(_several_letters)] = "ABCDEFGHIJ"
    extraction: Extraction = "strict"
    truth: str | None = None


class JsonSchemaPart(RewardPart):
    """JSON that keeps to a schema, of the recipe or of each row."""

    kind: Literal["json_schema"] = "json_schema"
    json_schema: dict[str, Any] | None = None
    column: str | None = None
    seconds: Limit = 2.0


class ConstraintsPart(RewardPart):
    """Lengths, words, beginnings and ends, of the recipe and of each row."""

    kind: Literal["constraints"] = "constraints"
    constraints: dict[str, Any] | list[dict[str, Any]] | None = None
    column: str | None = None
    partial: bool = False


class CodePart(RewardPart):
    """Code against the tests of its row, in a contained process with these limits."""

    kind: Literal["code"] = "code"
    tests: str | None = None
    partial: bool = False
    unfenced: bool = False
    packages: bool = False
    seconds: Limit = 10.0
    cpu_seconds: Limit = 5.0
    memory: PositiveInt = 1_000_000_000
    file_size: PositiveInt = 16_000_000
    output: PositiveInt = 1_000_000
    workers: PositiveInt | None = None
    allow_uncontained: bool = False


class PythonPart(RewardPart):
    """A person's own function: `module:function` or `file.py:function`."""

    kind: Literal["python"] = "python"
    function: Annotated[str, AfterValidator(_importable)]
    messages: bool = False
    seconds: Limit = 60.0


class HttpPart(RewardPart):
    """A service that batches are posted to."""

    kind: Literal["http"] = "http"
    url: str
    batch: PositiveInt = 64
    workers: PositiveInt = 4
    seconds: Limit = 30.0
    retries: Count = 3
    backoff: Annotated[Seconds, Field(ge=0)] = 0.5
    most_bytes: PositiveInt = 10_000_000
    token_env: str | None = None

    @model_validator(mode="after")
    def _is_an_address(self) -> HttpPart:
        check_address("url", self.url)
        return self


class LengthPart(RewardPart):
    """DAPO's penalty of overlong responses; `most` is `rl.max_new_tokens`, `buffer` a fifth."""

    kind: Literal["length"] = "length"
    most: PositiveInt | None = None
    buffer: PositiveInt | None = None

    @model_validator(mode="after")
    def _buffer_fits(self) -> LengthPart:
        if self.most is not None and self.buffer is not None and self.buffer > self.most:
            raise ValueError(f"buffer={self.buffer} is more than most={self.most}")
        return self


class MissingEndPart(RewardPart):
    """-1 for a response that does not end."""

    kind: Literal["missing_end"] = "missing_end"


AnyPart = (
    ModelPart | MathPart | ExactPart | RegexPart | FormatPart | ChoicePart | JsonSchemaPart
    | ConstraintsPart | CodePart | PythonPart | HttpPart | LengthPart | MissingEndPart
)  # fmt: skip
PARTS_BY_KIND: dict[str, type[RewardPart]] = {
    part.model_fields["kind"].default: part for part in get_args(AnyPart)
}

# Kinds whose number says whether a response is right: 1 is, whatever is less is not.
CHECKERS = frozenset(
    ("math", "exact", "regex", "format", "choice", "json_schema", "constraints", "code")
)


def _known(value: Any) -> Any:
    """One part as keys, of which all are known; a kind alone has its defaults.

    Raises:
        ValueError: what no part has, with the nearest that one has.
    """
    if isinstance(value, str):
        value = {"kind": value.strip()}
    if not isinstance(value, dict):
        return value
    kind = value.get("kind")
    if kind not in PARTS_BY_KIND:
        what = "kind is missing"
        if kind is not None:
            what = f"there is no kind {kind!r}{nearest(str(kind), PARTS_BY_KIND)}"
        raise ValueError(f"{what} (there are: {', '.join(PARTS_BY_KIND)})")
    keys = PARTS_BY_KIND[kind].model_fields
    wrong = [f"{key!r}{nearest(str(key), keys)}" for key in value if key not in keys]
    if wrong:
        raise ValueError(f"unknown key of kind {kind}: {', '.join(wrong)}")
    lacking = next((key for key in _NEEDED if key in keys and value.get(key) is None), None)
    if lacking is not None:
        raise ValueError(f"kind {kind} needs {lacking}: write {_NEEDED[lacking]}")
    return value


def _listed(value: Any) -> Any:
    """A list as the command line gives it: `math,length`, `[{kind: math, weight: 2}, length]`, or
    one part alone.

    Raises:
        ValueError: a list with mappings that is no YAML.
    """
    if isinstance(value, str) and "{" in value:
        try:
            value = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ValueError("write a list such as [{kind: math, weight: 2}, length]") from error
    if isinstance(value, str):
        return [part for part in value.removeprefix("[").removesuffix("]").split(",") if part]
    return [value] if isinstance(value, dict) else value


def names_none(text: str) -> bool:
    """Whether a list of the command line was written out and has no part in it.

    In a recipe file an empty list stays what it says, as runs write it down where there is none.
    """
    return bool(text) and not text.strip("[], ")


def _named_apart(parts: list[RewardPart]) -> list[RewardPart]:
    names = [part.name or part.kind for part in parts]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"two parts are called {twice!r}: give one a name of its own (name: ...)")
    return parts


Part = Annotated[AnyPart, Field(discriminator="kind"), BeforeValidator(_known)]
RewardParts = Annotated[list[Part], AfterValidator(_named_apart), BeforeValidator(_listed)]
