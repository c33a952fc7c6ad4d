"""Gold and proxy of policies over their distance: as RL wrote them down, and at its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fourstage.evaluation.estimates import mean_of
from fourstage.evaluation.responses import Response
from fourstage.evaluation.scoring import trained_logprobs
from fourstage.files import read_json, sha256_json, write_json
from fourstage.model.transformer import Transformer
from fourstage.pipeline.lineage import model_hash
from fourstage.reporting.numbers import is_number
from fourstage.stages.episodes import as_batch
from fourstage.study.samples import respond
from fourstage.study.subject import Say, Subject
from fourstage.training.metrics import read_rows

# Responses to each prompt that a finished policy is measured by.
_EACH = 4


@dataclass(frozen=True)
class Point:
    """An iteration of RL: nats a response from the SFT model, and means over its rollouts."""

    kl: float
    proxy: float | None
    gold: float | None

    def to_json(self) -> list[float | None]:
        return [self.kl, self.proxy, self.gold]


def iterations(rows: Sequence[Mapping[str, Any]]) -> list[Point]:
    """A point an iteration, from the rows of metrics.jsonl; several rows may tell of one."""
    found: dict[Any, Point] = {}
    for row in rows:
        if is_number(row.get("kl")):
            number = {name: row[name] for name in ("reward", "gold") if is_number(row.get(name))}
            key = row.get("iteration", row.get("step"))
            found[key] = Point(float(row["kl"]), number.get("reward"), number.get("gold"))
    return list(found.values())


def read_iterations(stage: Path) -> list[Point]:
    return iterations(read_rows(stage / "metrics.jsonl"))


def measured_end(
    subject: Subject, stage: Path, path: Path, reward: Path, say: Say
) -> dict[str, list[float]]:
    """`kl`, `proxy` and `gold` of a finished policy on the held-out prompts, each
    [mean, low, high] over prompts; from `path` where it was measured before."""
    key = sha256_json(
        [
            model_hash(stage / "model"),
            model_hash(reward),
            subject.gold_key,
            [task.prompt for task in subject.tasks],
        ]
    )
    if path.exists():
        held = read_json(path)
        if held.get("key") == key:
            return held["end"]
    policy = subject.policy(stage / "model")
    jobs = [(task, number) for task in subject.tasks for number in range(_EACH)]
    responses = respond(subject, policy, jobs, "end of rl")
    tasks = [task for task, _ in jobs]
    with subject.proxy(reward, say) as score:
        proxy = score(tasks, responses)
    found = {
        "kl": _distances(subject, policy, responses),
        "proxy": proxy,
        "gold": subject.gold()(tasks, responses),
    }
    end = {name: over_prompts(np.reshape(values, (-1, _EACH))) for name, values in found.items()}
    write_json(path, {"key": key, "end": end})
    return end


def over_prompts(values: np.ndarray) -> list[float]:
    """[prompts, responses] -> mean, and its 95% bootstrap interval over prompts."""
    found = mean_of(values.mean(axis=1))
    return [found.value, found.low, found.high]


def _distances(subject: Subject, policy: Transformer, responses: Sequence[Response]) -> list[float]:
    """[responses] `log policy - log sft`, nats, at the temperature that they were drawn at."""
    batch, temperature = as_batch(responses), subject.recipe.rl.temperature
    initial = subject.policy(subject.sft)
    gap = trained_logprobs(policy, batch, temperature) - trained_logprobs(
        initial, batch, temperature
    )
    sums = torch.zeros(len(responses)).index_add(0, batch.document_ids, gap)
    return sums.tolist()
