"""A model folder: weights, config, tokenizer and card, as Hugging Face lays it out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fourstage import files
from fourstage.errors import InputError
from fourstage.interchange import peft
from fourstage.interchange.configs import as_scorer, from_huggingface, to_huggingface
from fourstage.interchange.names import canonical
from fourstage.interchange.weights import (
    ONE_FILE,
    export_weights,
    fitted_to_weights,
    import_weights,
    names_of,
    read_weights,
    write_weights,
)
from fourstage.model.config import ModelConfig
from fourstage.model.transformer import Head, Transformer

if TYPE_CHECKING:
    from fourstage.tokenizer import Tokenizer


def save_model(
    folder: Path,
    model: Transformer,
    tokenizer: Tokenizer,
    *,
    card: str,
    extra_config: Mapping[str, Any] | None = None,
    beside: Callable[[Path], None] | None = None,
) -> None:
    """Writes a folder that `transformers` and `load_model` open; it is whole or absent.

    Args:
        card: the text of README.md, in Markdown, without front matter.
        extra_config: further fields of config.json.
        beside: writes further files into the folder before it is there.

    Raises:
        MachineError: the disk refuses it.
    """
    reward = model.head == "scalar"
    config = to_huggingface(model.config, model.head)
    config |= {
        "bos_token_id": None,
        "eos_token_id": list(tokenizer.stop_ids),
        "pad_token_id": tokenizer.pad,
    }
    if reward:
        config |= {"reward_mean": float(model.reward_mean), "reward_std": float(model.reward_std)}
    with files.atomic_folder(Path(folder)) as aside:
        write_weights(aside / ONE_FILE, export_weights(model))
        files.write_json(aside / "config.json", config | dict(extra_config or {}))
        if not reward:
            generation = {key: config[key] for key in ("eos_token_id", "pad_token_id")}
            files.write_json(aside / "generation_config.json", {**generation, "do_sample": False})
        tokenizer.save(aside)
        files.write_text(aside / "README.md", _front_matter(reward) + card.strip() + "\n")
        if beside is not None:
            beside(aside)


def _front_matter(reward: bool) -> str:
    task = "text-classification" if reward else "text-generation"
    tag = "\n- reward-model" if reward else ""
    return (
        f"---\nlibrary_name: transformers\npipeline_tag: {task}\ntags:\n- fourstage{tag}\n---\n\n"
    )


def read_config(folder: Path) -> dict[str, Any]:
    """The fields of a folder's config.json; of a PEFT folder, those of the model it makes.

    Raises:
        InputError: there is no such folder, no config.json in it, or no JSON object in that.
    """
    folder = Path(folder)
    path = folder / "config.json"
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; write the path of a model folder")
    if peft.is_adapter(folder):
        raw = read_config(peft.base_folder(folder))
        return as_scorer(raw) if peft.scores(folder) else raw
    if not path.is_file():
        inner = [folder / each for each in ("model", "sft/model", "reward/model", "rl/model")]
        there = [str(each) for each in inner if (each / "config.json").is_file()]
        meant = f"; models in it: {', '.join(there)}" if there else ""
        raise InputError(f"{folder} is not a model folder: config.json is missing{meant}")
    try:
        raw = files.read_json(path)
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}): save or copy it again") from error
    if not isinstance(raw, dict):
        raise InputError(f"{path} holds no JSON object: save or copy it again")
    return raw


def load_config(folder: Path) -> ModelConfig:
    """The shape of a folder's model, from config.json alone.

    Raises:
        InputError: it is no model folder, or of an architecture that is not supported.
    """
    return from_huggingface(read_config(folder), f"{Path(folder) / 'config.json'}")[0]


def load_model(folder: Path, device: torch.device | str = "cpu") -> Transformer:
    """A folder of any architecture in `families` as a model, with its head, in float32.

    A PEFT folder gives its base with the adapter merged in.

    Raises:
        InputError: it is no model folder, is cut short, or is of an architecture or has a feature
            that is not supported.
    """
    folder = Path(folder)
    raw = read_config(folder)
    config, head = from_huggingface(raw, f"{folder / 'config.json'}")
    tensors = _weights_of(folder, config, head)
    declares_ties = "tie_word_embeddings" in raw or head == "scalar"
    config = fitted_to_weights(config, tensors, declares_ties, folder)
    with torch.device("meta"):
        model = Transformer(config, head)
    import_weights(model, tensors, folder)
    if head == "scalar":
        model.reward_mean = float(raw.get("reward_mean", 0.0))
        model.reward_std = float(raw.get("reward_std", 1.0))
    return model.to(device)


def _weights_of(folder: Path, config: ModelConfig, head: Head) -> dict[str, Tensor]:
    if not peft.is_adapter(folder):
        return read_weights(folder)
    base, tied = read_weights(peft.base_folder(folder)), config.tie_embeddings or head == "scalar"
    return peft.merged(folder, canonical(base, names_of(config), tied))


def is_reward_model(folder: Path) -> bool:
    """Whether a folder holds a model that scores, and so cannot write.

    Raises:
        InputError: it is no model folder.
    """
    architectures = read_config(folder).get("architectures") or [""]
    return str(architectures[0]).endswith("ForSequenceClassification")


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer saved with a model.

    Raises:
        InputError: the folder holds none.
    """
    from fourstage.tokenizer import Tokenizer

    if not (Path(folder) / "tokenizer.json").is_file():
        raise InputError(f"{folder} holds no tokenizer: tokenizer.json is missing; copy it there")
    return Tokenizer.load(Path(folder))


def stop_ids(folder: Path) -> tuple[int, ...]:
    """Tokens that end a completion: those of generation_config.json, else of config.json."""
    folder = Path(folder)
    if peft.is_adapter(folder):
        folder = peft.base_folder(folder)
    path = folder / "generation_config.json"
    sources = [files.read_json(path)] if path.is_file() else []
    for source in [*sources, read_config(folder)]:
        ends = source.get("eos_token_id")
        if ends is not None:
            return tuple(ends) if isinstance(ends, list) else (int(ends),)
    return ()
