"""JSON that keeps to a schema: 1, else 0."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from fourstage.errors import InputError
from fourstage.extras import require
from fourstage.rewards.contracts import EachAlone, Item, Outcome
from fourstage.rewards.extraction import without_thought

_FENCED = re.compile(r"```[ \t]*(?:json[ \t]*)?\n(.*?)```", re.DOTALL | re.IGNORECASE)


class JsonSchema(EachAlone):
    """1 where a response is JSON that keeps to a JSON Schema, by the library jsonschema.

    The JSON is the last fenced block, or all of the response behind its reasoning. To be run apart:
    a schema may hold patterns. A schema is never fetched from elsewhere.

    Args:
        schema: for all rows; without one `column` holds each row's own, and without that it is the
            ground truth.
    """

    def __init__(self, schema: dict[str, Any] | None = None, column: str | None = None):
        self.schema, self.column = schema, column

    def start(self, say: Callable[[str], None]) -> None:
        self._library()
        if self.schema is not None and (fault := self._broken(self.schema)):
            raise InputError(fault)

    def unfit(self, item: Item) -> str:
        schema = self._of(item)
        if schema is None:
            return f"the row has no JSON Schema in {self.column or 'its ground truth'}"
        return self._broken(schema)

    def of(self, item: Item) -> Outcome:
        found, why = parsed_json(item.response)
        if why:
            return Outcome(0.0, note=why)
        schema = self._of(item)
        try:
            error = next(self._validator(schema).iter_errors(found), None)
        except require("referencing.exceptions", "schema").Unresolvable as lost:
            return Outcome(fault=f"the JSON Schema points to what is not in it: {lost}")
        note = f"{error.json_path}: {error.message}"[:120] if error is not None else ""
        return Outcome(float(error is None), note=note)

    def _of(self, item: Item) -> dict[str, Any] | None:
        value = self.schema if self.schema is not None else item.value(self.column)
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                return None
        return value if isinstance(value, dict) else None

    def _library(self) -> Any:
        return require("jsonschema", "schema", "for rl.rewards of kind: json_schema")

    def _validator(self, schema: Any) -> Any:
        # An empty registry: a `$ref` to the web finds nothing.
        registry = require("referencing", "schema").Registry()
        return self._library().validators.validator_for(schema)(schema, registry=registry)

    def _broken(self, schema: Any) -> str:
        library = self._library()
        try:
            library.validators.validator_for(schema).check_schema(schema)
        except library.exceptions.SchemaError as error:
            return f"the JSON Schema is broken at {error.json_path}: {error.message}"
        return ""


def parsed_json(response: str) -> tuple[Any, str]:
    """The JSON of a response, and why there is none."""
    text = without_thought(response)
    if fenced := _FENCED.findall(text):
        text = fenced[-1]
    try:
        return json.loads(text.strip(), parse_constant=_refused), ""
    except RecursionError:
        return None, "nested too deep"
    except ValueError as error:
        return None, f"no JSON: {error}"


def _refused(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")
