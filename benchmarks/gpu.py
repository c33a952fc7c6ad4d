"""Model FLOPs utilisation and memory on one GPU beside transformers' Trainer, in one run.

    python benchmarks/gpu.py [--minutes 9] [--sizes 124m 1b] [--out FOLDER] [--ours KEY=VALUE ...]
    python benchmarks/gpu.py --device cpu --tiny        the same on any machine, in small

Has been run on a CPU with `--tiny` alone. Shapes of about 124M and 1B parameters, sequences of
2,048, bf16. `ours` is the update of the trainer with settings by the rules (compilation, attention
and micro-batch as it chooses), `ours-fp8` the same with compute.precision=fp8; `transformers` is
LlamaForCausalLM of the same sizes in its own Trainer with attention through SDPA, eager and
compiled. Each run is a process of its own; a run that does not fit is repeated with half the rows
of a forward pass, its batch kept by accumulation. Model FLOPs are 6 a matmul weight and causal
attention (peers/shapes.py), over the data sheet's peak; beside it nanoGPT's way, which counts
attention as if it were not causal. Results go to FOLDER/gpu.json and FOLDER/gpu.md.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peers.apart import Failed, apart
from peers.llama import llama_model
from peers.ours import OurTraining, recipe_of, rectangle
from peers.shapes import SIZES, Shape, assert_equal_work, matmul_weights
from torch import Tensor

from fourstage.devices import CHOICES, resolve_device
from fourstage.planning.memory import training_memory
from fourstage.profiling.bench import words_of
from fourstage.profiling.ceiling import data_sheet_flops, matmul_flops_per_second
from fourstage.randomness import generator

CONTENDERS = ("ours", "transformers", "transformers-compiled", "ours-fp8")
_BATCHES = 4
# Steps between looks at the time, and seconds after which a run is ended.
_LOOK_EVERY = 5
_MOST_SECONDS = 150.0


@dataclass(frozen=True)
class Job:
    """What a run is told.

    Attributes:
        micro_rows: of a forward pass of transformers; of ours the rules say.
        seconds: of timed steps, as many as are begun in them.
        warm_up: steps before.
    """

    name: str
    shape: Shape
    device: str
    seconds: float
    warm_up: int
    micro_rows: int
    overrides: Sequence[str] = ()

    def rows(self) -> Tensor:
        """[batches x rows, context + 1] random ids: a few batches, again and again."""
        size = (_BATCHES * self.shape.rows, self.shape.context + 1)
        return torch.randint(self.shape.vocab_size, size, generator=generator(0, "gpu"))


class Stopwatch:
    """Counts steps after the warm-up until the time is over; begun before the model is made."""

    def __init__(self, job: Job):
        self._job, self._is_cuda = job, job.device != "cpu"
        self.steps, self._started, self.seconds = -job.warm_up, 0.0, 0.0
        self._before = self._peak()

    def passed(self) -> bool:
        """After every step; False when there is enough."""
        self.steps += 1
        # Waiting for the GPU after every step would take from those who run ahead of it.
        if self.steps < 0 or self.steps % _LOOK_EVERY:
            return True
        if self._is_cuda:
            torch.cuda.synchronize()
        now = time.perf_counter()
        if self.steps == 0:
            self._started = now
            return True
        self.seconds = now - self._started
        return self.seconds < self._job.seconds

    @property
    def peak_memory(self) -> float:
        """Bytes of tensors on a GPU; on a CPU by how much the process grew."""
        return self._peak() - self._before

    def _peak(self) -> float:
        if self._is_cuda:
            return float(torch.cuda.max_memory_allocated())
        return 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def run_ours(job: Job) -> dict[str, Any]:
    device, shape, watch = torch.device(job.device), job.shape, Stopwatch(job)
    told = [*(["compute.precision=fp8"] if job.name == "ours-fp8" else []), *job.overrides]
    training = OurTraining(recipe_of(shape, 1000, device, told), device)
    weights = training.matmul_weights
    rows, losses, more = job.rows().split(shape.rows), [], True
    if job.name == "ours-fp8":
        require_fp8(lambda: training.step(rectangle(rows[0]), 0.0))
    while more:
        losses.append(training.step(rectangle(rows[len(losses) % _BATCHES]), 3e-4))
        more = watch.passed()
    fitted = training.chosen["fitting"]
    micro = min(shape.tokens, fitted["micro_batch_tokens"] or shape.tokens)
    estimate = training_memory(
        training.model.config,
        micro,
        device=device.type,
        recompute=fitted["recompute"],
        accumulates=micro < shape.tokens,
    )
    return {
        **measured(job, watch, weights, losses),
        "parameters": training.model.config.parameters(),
        "micro_batch_tokens": micro,
        "estimated_memory": estimate.total,
        "chosen": training.chosen,
    }


def require_fp8(step: Callable[[], object]) -> None:
    """Refuses to report as fp8 what is not.

    Raises:
        RuntimeError: the step has no product of scaled fp8 matrices.
    """
    step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        step()
    if not any("scaled_mm" in event.key for event in profile.key_averages()):
        raise RuntimeError("no product of a step was in fp8")


def run_transformers(job: Job) -> dict[str, Any]:
    from transformers import Trainer, TrainerCallback, TrainingArguments

    torch.manual_seed(0)
    shape, watch, losses = job.shape, Stopwatch(job), []
    model, is_cuda = llama_model(shape), job.device != "cpu"

    class Noting(Trainer):
        def training_step(self, *args, **kwargs):
            loss = super().training_step(*args, **kwargs)
            losses.append(loss.detach())
            return loss

    class AtTheWatch(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            control.should_training_stop = not watch.passed()

    # n cells are n tokens: transformers shifts the labels itself, and its last cell trains nothing.
    rows = [{"input_ids": row[:-1], "labels": row[:-1]} for row in job.rows()]
    with tempfile.TemporaryDirectory() as out:
        told = TrainingArguments(
            output_dir=out,
            per_device_train_batch_size=job.micro_rows,
            gradient_accumulation_steps=shape.rows // job.micro_rows,
            max_steps=1_000_000,
            learning_rate=3e-4,
            lr_scheduler_type="constant",
            weight_decay=0.1,
            adam_beta2=0.95,
            max_grad_norm=1.0,
            optim="adamw_torch_fused",
            bf16=is_cuda,
            tf32=True if is_cuda else None,
            use_cpu=not is_cuda,
            torch_compile=job.name.endswith("compiled"),
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        Noting(model=model, args=told, train_dataset=rows, callbacks=[AtTheWatch()]).train()
    steps = torch.stack(losses).float().view(-1, shape.rows // job.micro_rows).sum(1).tolist()
    return {
        **measured(job, watch, matmul_weights(model), steps),
        "parameters": model.num_parameters(),
        "micro_batch_tokens": job.micro_rows * shape.context,
        "estimated_memory": None,
    }


def measured(job: Job, watch: Stopwatch, weights: int, losses: Sequence[float]) -> dict[str, Any]:
    """What every run reports. MFU is filled in where the peak is known."""
    shape = job.shape
    rate = watch.steps * shape.tokens / watch.seconds
    flops = shape.training_flops(weights)
    uncut = 6 * weights + 12 * shape.layers * shape.width * shape.context
    return {
        "tokens_per_second": rate,
        "flops_per_token": flops,
        "flops_per_second": rate * flops,
        "flops_per_second_uncut": rate * uncut,
        "peak_memory": watch.peak_memory,
        "steps": watch.steps,
        "seconds": watch.seconds,
        "first_loss": losses[0],
        "last_loss": losses[-1],
    }


RUNS: dict[str, Callable[[Job], dict[str, Any]]] = {
    name: run_ours if name.startswith("ours") else run_transformers for name in CONTENDERS
}


def fitting(job: Job, deadline: float) -> dict[str, Any]:
    """The run's report, with half the rows of a forward pass as often as memory asks for.

    Raises:
        Failed: it fits in no way, failed otherwise, or ran out of time.
    """
    while True:
        left = deadline - time.monotonic()
        if left < job.seconds:
            raise Failed("the time was over")
        try:
            return apart(RUNS[job.name], job, min(left, _MOST_SECONDS))
        except Failed as error:
            if "OutOfMemory" not in str(error) or job.micro_rows == 1:
                raise
            rows = job.micro_rows // 2
            told = [f"pretrain.micro_batch_tokens={rows * job.shape.context}", *job.overrides]
            job = replace(job, micro_rows=rows, overrides=told)
            print(f"{job.name}: out of memory, {rows} rows a forward pass", flush=True)


def markdown(results: dict[str, Any]) -> str:
    """The table as a page of documentation wants it."""
    peak = results["peak_flops"] or results["ceiling_flops"]
    share = "MFU" if results["peak_flops"] else "of matmul"
    lines = [
        f"{results['device']}, torch {results['torch']}, sequence {results['context']:,}; "
        f"largest matmul {results['ceiling_flops'] / 1e12:,.3g} TFLOP/s",
        "",
        f"| size | trained by | tokens/s | {share} | attention uncut | peak GB | estimated GB |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for size, runs in results["sizes"].items():
        for name, run in runs.items():
            if "failed" in run:
                lines.append(f"| {size} | {name} | {run['failed']} | | | | |")
                continue
            estimate = run["estimated_memory"]
            expected = f"{estimate / 1e9:.2f}" if estimate else ""
            lines.append(
                f"| {size} | {name} | {run['tokens_per_second']:,.0f} "
                f"| {run['flops_per_second'] / peak:.1%} "
                f"| {run['flops_per_second_uncut'] / peak:.1%} "
                f"| {run['peak_memory'] / 1e9:.2f} | {expected} |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", choices=["124m", "1b"], default=["124m", "1b"])
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=CONTENDERS)
    parser.add_argument("--minutes", type=float, default=9.0, help="of the whole")
    parser.add_argument("--seconds", type=float, default=10.0, help="of timed steps of a run")
    parser.add_argument("--rows", type=int, help="of a batch, instead of the size's own")
    parser.add_argument("--device", choices=CHOICES, default="auto")
    parser.add_argument("--tiny", action="store_true", help="a shape for any machine")
    parser.add_argument("--ours", nargs="*", default=[], help="overrides of our recipe")
    parser.add_argument("--out", type=Path, default=Path("benchmark-gpu"))
    given = parser.parse_args()
    deadline = time.monotonic() + 60 * given.minutes - 10

    device = resolve_device(given.device)
    if device.type != "cuda" and not given.tiny:
        raise SystemExit("there is no GPU here: --tiny runs the same in small")
    sizes = {name: SIZES[name] for name in (["tiny"] if given.tiny else given.sizes)}
    seconds = 1.0 if given.tiny else given.seconds
    results: dict[str, Any] = {
        "device": words_of(device),
        "torch": torch.__version__,
        "peak_flops": data_sheet_flops(device),
        "ceiling_flops": apart(matmul_flops_per_second, device),
        "context": next(iter(sizes.values())).context,
        "sizes": {size: {} for size in sizes},
    }
    given.out.mkdir(parents=True, exist_ok=True)
    # What matters most comes first, should the time run out.
    for contender in given.contenders:
        for size, shape in sizes.items():
            shape = shape.with_rows(given.rows or shape.rows)
            job = Job(contender, shape, str(device), seconds, 5, shape.rows, given.ours)
            try:
                report = fitting(job, deadline)
            except Failed as error:
                report = {"failed": str(error)}
            results["sizes"][size][contender] = report
            print(f"{size}, {contender}: {report.get('tokens_per_second', report)}", flush=True)
            text = json.dumps(results, indent=2) + "\n"
            (given.out / "gpu.json").write_text(text, encoding="utf-8")
            (given.out / "gpu.md").write_text(markdown(results), encoding="utf-8")
    for runs in results["sizes"].values():
        work = {k: run["flops_per_token"] for k, run in runs.items() if "failed" not in run}
        if work:
            assert_equal_work(work)
    print(markdown(results))


if __name__ == "__main__":
    main()
