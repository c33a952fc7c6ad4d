"""Environments from the section of a recipe."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from fourstage.environments.calculator import Calculator
from fourstage.environments.contracts import check_options
from fourstage.environments.guess import Guess
from fourstage.environments.hosting import Environments, Host, own_host
from fourstage.rewards.importing import located, own_file

# Shipped ones: their class, and their options with defaults.
SHIPPED: dict[str, tuple[type, dict[str, Any]]] = {
    "guess": (Guess, {"highest": 8}),
    "calculator": (Calculator, {"digits": 2, "operations": "+-*", "rows": False}),
}


def check(kind: str, options: Mapping[str, Any]) -> None:
    """Tries the options of a shipped environment.

    Raises:
        InputError: unknown ones, or values out of range.
    """
    if kind in SHIPPED:
        made, known = SHIPPED[kind]
        made(**check_options(kind, known, options))


def build(section: Any) -> Environments:
    """The environments of `rl.environment`; nothing is started yet."""
    options = section.options
    if section.kind in SHIPPED:
        made, known = SHIPPED[section.kind]
        return Environments(lambda: Host(functools.partial(made, **{**known, **options})))
    return Environments(
        functools.partial(own_host, section.path, options),
        section.workers,
        section.seconds,
        functools.partial(_introduced, section.path),
    )


def own_files(section: Any) -> dict[str, str]:
    """File of a person's own environment -> sha256; nothing for another."""
    return own_file(section.path, "path") if section is not None and section.path else {}


def _introduced(path: str) -> str:
    name, what = located("path", path)
    return f"rl.environment plays with {name} of {what}, as the recipe says"
