"""An adapter of ours as a PEFT folder, which opens on the model that training began with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fourstage import files
from fourstage.adapters.adapting import adapted_layers, linear_layers
from fourstage.interchange.names import to_theirs
from fourstage.interchange.peft.layout import CONFIG, PARTS, PREFIX, WEIGHTS
from fourstage.interchange.weights import names_of, write_weights
from fourstage.model.transformer import Transformer
from fourstage.recipe.adapter import Adapter

if TYPE_CHECKING:
    from fourstage.tokenizer import Tokenizer


def save_adapter(
    folder: Path,
    model: Transformer,
    settings: Adapter,
    tokenizer: Tokenizer,
    *,
    base: str,
    card: str,
) -> None:
    """Writes a folder that `peft.PeftModel.from_pretrained(base, folder)` opens; whole or absent.

    Args:
        base: the model folder that the adapter belongs to, as seen from `folder`.
        card: the text of README.md, in Markdown.

    Raises:
        MachineError: the disk refuses it.
    """
    names = names_of(model.config)
    theirs = to_theirs(_trained(model), model.config, names)
    tensors = {PREFIX + _in_the_file(name): tensor for name, tensor in theirs.items()}
    with files.atomic_folder(folder) as aside:
        write_weights(aside / WEIGHTS, tensors)
        files.write_json(aside / CONFIG, _config(model, settings, theirs, base))
        tokenizer.save(aside)
        files.write_text(aside / "README.md", card.strip() + "\n")


def lacks_the_layers(model: Transformer) -> str:
    """Why PEFT cannot hold the model's adapters beside its Hugging Face layers; "" where it can."""
    names = names_of(model.config)
    fused = {part: theirs for theirs, parts in names.fused.items() for part in parts}
    for name in adapted_layers(model):
        part = _inside_the_block(name)
        if part in fused:
            return f"the model's architecture holds {part} in {fused[part]} with others"
        if names.modules.get(part, part) in names.transposed:
            return f"the model's architecture holds {part} transposed"
    return ""


def _trained(model: Transformer) -> dict[str, Tensor]:
    """The adapters, and a scalar head, float32 on the CPU under our names."""
    found = {}
    for name, parameter in model.named_parameters():
        if name.endswith(tuple(PARTS)) or name.startswith("score."):
            found[name] = parameter.detach().to("cpu", torch.float32).contiguous()
    return found


def _in_the_file(name: str) -> str:
    module, leaf = name.rsplit(".", 1)
    return f"{module}.{PARTS.get(leaf, leaf)}"


def _inside_the_block(name: str) -> str:
    """`self_attn.q_proj` of `model.layers.3.self_attn.q_proj`."""
    return name.split(".", 3)[3]


def _config(
    model: Transformer, settings: Adapter, tensors: Mapping[str, Tensor], base: str
) -> dict[str, Any]:
    """What `peft.LoraConfig` reads."""
    scores = model.head == "scalar"
    alpha = settings.alpha or settings.usual_alpha
    return {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if scores else "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": settings.rank,
        "lora_alpha": int(alpha) if float(alpha).is_integer() else alpha,
        "lora_dropout": settings.dropout,
        "target_modules": _targets(model, tensors),
        "modules_to_save": ["score"] if scores else None,
        "use_rslora": settings.kind == "rslora",
        "use_dora": settings.kind == "dora",
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }


def _targets(model: Transformer, tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of layers where all layers so called are adapted, else those of each one."""
    whole = [name.removesuffix(".lora_A") for name in tensors if name.endswith(".lora_A")]
    last = {name.rsplit(".", 1)[1] for name in whole}
    left = {name.rsplit(".", 1)[1] for name, _ in linear_layers(model)}
    return sorted(whole if last & left else last)
