"""What a stage trains of its models, as its section says, and the adapter that it leaves."""

from __future__ import annotations

import os
from pathlib import Path

from fourstage.adapters import adapting
from fourstage.adapters.adapting import adapted_layers, merge
from fourstage.interchange import load_config, peft
from fourstage.model.transformer import Transformer
from fourstage.stages.context import StageContext

_FOLDER = "adapter"
# Of a parent's shape, what a run may change in it.
_CHANGED = ("vocab_size", "context", "rope_theta", "rope_scaling")


def narrow(context: StageContext, *models: Transformer) -> None:
    """As `adapters.adapting.narrow`, and says what has no adapter.

    Raises:
        InputError: a pattern of `freeze` or a target of the adapter fits nothing.
    """
    adapting.narrow(models, context.section, context.seed)
    if context.section.adapter is not None and any(model.config.experts for model in models):
        context.say(f"{context.stage}: experts have no adapters and stay as they are")


def widen(context: StageContext, model: Transformer) -> str:
    """Writes a model's adapter beside it and merges it in; what a card says of that.

    Where PEFT could not open the adapter that is said, and none is written.
    """
    layers, settings = adapted_layers(model), context.section.adapter
    if not layers:
        return ""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    words = (
        f"{settings.kind} adapter of rank {settings.rank} beside {len(layers)} frozen matrices "
        f"({trained:,} numbers)"
    )
    fault = _why_not_alone(context, model) or peft.lacks_the_layers(model)
    if fault:
        context.say(f"{context.stage}: no adapter folder for PEFT, since {fault}")
    else:
        folder = context.folder / _FOLDER
        base = _base(context, folder)
        card = f"# {context.recipe.name}: adapter of {context.stage}\n\nA {words} of `{base}`."
        if settings.base != "full":
            card += f" In training these were held in {settings.base}, so it fits them less here."
        peft.save_adapter(folder, model, settings, context.tokenizer, base=base, card=card)
    merge(model)
    held = f", which were held in {settings.base} and are so much coarser here too"
    return f"Trained as a {words}{held if settings.base != 'full' else ''}; merged in here."


def _why_not_alone(context: StageContext, model: Transformer) -> str:
    """Why the adapter has no base to be opened on; "" where its parent's folder is that."""
    from fourstage.tokenizer import Tokenizer

    parent = context.parents["from"]
    if peft.is_adapter(parent):
        return "its base is itself an adapter's"
    config = load_config(parent)
    if any(getattr(config, name) != getattr(model.config, name) for name in _CHANGED):
        return "its base was changed to this run's vocabulary or context"
    if (parent / "tokenizer.json").is_file():
        known = (Tokenizer.load(parent), context.tokenizer)
        if known[0].backend.get_vocab(True) != known[1].backend.get_vocab(True):
            return "its base was changed to this run's vocabulary"
    return ""


def _base(context: StageContext, folder: Path) -> str:
    """The parent as seen from the adapter's folder, or as the recipe names it."""
    outside = context.section.source_model
    return outside or Path(os.path.relpath(context.parents["from"], folder)).as_posix()
