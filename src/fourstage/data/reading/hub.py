"""Data sets of the Hugging Face hub, as the Arrow files in which `datasets` caches them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from fourstage.errors import InputError
from fourstage.extras import require

_ID = re.compile(r"hf:(?P<name>[\w.-]+/[\w.-]+)(:(?P<config>[^@]+))?(@(?P<split>.+))?")


def is_hub_id(path: str | Path) -> bool:
    return str(path).startswith("hf:")


def dataset_files(identifier: str, field: str) -> list[tuple[Path, str]]:
    """(path, name) of the Arrow files of `hf:OWNER/NAME[:CONFIG][@SPLIT]`, downloaded when needed.

    Without a split, `train` is taken, or the only one there is.

    Raises:
        InputError: not of this form, `datasets` is not installed, or it cannot get the data set.
    """
    match = _ID.fullmatch(identifier)
    if match is None:
        raise InputError(
            f"{field}={identifier}: write a hub id as hf:OWNER/NAME, hf:OWNER/NAME:CONFIG or "
            "hf:OWNER/NAME:CONFIG@SPLIT"
        )
    datasets = require("datasets", "hf", f"to get {identifier}")
    try:
        loaded = datasets.load_dataset(match["name"], match["config"], split=match["split"])
    # Whatever the hub, the network or a loading rule raises ends in the same way for a person.
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise InputError(
            f"{field}={identifier}: cannot get it from the hub: {reason}; check the id and the "
            "network, or download it and give the folder"
        ) from error
    if isinstance(loaded, dict):
        loaded = _one_split(loaded, identifier, field)
    paths = [Path(each["filename"]) for each in loaded.cache_files]
    place = match["name"] + (f"/{match['config']}" if match["config"] else "")
    return [(path, f"{place}/{path.name}") for path in sorted(paths)]


def _one_split(splits: dict[str, Any], identifier: str, field: str) -> Any:
    if "train" in splits or len(splits) == 1:
        return splits["train" if "train" in splits else next(iter(splits))]
    options = " or ".join(f"{identifier}@{name}" for name in splits)
    raise InputError(f"{field}={identifier}: it has several splits; write {options}")
