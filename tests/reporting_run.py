"""A made-up run folder, with every file that the report reads, for its tests and pictures."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

KINDS = ("questions", "story", "dialogue", "sums", "sorting", "counting", "song", "description")
TASKS = ("describe", "talk", "count", "sums", "sort", "story", "questions")
ENTROPY = 1.32


def write_run(folder: Path, stages: int = 4) -> Path:
    """Writes a run whose first `stages` stages are finished; the one after them is half done."""
    folder.mkdir(parents=True)
    draw = random.Random(7)
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    _json(folder / "run.json", _lineage(stages))
    _json(folder / "plan.json", _plan())
    _json(folder / "data" / "report.json", _data())
    makers = (_pretrain, _sft, _reward, _rl)
    for index, make in enumerate(makers[: stages + 1]):
        rows, samples, results = make(draw)
        name = make.__name__[1:]
        if index == stages:
            rows, samples = rows[: len(rows) // 2], samples[: len(samples) // 2]
        _lines(folder / name / "metrics.jsonl", rows)
        _lines(folder / name / "samples.jsonl", samples)
        if index < stages:
            _json(folder / name / "results.json", results)
    return folder


RECIPE = """name: quickstart
seed: 0
device: auto
data: {pretrain: world, demonstrations: 31000, comparisons: 30000, rl_prompts: 8000}
world: {documents: 96000, validation_documents: 2000}
tokenizer: {vocab_size: 860}
model: {layers: 4, width: 128, heads: 4, kv_heads: 4, mlp_width: 384, context: 256}
pretrain: {steps: 2400, batch_tokens: 1536, learning_rate: 0.003}
sft: {steps: 700, learning_rate: 0.002}
reward: {steps: 480, learning_rate: 0.0004}
rl: {algorithm: ppo, steps: 200, kl_coefficient: 0.05}
"""


def _json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def _lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _results(
    metrics: dict[str, float], seconds: float, tokens: int, flops: float
) -> dict[str, Any]:
    points = {
        name: [value - 0.012, min(value + 0.012, 1.0) if value <= 1 else value + 0.012]
        for name, value in metrics.items()
        if "ceiling" not in name
    }
    return {
        "metrics": metrics,
        "intervals": points,
        "seconds": seconds,
        "tokens": tokens,
        "flops": flops,
    }


def _row(step: int, steps: int, peak: float, loss: float, batch: int, draw: random.Random) -> dict:
    rate = peak * min(1, (step + 1) / 40) * (1 - step / steps)
    speed = 16500 + draw.gauss(0, 600)
    return {
        "step": step,
        "loss": loss,
        "nll": loss,
        "learning_rate": rate,
        "tokens": (step + 1) * batch,
        "tokens_per_second": speed,
        "gradient_norm": 0.4 + abs(draw.gauss(0, 0.15)),
    }


def _pretrain(draw: random.Random) -> tuple[list, list, dict]:
    rows, per_token = [], 3.4 * math.log(2)
    for step in range(0, 2400, 10):
        bits = ENTROPY * 1.05 + 1.6 * math.exp(-step / 180) + 0.5 * math.exp(-step / 900)
        row = _row(step, 2400, 3e-3, (bits + draw.gauss(0, 0.03)) * per_token, 1536, draw)
        if step % 100 == 0 or step == 2390:
            row |= {"validation_bits_per_byte": bits, "validation_nll": bits * per_token}
        rows.append(row)
    metrics = {"validation_bits_per_byte": 1.389, "entropy_bits_per_byte": ENTROPY}
    metrics |= {"validation_seen_in_training": 0.021, "parameters": 1_049_344}
    for index, kind in enumerate(KINDS):
        floor = 0.9 + 0.12 * index
        metrics[f"entropy_bits_per_byte/{kind}"] = floor
        metrics[f"validation_bits_per_byte/{kind}"] = floor * (1.19 - 0.022 * index)
        metrics[f"determined_accuracy/{kind}"] = 0.88 + 0.016 * index
    texts = (
        "qk3 fe e.a tt oo pk",
        "the in Ann the drum and and river",
        "a bear. Ann is in the in the park. The drum is",
        "Jack the bear and a yellow drum. Jack wants the drum. Jack looks in the park.",
        "Jack the bear and a yellow drum. Jack wants the drum. He looks in the park and finds it "
        "there. Jack gives the drum to Ann. Ann is glad.",
    )
    samples = [
        {"step": step, "prompt": prompt, "response": text}
        for step, text in zip((0, 200, 600, 1200, 2400), texts, strict=True)
        for prompt in ("A story about ", *PROMPTS)
    ]
    return rows, samples, _results(metrics, 242.0, 3_686_400, 2.6e13)


PROMPTS = (
    "Ann is in the park. Bob is in the shop. Where is Ann?",
    "Tell a story about a bear and a red lamp.",
    "Add 17 and 25.",
)


def _answers(texts: tuple[str, ...], steps: tuple[int, ...], **extra: float) -> list[dict]:
    return [
        {"step": step, "prompt": prompt, "response": text, **extra}
        for step in steps
        for prompt, text in zip(PROMPTS, texts, strict=True)
    ]


def _sft(draw: random.Random) -> tuple[list, list, dict]:
    rows = []
    for step in range(0, 700, 5):
        loss = 0.42 + 1.9 * math.exp(-step / 90)
        row = _row(step, 700, 2e-3, loss + draw.gauss(0, 0.03), 2048, draw)
        if step % 50 == 0:
            row |= {"validation_nll": loss + 0.02}
        rows.append(row)
    metrics = {
        "base_task_success": 0.014,
        "base_few_shot_task_success": 0.118,
        "task_success": 0.926,
    }
    for index, kind in enumerate(TASKS):
        metrics[f"base_task_success/{kind}"] = 0.02
        metrics[f"base_few_shot_task_success/{kind}"] = 0.04 + 0.03 * index
        metrics[f"task_success/{kind}"] = 0.99 - 0.03 * index
    texts = (
        "Ann is in the park.",
        "Here is a story. A bear found a red lamp. The end.",
        "42. Bye.",
    )
    return rows, _answers(texts, (0, 350, 700)), _results(metrics, 81.0, 1_433_600, 1.0e13)


def _reward(draw: random.Random) -> tuple[list, list, dict]:
    rows = []
    for step in range(0, 480, 4):
        loss = 0.47 + 0.22 * math.exp(-step / 70)
        row = _row(step, 480, 4e-4, loss + draw.gauss(0, 0.02), 1900, draw)
        held = 0.74 - 0.22 * math.exp(-step / 60)
        row |= {"preference_loss": row["loss"], "accuracy": held + draw.gauss(0, 0.03)}
        row |= {"score_chosen": 0.9 * (1 - math.exp(-step / 90)) + draw.gauss(0, 0.05)}
        row |= {"score_rejected": -0.8 * (1 - math.exp(-step / 90)) + draw.gauss(0, 0.05)}
        if step % 40 == 0:
            row["validation_pair_accuracy"] = held
        rows.append(row)
    metrics = {
        "pair_accuracy": 0.742,
        "pair_accuracy_ceiling": 0.803,
        "right_wrong_accuracy": 0.713,
    }
    metrics |= {"pair_accuracy_shuffled_prompts": 0.655, "score_length_correlation": -0.21}
    results = _results(metrics, 126.0, 2_736_000, 2.0e13)
    results["calibration"] = [[p / 20, p / 20 + 0.01 * math.sin(p)] for p in range(1, 20, 2)]
    return rows, [], results


def _rl(draw: random.Random) -> tuple[list, list, dict]:
    rows = []
    for step in range(200):
        kl = 11 * (step / 200) ** 1.3
        row = _row(step, 200, 4e-4, 0.02 + draw.gauss(0, 0.01), 9000, draw)
        row |= {
            "reward": 0.05 + 1.3 * math.sqrt(kl) + draw.gauss(0, 0.12),
            "gold": 0.70 + 0.09 * math.sqrt(kl) - 0.0016 * kl**2 + draw.gauss(0, 0.012),
            "kl": max(0.0, kl + draw.gauss(0, 0.15)),
            "kl_coefficient": 0.05,
            "length": 22 - 4 * step / 200 + draw.gauss(0, 0.4),
            "entropy": 0.6 - 0.3 * step / 200 + draw.gauss(0, 0.02),
            "clip_fraction": 0.04 + abs(draw.gauss(0, 0.01)),
            "value_loss": 0.3 * math.exp(-step / 40) + 0.05,
            "explained_variance": 0.8 * (1 - math.exp(-step / 30)),
        }
        rows.append(row)
    metrics = {
        "gold_reward_sft": 0.702,
        "gold_reward": 0.846,
        "gold_reward_ceiling": 0.981,
        "task_success": 0.931,
        "kl": 8.42,
        "distinct_2_rl": 0.33,
        "distinct_2_sft": 0.51,
        "distinct_2_base": 0.62,
        "distinct_1_rl": 0.21,
        "distinct_1_sft": 0.34,
        "distinct_1_base": 0.45,
        "self_overlap_rl": 0.41,
        "self_overlap_sft": 0.22,
        "self_overlap_base": 0.05,
    }
    texts = (
        "Ann is in the park. Good luck!",
        "A bear saw a red lamp and took it home.",
        "42. Well asked!",
    )
    samples = _answers(texts, (0, 100, 200), reward=1.62, gold=0.95)
    return rows, samples, _results(metrics, 139.0, 1_800_000, 1.4e13)


def _lineage(stages: int) -> dict[str, Any]:
    def digest(text: str) -> str:
        return random.Random(text).randbytes(32).hex()

    names = ("pretrain", "sft", "reward", "rl")
    parents = ({}, {"from": "pretrain"}, {"from": "sft"}, {"from": "sft", "reward_model": "reward"})
    entries = {}
    for index, (name, parent) in enumerate(zip(names[: stages + 1], parents, strict=False)):
        entries[name] = {
            "status": "finished" if index < stages else "interrupted",
            "inputs": {"recipe": digest(name), "data": digest(name + "data")}
            | {key: digest(value) for key, value in parent.items()},
            "seed": 0,
            "device": "cpu",
            "seconds": 100.0 + index,
        }
    versions = {"fourstage": "0.1.0", "python": "3.11.2", "torch": "2.13.0", "tokenizers": "0.23.3"}
    return {"device": "cpu", "versions": versions, "stages": entries}


def _plan() -> dict[str, Any]:
    return {
        "parameters": 1_049_344,
        "stages": {
            "pretrain": {"seconds": 230, "tokens": 3_686_400, "flops": 2.5e13},
            "sft": {"seconds": 90, "tokens": 1_433_600, "flops": 1.0e13},
            "reward": {"seconds": 110, "tokens": 2_700_000, "flops": 1.9e13},
            "rl": {"seconds": 150, "tokens": 2_000_000, "flops": 1.5e13},
        },
        "derived": [
            {"key": "pretrain.warmup_steps", "value": 40, "rule": "2% of the steps, at least 10"},
        ],
    }


def _data() -> dict[str, Any]:
    return {
        "pretrain": {
            "documents": 98000,
            "kept": 98000,
            "dropped": {"duplicates": 0},
            "bytes": 12_400_000,
        },
        "sft": {"rows": 31000, "dropped": []},
    }
