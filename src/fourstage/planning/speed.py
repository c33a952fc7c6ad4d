"""How fast a machine is at the parts of a run: measured on the very model, or from a data sheet."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from fourstage.model.config import ModelConfig
from fourstage.planning.facts import row_tokens
from fourstage.planning.flops import forward_flops, training_flops
from fourstage.planning.hardware import Gpus
from fourstage.recipe import Recipe

if TYPE_CHECKING:
    import torch

    from fourstage.data.batch import Batch
    from fourstage.generation.sampling import Sampling
    from fourstage.model.transformer import Transformer

# Operations of the largest measured training step: half a second of a CPU core, a tenth of a GPU.
_MOST_FLOPS = {"cpu": 2e10, "mps": 2e11, "cuda": 2e13}
# The rows that a CPU draws side by side: more would leave its caches (generation/engine.py).
_CPU_ROWS = 64
_FEW_ROWS = 6
# A process that computes without a pause gets this share of a core at least, unless others do too.
_OWN_SHARE = 0.8
# A long response costs what a short one does, a token; so many are enough to see it.
_MOST_DRAWN = 24
# Estimates beside data sheets, on the slow side: drawing reads all weights for few rows, and a
# layer's small kernels take their time however little they compute. Peak over bandwidth is 150-300
# operations a byte, from the A100 to the H100.
_DECODING_UTILISATION = 0.05
_LAYER_SECONDS = 2e-4
_FLOPS_PER_BYTE = 300.0


@dataclass(frozen=True)
class Speed:
    """What a machine does a second, all its devices together where they share the work.

    Attributes:
        device: in words, such as "cpu, 2 threads" or "8 x H100".
        training: operations a second of training steps, on all devices.
        forward: operations a second where a model only reads, on one device: each process scores
            for itself.
        generation: tokens drawn a second at the rollout batch, on one device.
        step_seconds: one decoding step of a handful of rows.
        update_seconds: what an update takes however little it computes; none where `training` was
            measured with it.
        is_shared: something else ran on this CPU while it was measured.
    """

    device: str
    training: float
    forward: float
    generation: float
    step_seconds: float
    source: Literal["measured", "data sheet"]
    devices: int = 1
    update_seconds: float = 0.0
    is_shared: bool = False

    def scaled(self, of: ModelConfig, to: ModelConfig) -> Speed:
        """The speed of one shape taken to another: tokens a second in proportion to operations."""
        ratio = _decoding_flops(to) / _decoding_flops(of)
        return dataclasses.replace(
            self,
            generation=self.generation / ratio,
            step_seconds=self.step_seconds * ratio,
            update_seconds=self.update_seconds * to.layers / of.layers,
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "device": self.device,
            "devices": self.devices,
            "source": self.source,
            "is_shared": self.is_shared,
            "training_flops_per_second": self.training,
            "forward_flops_per_second": self.forward,
            "generated_tokens_per_second": self.generation,
        }


def _decoding_flops(config: ModelConfig) -> float:
    return config.forward_flops_per_token(config.context / 8)


@dataclass(frozen=True)
class Trial:
    """Sizes of what is measured: those of the recipe's batches.

    Attributes:
        batch_tokens: cells of a micro-batch of pretraining.
        rollout_rows: responses drawn side by side.
    """

    document_tokens: float
    batch_tokens: int
    rollout_rows: int
    prompt_tokens: int
    response_tokens: float

    @classmethod
    def of(cls, recipe: Recipe) -> Trial:
        """The sizes of a resolved recipe."""
        rows, pretrain = row_tokens(recipe), recipe.pretrain
        batch = min(pretrain.batch_tokens or 4096, pretrain.micro_batch_tokens or 4096)
        return cls(
            document_tokens=rows.document,
            batch_tokens=batch,
            rollout_rows=recipe.rl.rollout_batch or 256,
            prompt_tokens=int(rows.prompt),
            response_tokens=rows.response,
        )


def from_gpus(gpus: Gpus, config: ModelConfig, rollout_rows: int = 256) -> Speed:
    """The speed that data sheets promise, estimated conservatively where they say little.

    Training reaches its share of the peak on all devices. What is read and drawn is planned on one
    of them, as each process does it for itself; drawing at a twentieth of the peak. Neither a step
    of drawing nor an update is faster than the layers' kernels start.
    """
    peak = gpus.accelerator.peak_flops
    latency = config.layers * _LAYER_SECONDS
    computed = rollout_rows * _decoding_flops(config) / (_DECODING_UTILISATION * peak)
    return Speed(
        device=f"{gpus.count} x {gpus.accelerator.name}",
        training=gpus.flops,
        forward=gpus.flops / gpus.count,
        generation=rollout_rows / (latency + computed),
        step_seconds=latency + 4 * config.parameters() * _FLOPS_PER_BYTE / peak,
        source="data sheet",
        devices=gpus.count,
        update_seconds=3 * latency,
    )


def measure(
    config: ModelConfig,
    device: torch.device,
    trial: Trial,
    *,
    devices: int = 1,
    seconds: float = 1.5,
) -> Speed:
    """Times training steps, forward passes and drawing of this shape here, in about `seconds`.

    A shape whose step would take long is cut in depth, then in width, and the result scaled by
    operations. `devices` processes share the training.
    """
    import torch

    from fourstage.model.transformer import Transformer

    shape, batch_tokens = cut(config, trial.batch_tokens, _MOST_FLOPS[device.type])
    # Creating modules draws from the global stream, which a run may be about to use.
    with torch.random.fork_rng(devices=[]):
        model = Transformer(shape).initialise(0).to(device)
    batch = _batch(shape, trial.document_tokens, batch_tokens)
    started, used = time.perf_counter(), time.process_time()
    training, forward = _learning(model, batch, device, seconds / 3)
    drawn, step_seconds = _drawing(model, trial, device, seconds / 3)
    share = (time.process_time() - used) / (time.perf_counter() - started)
    threads = torch.get_num_threads()
    words = f"cpu, {threads} thread{'s' if threads > 1 else ''}"
    if device.type == "cuda":
        words = torch.cuda.get_device_name(device)
    elif device.type != "cpu":
        words = device.type
    speed = Speed(
        device=words if devices == 1 else f"{devices} x {words}",
        training=training * devices,
        forward=forward,
        generation=drawn,
        step_seconds=step_seconds,
        source="measured",
        devices=devices,
        is_shared=device.type == "cpu" and share < _OWN_SHARE,
    )
    return speed.scaled(shape, config)


def cut(config: ModelConfig, batch_tokens: int, most_flops: float) -> tuple[ModelConfig, int]:
    """A shape and a batch whose training step is at most `most_flops`, as near as halving gets."""
    least = min(batch_tokens, 512)
    while config.flops_per_token() * least > most_flops:
        if config.layers > 2:
            config = dataclasses.replace(config, layers=config.layers // 2)
        elif config.vocab_size > 8192:
            config = dataclasses.replace(config, vocab_size=config.vocab_size // 2)
        elif config.context > 512:
            config = dataclasses.replace(config, context=config.context // 2)
        elif config.heads > 1:
            heads = config.heads // 2
            config = dataclasses.replace(
                config,
                width=config.width // 2,
                mlp_width=config.mlp_width // 2,
                heads=heads,
                kv_heads=heads if heads % config.kv_heads else config.kv_heads,
            )
        else:
            break
    fitting = int(most_flops / config.flops_per_token())
    return config, min(batch_tokens, max(least, fitting))


def _batch(config: ModelConfig, document_tokens: float, cells: int) -> Batch:
    """Random documents of about `cells` cells, their lengths spread around `document_tokens`."""
    from fourstage.data.batch import Batch, Example
    from fourstage.randomness import numpy_generator

    random = numpy_generator(0, "speed")
    examples = []
    while cells > 0:
        length = round(document_tokens * random.uniform(0.5, 1.5))
        length = min(max(2, length), config.context + 1, cells + 1)
        examples.append(Example(random.integers(config.vocab_size, size=max(2, length))))
        cells -= length - 1
    return Batch.language(examples)


def _learning(
    model: Transformer, batch: Batch, device: torch.device, seconds: float
) -> tuple[float, float]:
    """Operations a second of training steps, and of scoring."""
    from fourstage.evaluation.scoring import trained_logprobs
    from fourstage.objectives.next_token import NextToken
    from fourstage.parallel.group import Group
    from fourstage.parallel.replicas import one_a_core
    from fourstage.training.cost import repeatable
    from fourstage.training.settings import TrainSettings
    from fourstage.training.update import Update

    workers = one_a_core() if device.type == "cpu" else 1
    settings = TrainSettings(steps=1, learning_rate=1e-4, workers=workers)
    update = Update(model.train(), NextToken(), settings, device, Group(device=device))
    with repeatable(device):
        step = _least_seconds(lambda: update(batch, 1e-4), seconds)
    model.eval()
    read = _least_seconds(lambda: trained_logprobs(model, batch), seconds / 3)
    length = 2 * batch.layout.mean_context - 1
    trained = training_flops(model.config, batch.cells, length)
    return trained / step, forward_flops(model.config, batch.cells, length) / read


def _drawing(
    model: Transformer, trial: Trial, device: torch.device, seconds: float
) -> tuple[float, float]:
    """Tokens a second at the rollout batch, and seconds of a step of a few rows.

    Lengths of responses are spread as they are in rollouts: most are short, and the longest keep
    the batch waiting.
    """
    from fourstage.generation.engine import Engine
    from fourstage.generation.sampling import Sampling
    from fourstage.randomness import numpy_generator

    context, random = model.config.context, numpy_generator(0, "speed", "responses")
    rows = min(trial.rollout_rows, _CPU_ROWS) if device.type == "cpu" else trial.rollout_rows
    mean = max(1.0, min(trial.response_tokens, _MOST_DRAWN))
    prompt = max(1, min(trial.prompt_tokens, context - 3 * int(mean)))
    lengths = random.geometric(1 / mean, rows).clip(1, min(3 * int(mean), context - prompt))
    prompts = random.integers(model.config.vocab_size, size=(rows, prompt)).tolist()
    samplings = [Sampling(max_new_tokens=int(length)) for length in lengths]
    engine = Engine(model, max_batch=rows)

    def draw(count: int, asked: list[Sampling]) -> Callable[[], object]:
        return lambda: engine.generate(prompts[:count], asked, list(range(count)))

    few = min(_FEW_ROWS, rows)
    same = [Sampling(max_new_tokens=min(8, context - prompt))] * few
    waited = _least_seconds(draw(few, same), seconds / 5) / same[0].max_new_tokens
    return float(lengths.sum()) / _least_seconds(draw(rows, samplings), seconds), waited


def _least_seconds(call: Callable[[], object], seconds: float) -> float:
    """Shortest time of a call that ends on the host, repeated for about so many seconds.

    The first is counted only where it takes all of them: it allocates, and warms caches up.
    """
    taken: list[float] = []
    while len(taken) < 2 or sum(taken[1:]) < seconds:
        started = time.perf_counter()
        call()
        taken.append(time.perf_counter() - started)
        if taken[0] > seconds:
            return taken[0]
    return min(taken[1:])
