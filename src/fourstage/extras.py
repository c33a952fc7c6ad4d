"""Optional libraries: imported when first needed, and named with their extra where missing."""

from __future__ import annotations

import importlib
from types import ModuleType

from fourstage.errors import InputError


def require(module: str, extra: str, need: str = "") -> ModuleType:
    """The module, imported now.

    Args:
        module: its import name.
        extra: the extra of this package that brings it.
        need: what it is needed for, as in "to read .zst files".

    Raises:
        InputError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        name = module.partition(".")[0]
        raise InputError(
            f"{name} is needed{f' {need}' if need else ''} and not installed: "
            f"pip install 'fourstage[{extra}]'"
        ) from error
