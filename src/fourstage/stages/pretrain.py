"""Stage 1: a base model from raw text, by predicting the next token.

Reads data/pretrain. Measured by bits per byte of held-out documents, against the entropy where the
text's own probability is known. Where a model is gone on from, also by those before, and of the
earlier text that is replayed: what was learned, and what was forgotten.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fourstage.data.drawing import mix_of, text_source
from fourstage.data.store import Store
from fourstage.evaluation.bits import bits_per_byte
from fourstage.evaluation.estimates import Numbers
from fourstage.model.transformer import Transformer
from fourstage.objectives.next_token import NextToken
from fourstage.stages.adapting import narrow
from fourstage.stages.context import StageContext
from fourstage.stages.datafiles import held_out_documents, replayed_documents, sample_tasks
from fourstage.stages.models import results, save, starting_model
from fourstage.stages.samples import continuations
from fourstage.training.guards import documents_do_not_leak, every_token, trains_only

# Held-out documents that the periodic validation reads; the last measurement reads them all.
_WATCHED = 200


def run(context: StageContext) -> dict[str, Any]:
    """Trains the base model; the content of results.json."""
    data, section = context.data / "pretrain", context.section
    routing = context.recipe.model.routing_losses
    model = starting_model(context)
    narrow(context, model)
    store = Store.open(data / "train")
    longest = context.recipe.model.context or model.config.context
    source = text_source(context.recipe, store, section.step_cells(), longest)
    mixture = _mixture(context, store)
    documents = held_out_documents(context, context.recipe.evaluation.documents)
    texts = [document["text"] for document in documents]
    earlier = replayed_documents(context, context.recipe.evaluation.documents)
    before = Numbers()
    if "from" in context.parents:
        known = {"validation": documents, "replay": earlier}
        before = context.measure("before", lambda: _bits(model, context, known, "_before"))
    # What overlaps is read again for what follows it, and trained where it was first read.
    only = [] if context.recipe.data.overlap else [trains_only(every_token)]
    trained = context.train(
        model,
        NextToken(section.z_loss, *routing),
        source,
        guards=[*only, documents_do_not_leak()],
        validate=lambda: _watch(model, context, documents[:_WATCHED]),
        sample=lambda step: continuations(context, model, texts, sample_tasks(context)),
        floor=_floor(context, documents),
    )
    numbers = context.measure(
        "documents", lambda: bits_per_byte(model, context.tokenizer, documents)
    )
    numbers.update(before)
    if earlier:
        kept = {"replay": earlier}
        numbers.update(context.measure("replay", lambda: _bits(model, context, kept)))
    save(context, model, numbers)
    return results(context, numbers, trained) | ({"mixture": mixture} if mixture else {})


def _bits(
    model: Transformer,
    context: StageContext,
    documents: Mapping[str, Sequence[dict[str, Any]]],
    suffix: str = "",
) -> Numbers:
    """`<name>_bits_per_byte<suffix>` of the documents of each name that has any."""
    numbers, measured = Numbers(), "validation_bits_per_byte"
    for name, rows in documents.items():
        if rows:
            found = bits_per_byte(model, context.tokenizer, rows)
            numbers.metrics[f"{name}_bits_per_byte{suffix}"] = found.metrics[measured]
            numbers.intervals[f"{name}_bits_per_byte{suffix}"] = found.intervals[measured]
    return numbers


def _mixture(context: StageContext, store: Store) -> list[dict[str, Any]]:
    """Shares and epochs of the sources where there are several, said before anything is spent."""
    if len(store.source_names) < 2:
        return []
    table = mix_of(context.recipe, store).table()
    for row in table:
        epochs = f", {row['epochs']:.2f} epochs" if row["epochs"] is not None else ""
        context.say(f"mixture: {row['source']} {row['share']:.1%}{epochs}")
    return table


def _watch(
    model: Transformer, context: StageContext, documents: Sequence[dict[str, Any]]
) -> dict[str, float]:
    """Bits per byte and nats a token of some held-out documents."""
    numbers = bits_per_byte(model, context.tokenizer, documents).metrics
    bits = numbers["validation_bits_per_byte"]
    return {
        "validation_loss": bits * numbers["bytes_per_token"] * math.log(2),
        "validation_bits_per_byte": bits,
    }


def _floor(context: StageContext, documents: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The lowest loss that exists, nats a token, where the documents' probabilities are known."""
    if not documents or not all("bits" in document for document in documents):
        return {}
    bits = sum(document["bits"] for document in documents)
    encoded = context.tokenizer.encode_batch([document["text"] for document in documents])
    return {"loss": bits * math.log(2) / sum(len(ids) + 1 for ids in encoded)}
