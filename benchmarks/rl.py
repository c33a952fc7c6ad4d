"""A step of GRPO and of RLOO beside TRL's trainers, in the same run; and where our steps go.

    python benchmarks/rl.py [--algorithms grpo rloo] [--rounds 8] [--steps 2] [--threads 2]
        [--prompts 8] [--group 4] [--new 64] [--json FILE] [--ours KEY=VALUE ...]
    python benchmarks/rl.py --size 500m --device cuda [--algorithms grpo]
    python benchmarks/rl.py --split [--algorithms ppo ...]

A step draws `--group` completions of `--new` tokens to each of `--prompts` prompts of 16 to 48
tokens, scores them, and makes one update with AdamW; the KL with the reference has the same
coefficient on both sides. Both start from the same folder and read the same prompts; no token ends
a completion, so that both draw as many (the counts are compared). TRL generates with transformers
and is timed inside its own loop, without logging, evaluation and saving. Contenders have processes
of their own and take turns; ratios are taken within a round: median [95% bootstrap interval].

`--split` times the parts of our own steps instead: rollout, scoring, update; PPO has a critic and
a reward model, both of the policy's shape.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from peers.fine_tuning import at, facts_of
from peers.ours import OurTraining, resolved
from peers.rounds import Contender, Gate, Record, median_of, ratio_of_rounds, take_turns
from peers.shapes import SIZES, Shape
from peers.trl_rollouts import Asked, train
from sft import write_start

from fourstage.devices import resolve_device
from fourstage.evaluation.responses import Response
from fourstage.interchange import load_model
from fourstage.model.actor_critic import ActorCritic
from fourstage.model.transformer import Transformer
from fourstage.recipe import load
from fourstage.reporting.numbers import Number
from fourstage.reporting.tables import print_table
from fourstage.rewards.total import Judged
from fourstage.stages.episodes import Players
from fourstage.stages.judging import Judge
from fourstage.stages.policy import objective_of
from fourstage.stages.rollouts import RolloutSource
from fourstage.tasks import Task
from fourstage.tokenizer import Tokenizer

_BETA, _RATE = 0.04, 1e-4
_PROMPTS = 256
_SHORTEST, _LONGEST = 16, 48
# Of the quickstart.
_SMALL = Shape(vocab_size=860, width=128, layers=4, heads=4, context=256, rows=16)


@dataclass(frozen=True)
class Job:
    """What a contender's process is told.

    Attributes:
        folder: holds model/ and prompts.json.
    """

    folder: Path
    asked: Asked
    device: str
    overrides: Sequence[str] = ()

    def prompts(self) -> list[str]:
        return json.loads((self.folder / "prompts.json").read_text())


def write_prompts(folder: Path, shape: Shape) -> Path:
    """A model folder and prompts that all start from."""
    start = write_start(folder, shape, _PROMPTS)
    rows = json.loads((start / "rows.json").read_text())
    tokenizer, spread = Tokenizer.load(start / "model"), _LONGEST - _SHORTEST + 1
    texts = [
        tokenizer.decode(row["input_ids"][: _SHORTEST + 7 * index % spread])
        for index, row in enumerate(rows)
    ]
    (start / "prompts.json").write_text(json.dumps(texts))
    return start


def reward(tokens: Sequence[int]) -> float:
    """The share of even tokens."""
    return sum(token % 2 == 0 for token in tokens) / len(tokens)


class Endless:
    """A tokenizer whose prompts are plain text, and no token of which ends a response."""

    stop_ids: tuple[int, ...] = ()

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def chat_prompt(self, prompt: str) -> list[int]:
        return self._tokenizer.encode(prompt)


class Even(Judge):
    """Scores by `reward`, of the tokens as they were drawn."""

    def __call__(self, tasks: Sequence[Task], responses: Sequence[Response]) -> Judged:
        if self.reward_model is not None:
            return super().__call__(tasks, responses)
        return Judged([reward(each.tokens) for each in responses], {})


@dataclass
class Parts:
    """Seconds of each part of the steps since they were last taken."""

    device: torch.device
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        spent = time.perf_counter() - started
        self.seconds[name] = self.seconds.get(name, 0.0) + spent

    def take(self) -> dict[str, float]:
        taken, self.seconds = self.seconds, {}
        return taken


class OurSteps:
    """Steps of our rl stage without its guards, logging and checkpoints."""

    def __init__(self, job: Job):
        asked, device = job.asked, torch.device(job.device)
        policy = load_model(job.folder / "model")
        tokenizer: Any = Endless(Tokenizer.load(job.folder / "model"))
        recipe = resolved(load("own-text", overrides_of(job, policy)), device, model=policy.config)
        section = recipe.rl
        critic = policy.with_scalar_head(0) if section.needs_critic else None
        scorer = policy.with_scalar_head(1).requires_grad_(False) if critic else None
        reference = load_model(job.folder / "model").requires_grad_(False)
        for model in (reference, scorer):
            if model is not None:
                model.to(device)
        players = Players(ActorCritic(policy, critic), reference, scorer)
        self.training = OurTraining(
            recipe, device, stage="rl", model=players.trained, objective=objective_of(section)
        )
        tasks = [Task(prompt, "text") for prompt in job.prompts()]
        judge = Even(section, tokenizer, scorer)
        self.source = RolloutSource(players, tokenizer, tasks, section, 0, judge=judge)
        self.parts, self.step_number = Parts(device), 0
        self.updates = self.source.updates
        self._time_rollouts()
        assert section.rollout_batch == asked.prompts * asked.group

    def _time_rollouts(self) -> None:
        drawer = self.source.drawer
        respond = drawer.respond

        def timed(*given: Any) -> list[Response]:
            with self.parts.of("rollout"):
                return respond(*given)

        drawer.respond = timed

    def step(self) -> dict[str, float]:
        """An iteration: rollouts, and each update on them."""
        for _ in range(self.updates):
            with self.parts.of("source"):
                batch = self.source.batch(self.step_number)
            with self.parts.of("update"):
                self.training.step(batch, _RATE)
            self.step_number += 1
        made = self.source.rollouts
        return {
            "drawn": float((made.streams["loss_weights"] != 0).sum()),
            "read": float(made.documents["prompt_tokens"].sum()),
        }


def overrides_of(job: Job, policy: Transformer) -> list[str]:
    asked = job.asked
    told = [
        "data.pretrain=world",
        f"model.context={policy.config.context}",
        f"rl.algorithm={asked.algorithm}",
        f"rl.rollout_batch={asked.prompts * asked.group}",
        f"rl.group={asked.group}",
        f"rl.max_new_tokens={asked.new}",
        f"rl.kl_coefficient={asked.beta}",
        f"rl.learning_rate={_RATE}",
        "rl.optimiser=adamw",
        "rl.weight_decay=0",
        "rl.minibatches=1",
        "rl.episodes=1M",
    ]
    # Something but a reward model, which `Even` stands for.
    others = [] if asked.algorithm == "ppo" else ["rl.rewards=[{kind: length}]"]
    return [*told, *others, *job.overrides]


def play_ours(gate: Gate, job: Job) -> None:
    steps = OurSteps(job)
    is_open = at(gate, torch.device(job.device)).enter(facts_of(steps.training.model))
    steps.parts.take()
    while is_open:
        is_open = gate.passed(steps=1.0, **steps.step())
    gate.leave({"chosen": steps.training.chosen})


def play_trl(gate: Gate, job: Job) -> None:
    at(gate, torch.device(job.device))

    def passed(**work: float) -> bool:
        return gate.passed(steps=1.0, **work)

    def begun(model: torch.nn.Module) -> bool:
        return gate.enter(facts_of(model))

    train(job.asked, job.folder / "model", job.prompts(), reward, begun, passed, job.device)
    gate.leave({})


def assert_equal_tokens(records: dict[str, Record], asked: Asked) -> None:
    """Stops a comparison of contenders that did not draw as many tokens.

    Raises:
        SystemExit: a contender drew more or fewer in some step.
    """
    each = asked.prompts * asked.group * asked.new
    for name, record in records.items():
        drawn = [work["drawn"] / work["steps"] for work in record.work]
        if any(number != each for number in drawn):
            raise SystemExit(f"{name} drew {drawn} tokens a step in place of {each}")


def compare(job: Job, rounds: int, steps: int) -> dict[str, Any]:
    contenders = {"ours": Contender(play_ours, job), "trl": Contender(play_trl, job)}
    records, _ = take_turns(contenders, rounds, steps, needed=list(contenders))
    assert_equal_tokens(records, job.asked)
    ours = records["ours"].rates("steps")
    return {
        name: {
            "steps_per_second": asdict(median_of(record.rates("steps"))),
            "ours_over_it": asdict(ratio_of_rounds(ours, record.rates("steps"))),
            "read_tokens_a_step": median_of(record.rates("read")).value
            / median_of(record.rates("steps")).value,
            "seconds": record.seconds,
            **record.facts,
        }
        for name, record in records.items()
    }


def split(job: Job, iterations: int) -> dict[str, float]:
    """Median seconds of each part of an iteration, and of it all."""
    steps = OurSteps(job)
    steps.step()
    steps.parts.take()
    found: list[dict[str, float]] = []
    for _ in range(iterations):
        steps.step()
        parts = steps.parts.take()
        whole = parts["source"] + parts["update"]
        scoring = parts.pop("source") - parts["rollout"]
        found.append({**parts, "scoring": scoring, "iteration": whole})
    return {name: median_of([each[name] for each in found]).value for name in found[0]}


def show_split(asked: Asked, parts: dict[str, float], title: str) -> None:
    rows = [[name, round(1e3 * s), f"{s / parts['iteration']:.0%}"] for name, s in parts.items()]
    print_table([asked.algorithm, "ms", "share"], rows, title)


def show(asked: Asked, results: dict[str, Any], title: str) -> None:
    rows = []
    for name, row in results.items():
        ratio = None if name == "ours" else Number(**row["ours_over_it"])
        step = 1 / row["steps_per_second"]["value"]
        rows.append([name, round(1e3 * step), ratio, round(row["read_tokens_a_step"])])
    print_table([asked.algorithm, "ms a step", "ours over it", "prompt tokens"], rows, title)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--algorithms", nargs="+", choices=["grpo", "rloo", "ppo"])
    parser.add_argument("--size", choices=["tiny", "3m", "30m", "500m"], default="3m")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--group", type=int, default=4)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=2, help="of a turn")
    parser.add_argument("--threads", type=int, help="of each contender; else the machine's own")
    parser.add_argument("--split", action="store_true", help="time the parts of our own steps")
    parser.add_argument("--ours", nargs="*", default=[], help="overrides of our recipe")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    algorithms = given.algorithms or (["ppo"] if given.split else ["grpo", "rloo"])
    if "ppo" in algorithms and not given.split:
        parser.error("ppo is timed with --split: TRL 1.16 has no PPO of its own to compare with")
    if "ppo" in algorithms and given.size != parser.get_default("size"):
        parser.error("ppo is timed at the quickstart's size: leave --size out")
    if given.threads:
        told = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
        os.environ.update(dict.fromkeys(told, str(given.threads)))
        torch.set_num_threads(given.threads)
    device = resolve_device(given.device).type
    if device == "mps":
        parser.error("there is no stopwatch for mps here: write --device cpu")
    found: dict[str, Any] = {}
    for algorithm in algorithms:
        shape = _SMALL if algorithm == "ppo" else SIZES[given.size]
        asked = Asked(algorithm, given.prompts, given.group, given.new, _BETA, _RATE)
        if algorithm == "ppo":
            asked = replace(asked, prompts=given.prompts * given.group, group=1)
        with tempfile.TemporaryDirectory() as folder:
            job = Job(write_prompts(Path(folder), shape), asked, device, given.ours)
            count, threads = asked.prompts * asked.group, torch.get_num_threads()
            title = f"{count} completions of {asked.new} tokens, {device}, {threads} threads"
            if given.split:
                found[algorithm] = split(job, given.rounds)
                show_split(asked, found[algorithm], title)
            else:
                found[algorithm] = compare(job, given.rounds, given.steps)
                show(asked, found[algorithm], title)
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
