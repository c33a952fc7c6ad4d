"""Model folders that other programs open, and theirs opened here.

The names below are imported when first used: they need torch.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "save_model": "folder",
    "load_model": "folder",
    "load_config": "folder",
    "load_tokenizer": "folder",
    "is_reward_model": "folder",
    "read_config": "folder",
    "stop_ids": "folder",
    "with_vocabulary": "vocabulary",
    "with_tokenizer": "vocabulary",
    "exportable": "configs",
    "resolve_model": "resolve",
    "open_model": "resolve",
    "OpenModel": "resolve",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
