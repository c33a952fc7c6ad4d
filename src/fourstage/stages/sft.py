"""Stage 2: a chat model from demonstrations, by predicting the tokens of the responses.

Starts from the base model; reads data/sft. Measured by how many held-out instructions are done,
before (through the template, and as plain text with three examples) and after.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fourstage.data.batch import Batch
from fourstage.data.sources import ExampleSource
from fourstage.data.store import Store
from fourstage.evaluation.estimates import Numbers
from fourstage.evaluation.scoring import trained_logprobs
from fourstage.evaluation.success import checkable, few_shot_success, task_success
from fourstage.model.transformer import Transformer
from fourstage.objectives.next_token import NextToken
from fourstage.stages.adapting import narrow
from fourstage.stages.context import StageContext
from fourstage.stages.datafiles import demonstrations, held_out_tasks, sample_tasks
from fourstage.stages.models import results, save, starting_model
from fourstage.stages.samples import answers
from fourstage.training.guards import assistant_turns, documents_do_not_leak, trains_only

# Demonstrations that the periodic validation reads, and from which few-shot examples are taken.
_WATCHED = 200
_EXAMPLES = 200


def run(context: StageContext) -> dict[str, Any]:
    """Trains the chat model; the content of results.json."""
    section, evaluation = context.section, context.recipe.evaluation
    model = starting_model(context)
    tasks = context.chat(model).answerable(held_out_tasks(context, "sft", evaluation.instructions))
    held_out = Store.open(context.data / "sft" / "validation")
    before = context.measure("before", lambda: _before(context, model, tasks, held_out))
    narrow(context, model)
    source = ExampleSource(
        Store.open(context.data / "sft" / "train"), section.batch_tokens, context.seed
    )
    trained = context.train(
        model,
        NextToken(0.0, *context.recipe.model.routing_losses),
        source,
        guards=[*_mask_guard(context), documents_do_not_leak()],
        validate=lambda: _watch(model, held_out),
        sample=lambda step: answers(context, model, sample_tasks(context)),
    )
    after = context.measure("after", lambda: _after(context, model, tasks, held_out))
    numbers = Numbers().update(before).update(after)
    save(context, model, numbers)
    return results(context, numbers, trained)


def _mask_guard(context: StageContext) -> list:
    """Trained tokens are the completion's; an adopted template has no single mark to look for."""
    tokenizer = context.tokenizer
    if tokenizer.chat.name != "fourstage":
        return []
    return [trains_only(assistant_turns(tokenizer.assistant, [tokenizer.end_of_turn]))]


def _before(context: StageContext, model: Transformer, tasks: list, held_out: Store) -> Numbers:
    """What the model could do before: the instructions as chat, and as text with examples."""
    chat = context.chat(model)
    numbers = task_success(chat, tasks, "base_task_success")
    examples = demonstrations(context, _EXAMPLES)
    if examples and checkable(tasks):
        numbers.update(few_shot_success(chat, tasks, examples))
    return numbers.update(response_bits(context, model, held_out, "base_response_bits_per_byte"))


def _after(context: StageContext, model: Transformer, tasks: list, held_out: Store) -> Numbers:
    numbers = task_success(context.chat(model), tasks)
    return numbers.update(response_bits(context, model, held_out, "response_bits_per_byte"))


def _fitting_batch(model: Transformer, store: Store, most: int) -> Batch:
    rows = [store[index] for index in range(min(most, len(store)))]
    return Batch.language([row for row in rows if 2 <= len(row.tokens) <= model.config.context + 1])


def _watch(model: Transformer, store: Store) -> dict[str, float]:
    """Nats a response token on some held-out demonstrations."""
    batch = _fitting_batch(model, store, _WATCHED)
    total = float(trained_logprobs(model, batch).double().sum())
    return {"validation_loss": -total / max(1.0, float(batch.streams["loss_weights"].sum()))}


def response_bits(
    context: StageContext, model: Transformer, store: Store, name: str, most: int = 500
) -> Numbers:
    """Bits per UTF-8 byte of held-out responses, given their prompts."""
    batch = _fitting_batch(model, store, most)
    logprobs, weights = trained_logprobs(model, batch), batch.streams["loss_weights"] != 0
    bits, sizes, start = [], [], 0
    for length in batch.lengths:
        cells = slice(start, start + length)
        start += length
        text = context.tokenizer.decode(batch.targets[cells][weights[cells]].tolist())
        bits.append(-float(logprobs[cells].double().sum()) / math.log(2))
        sizes.append(len(text.encode("utf-8")))
    return Numbers().add_ratios(name, np.array(bits), np.array(sizes))
