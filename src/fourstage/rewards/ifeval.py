"""Instructions of IFEval as constraints: those that need no detector of languages."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from fourstage.errors import InputError

Constraint = dict[str, Any]


def _bounds(relation: str | None, number: int) -> dict[str, int]:
    """IFEval's two relations."""
    if relation == "less than":
        return {"at_most": number - 1}
    return {"at_least": number}


# id -> the constraint of its arguments (Zhou et al., 2023, table 1)
TRANSLATED: dict[str, Callable[[Mapping[str, Any]], Constraint]] = {
    "length_constraints:number_words": lambda k: {
        "words": _bounds(k.get("relation"), k["num_words"])
    },
    "length_constraints:number_sentences": lambda k: {
        "sentences": _bounds(k.get("relation"), k["num_sentences"])
    },
    "keywords:existence": lambda k: {"keywords": list(k["keywords"])},
    "keywords:forbidden_words": lambda k: {"forbidden": list(k["forbidden_words"])},
    "keywords:frequency": lambda k: {
        "times": {"word": k["keyword"], **_bounds(k.get("relation"), k["frequency"])}
    },
    "detectable_format:number_bullet_lists": lambda k: {"bullets": {"exactly": k["num_bullets"]}},
    "detectable_format:json_format": lambda k: {"json": True},
    "startend:end_checker": lambda k: {"ends_with": k["end_phrase"]},
    "startend:quotation": lambda k: {"quoted": True},
    "change_case:english_capital": lambda k: {"case": "upper"},
    "change_case:english_lowercase": lambda k: {"case": "lower"},
    "punctuation:no_comma": lambda k: {"without": [",", "，"]},
}


def from_ifeval(columns: Mapping[str, Any]) -> list[Constraint]:
    """The constraints of a row of IFEval.

    Raises:
        InputError: an instruction is not translated, or its arguments are missing.
    """
    names, arguments = columns["instruction_id_list"], columns.get("kwargs") or []
    if isinstance(arguments, str):
        arguments = json.loads(arguments)
    if not isinstance(names, list) or len(arguments) != len(names):
        raise InputError("instruction_id_list and kwargs are not of one length")
    found = []
    for name, values in zip(names, arguments, strict=True):
        if name not in TRANSLATED:
            known = ", ".join(TRANSLATED)
            raise InputError(f"IFEval's {name} is not known here (known: {known})")
        try:
            found.append(TRANSLATED[name](values or {}))
        except (KeyError, TypeError) as error:
            raise InputError(f"IFEval's {name} lacks its arguments ({error})") from error
    return found
