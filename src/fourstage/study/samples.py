"""Responses of the initial policy, drawn once, kept as they come, and what scorers say of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fourstage.evaluation.responses import Response
from fourstage.files import append_line, read_json, sha256_json, write_json, write_text
from fourstage.generation.engine import Engine
from fourstage.generation.sampling import Sampling
from fourstage.model.transformer import Transformer
from fourstage.pipeline.decisions import set_aside
from fourstage.pipeline.lineage import model_hash
from fourstage.randomness import seed_for
from fourstage.study.subject import Say, Subject
from fourstage.tasks import Task

FOLDER, _INPUTS, _ROWS = "samples", "inputs.json", "samples.jsonl"
# Responses to a prompt that are drawn and kept together, and blocks of them in one call.
_BLOCK, _BLOCKS = 64, 16

Drawn = list[list[Response]]


def sampling_of(subject: Subject) -> Sampling:
    """As rollouts are drawn: at their temperature, from the whole distribution."""
    section = subject.recipe.rl
    return Sampling(
        temperature=section.temperature,
        max_new_tokens=section.max_new_tokens or subject.context.recipe.model.context or 64,
        stop_ids=subject.tokenizer.stop_ids,
    )


def respond(
    subject: Subject, model: Transformer, jobs: Sequence[tuple[Task, int]], purpose: str
) -> list[Response]:
    """The response of each number to each task; it depends on seed, purpose, prompt and number."""
    tokenizer, seed = subject.tokenizer, subject.recipe.seed
    prompts = [tokenizer.chat_prompt(task.prompt) for task, _ in jobs]
    seeds = [seed_for(seed, purpose, _id(task), number) for task, number in jobs]
    done = Engine(model).generate(prompts, sampling_of(subject), seeds)
    return [
        Response(
            tuple(prompt), tuple(each.tokens), tokenizer.decode(each.tokens), each.finish == "stop"
        )
        for prompt, each in zip(prompts, done, strict=True)
    ]


def draw(subject: Subject, folder: Path, samples: int, say: Say) -> Drawn:
    """[prompts, samples] responses of the initial policy; those that are kept are not drawn again.

    A kept set of another model, temperature or length is set aside, and that is said.
    """
    at = folder / FOLDER
    sampling = sampling_of(subject)
    inputs = {
        "model": model_hash(subject.sft),
        "seed": subject.recipe.seed,
        "temperature": sampling.temperature,
        "max_new_tokens": sampling.max_new_tokens,
    }
    if (at / _INPUTS).exists() and read_json(at / _INPUTS) != inputs:
        say(f"study: other samples stood in {at}: they are now {set_aside(folder, FOLDER)}")
    write_json(at / _INPUTS, inputs)
    kept = _read(at / _ROWS)
    firsts = range(0, samples, _BLOCK)
    lacking = [
        (task, first)
        for task in subject.tasks
        for first in firsts
        if (_id(task), first) not in kept
    ]
    if lacking:
        count = len(lacking) * _BLOCK
        say(f"study: drawing {count:,} responses of {subject.sft} ({len(subject.tasks)} prompts)")
        model = subject.policy(subject.sft)
        for start in range(0, len(lacking), _BLOCKS):
            _draw_blocks(subject, model, lacking[start : start + _BLOCKS], at / _ROWS, kept)
    return [
        [_response(subject, task, *each) for first in firsts for each in kept[_id(task), first]][
            :samples
        ]
        for task in subject.tasks
    ]


def _draw_blocks(
    subject: Subject,
    model: Transformer,
    blocks: Sequence[tuple[Task, int]],
    path: Path,
    kept: dict[tuple[str, int], Any],
) -> None:
    jobs = [(task, first + number) for task, first in blocks for number in range(_BLOCK)]
    responses = respond(subject, model, jobs, "best of n")
    for place, (task, first) in enumerate(blocks):
        own = responses[place * _BLOCK : (place + 1) * _BLOCK]
        told = [[list(each.tokens), each.finished] for each in own]
        append_line(path, {"prompt": _id(task), "first": first, "responses": told})
        kept[_id(task), first] = told


def _read(path: Path) -> dict[tuple[str, int], Any]:
    """(prompt, number of the first) -> its block; a line that a kill has cut is removed."""
    if not path.exists():
        return {}
    kept, lines = {}, []
    for line in path.read_text(encoding="utf-8").split("\n"):
        try:
            row = json.loads(line)
            kept[row["prompt"], row["first"]] = row["responses"]
        except (ValueError, KeyError, TypeError):
            continue
        lines.append(line)
    whole = "".join(f"{line}\n" for line in lines)
    if whole != path.read_text(encoding="utf-8"):
        write_text(path, whole)
    return kept


def _id(task: Task) -> str:
    return sha256_json(task.prompt)[:16]


def _response(subject: Subject, task: Task, tokens: list[int], finished: bool) -> Response:
    prompt = tuple(subject.tokenizer.chat_prompt(task.prompt))
    return Response(prompt, tuple(tokens), subject.tokenizer.decode(tokens), finished)


def scored(
    path: Path,
    key: Any,
    tasks: Sequence[Task],
    drawn: Drawn,
    score: Callable[[list[Task], list[Response]], list[float]],
) -> np.ndarray:
    """[prompts, samples] what a scorer says, from `path` where it was asked before.

    Args:
        key: what the scorer is, as JSON; with the responses it decides the numbers.
    """
    asked = sha256_json([key, [[list(each.tokens) for each in row] for row in drawn]])
    if path.exists():
        held = read_json(path)
        if held.get("key") == asked:
            return np.array(held["scores"], np.float64)
    flat = [each for row in drawn for each in row]
    repeated = [task for task, row in zip(tasks, drawn, strict=True) for _ in row]
    found = np.array(score(repeated, flat), np.float64).reshape(len(drawn), -1)
    write_json(path, {"key": asked, "scores": found.tolist()})
    return found
