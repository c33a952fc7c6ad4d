"""Which model a path means: a model folder, a stage of a run, or a run.

Nothing here imports torch before the path is found good, so a wrong path is answered at once.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fourstage.errors import InputError, nearest

if TYPE_CHECKING:
    from fourstage.generation.sampling import Sampling
    from fourstage.model.transformer import Transformer
    from fourstage.tokenizer import Tokenizer

STAGES = ("pretrain", "sft", "reward", "rl")


@dataclass(frozen=True)
class OpenModel:
    """A model ready to write: where it lies, its weights, its tokenizer and what ends its text."""

    folder: Path
    model: Transformer
    tokenizer: Tokenizer
    stop_ids: tuple[int, ...]

    def stopping(self, sampling: Sampling) -> Sampling:
        """`sampling` with this model's stop tokens."""
        return dataclasses.replace(sampling, stop_ids=self.stop_ids)


def resolve_model(path: Path, *, writes: bool = True) -> Path:
    """The model folder that `path` means: itself, a stage's `model`, or a run's rl model, else sft.

    Args:
        writes: refuse a reward model, which scores and cannot write.

    Raises:
        InputError: there is no model, or it is a reward model that was asked to write.
    """
    path = Path(path)
    if not path.exists():
        siblings = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
        raise InputError(
            f"{path}: no such folder{nearest(path.name, siblings)} (write a model folder or a run "
            "folder)"
        )
    if not path.is_dir():
        raise InputError(f"{path} is a file: write the model folder or run folder that holds it")
    candidates = [path, path / "model", path / "rl" / "model", path / "sft" / "model"]
    found = next((each for each in candidates if (each / "config.json").is_file()), None)
    if found is None:
        raise InputError(_nothing_found(path))
    if writes and _scores(found):
        raise InputError(
            f"{found} is a reward model: it scores text and cannot write; use the run's sft or rl "
            "model"
        )
    return found


def _nothing_found(path: Path) -> str:
    for stage in STAGES:
        if (path / stage / "model" / "config.json").is_file():
            return (
                f"{path} holds no finished sft or rl model yet: run it on, or write "
                f"{path / stage / 'model'}"
            )
    if not any(path.iterdir()):
        return f"{path} is empty: write a model folder (with config.json) or a run folder"
    if (path / "recipe.yaml").is_file() or any((path / stage).is_dir() for stage in STAGES):
        return f"{path} is a run without a finished model yet: run it on, then try again"
    return f"{path} holds no model: config.json is missing; write a model folder or a run folder"


def _scores(folder: Path) -> bool:
    try:
        raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind = str((raw.get("architectures") or [""])[0])
    except (ValueError, AttributeError) as error:
        raise InputError(f"{folder / 'config.json'} is not a model's config: {error}") from error
    return kind.endswith("ForSequenceClassification")


def open_model(path: Path, device: str = "auto") -> OpenModel:
    """Resolves `path` and loads what is needed to write with it.

    Raises:
        InputError: there is no model that can write, or it is not supported.
        MachineError: the device is not there.
    """
    folder = resolve_model(path)
    from fourstage.devices import resolve_device
    from fourstage.interchange.folder import load_model, load_tokenizer, stop_ids

    tokenizer = load_tokenizer(folder)
    model = load_model(folder, resolve_device(device)).eval()
    return OpenModel(folder, model, tokenizer, stop_ids(folder) or tuple(tokenizer.stop_ids))
