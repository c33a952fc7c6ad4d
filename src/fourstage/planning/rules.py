"""The rules that turn a size and an amount of data into hyper-parameters, each with its reason."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from fourstage.objectives.algorithms import Algorithm
from fourstage.planning import published
from fourstage.planning.published import through
from fourstage.recipe.adapter import Adapter


@dataclass(frozen=True)
class Derived:
    """A value that a recipe left out: its dotted key, the value, and the rule it came from."""

    key: str
    value: Any
    rule: str

    def __str__(self) -> str:
        return f"{self.key} = {shown(self.value)}  ({self.rule})"


class Ruled(NamedTuple):
    """A value and the rule it came from."""

    value: Any
    rule: str


# parameters -> vocabulary. 32,000 to 50,257 is published from 125M on; 860 served 1M parameters.
VOCABULARY = ((1e6, 860), (125e6, 32000), (175e9, 50257))
_FEWEST_TOKENS = 320
# Parameters below which a model is small: its runs are short, and by sweeps made here.
_SMALL = 100e6
# What Muon may add to a step, of which it needs about 0.6 of AdamW's (docs/experiments.md).
_MOST_OWN_WORK = 0.6
# Below it a step on a CPU is overhead, of Muon above all.
_LEAST_BATCH = 1024.0


def vocabulary_size(params: float, text_bytes: float | None = None) -> Ruled:
    """Tokens of a vocabulary: as many as the model's size asks for and the text can fill.

    A token is learned from about 100 occurrences, and a vocabulary is best at the largest size at
    which 95% of its tokens have as many (Gowda and May, *Finding the Optimal Vocabulary Size for
    Neural Machine Translation*, 2020). Of English, Chinese and mixed text that size is 1.0 times
    the square root of its bytes: 700 of 0.5 MB, 1,400 of 2 MB, 2,400 of 6 MB, 3,200 to 4,500 of
    12 MB, measured with byte-level BPE; so 32,000 of 1 GB.

    Args:
        params: of the model.
        text_bytes: of the text, in UTF-8; None where it is not known.
    """
    by_model = max(_FEWEST_TOKENS, _in_64s(through(VOCABULARY, params, beyond=False)))
    by_text = by_model if text_bytes is None else _in_64s(text_bytes**0.5)
    if by_text < by_model:
        rule = f"the root of {text_bytes:,.0f} bytes of text, which shows 95% of them 100 times"
        return Ruled(max(_FEWEST_TOKENS, by_text), f"{rule}; the model would take {by_model:,}")
    return Ruled(by_model, "by size of the model: 860 at 1M parameters to GPT-3's 50,257")


def _in_64s(size: float) -> int:
    return round(size / 64) * 64


def shown(value: Any) -> str:
    """A number as people read it: 3,700,000 or 0.003."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int) or float(value).is_integer():
        return f"{int(value):,}"
    return f"{value:.4g}"


def two_digits(value: float) -> float:
    """The value rounded to two significant digits: rules promise no more."""
    if value == 0:
        return 0.0
    digits = 1 - math.floor(math.log10(abs(value)))
    rounded = round(value, digits)
    return int(rounded) if digits <= 0 else rounded


def batch_tokens(params: float, tokens: float | None = None, context: int = 256) -> Ruled:
    """Tokens a step: by size, through the published runs, and about 1,000 steps of the data.

    A batch of few rows is a number of pairs of them, which two workers or processes share evenly.

    Args:
        tokens: of the whole stage, where it is known. context: tokens of a row.
    """
    by_size = min(4e6, max(_LEAST_BATCH, through(published.BATCH_TOKENS, params)))
    size, rule = by_size, "through the batches of GPT-3 and LLaMA"
    if params < 125e6:
        rule = (
            "0.5M-4M at the published sizes (GPT-3, LLaMA), smaller below: 1.5k at 0.8M parameters"
        )
    if tokens is not None and tokens / 1000 < size:
        size = max(512.0, tokens / 1000)
        rule = f"by size {shown(two_digits(by_size))}, cut so that the data gives about 1,000 steps"
    pairs = round(size / (2 * context))
    if 0 < pairs < 32:
        return Ruled(pairs * 2 * context, rule + ", in pairs of rows")
    return Ruled(int(two_digits(size)), rule)


def optimiser(params: float, is_new: bool = True, own_work: float = 0.0) -> Ruled:
    """Muon for a new model below 100M parameters, unless steps are so small that it is most of one.

    Args:
        is_new: whether its weights start at random.
        own_work: operations of an update by Muon over those of a step's forward and backward pass.
    """
    if not is_new:
        return Ruled("adamw", "a model goes on")
    if params >= _SMALL:
        return Ruled("adamw", "GPT-3 and LLaMA; Muon below 100M parameters")
    if own_work > _MOST_OWN_WORK:
        return Ruled("adamw", f"Muon would add {own_work:.0%} to the work of so small a step")
    return Ruled("muon", "a lower loss in the same time; AdamW from 100M parameters on")


def learning_rate(params: float, optimiser: str = "adamw") -> Ruled:
    """Peak rate of pretraining: 8e-3 at 0.2M parameters, 3e-3 at 1M, then the GPT-3 points.

    Muon, whose updates have one size in all directions, takes 2 to 9 times as much.
    """
    if optimiser == "muon":
        rate = min(_MOST_FOR_MUON, through(published.MUON_RATE, params))
        return Ruled(
            two_digits(rate),
            "of Muon: 3e-2 up to 0.2M parameters, 1.5e-2 at 0.8M, nanochat's at 124M",
        )
    rate = min(8e-3, through(published.LEARNING_RATE, params))
    return Ruled(
        two_digits(rate), "falls with size: 3e-3 at 1M parameters, through GPT-3's table 2.1 above"
    )


def sft_rate(params: float) -> Ruled:
    rate = min(3e-3, through(published.SFT_RATE, params, beyond=False))
    return Ruled(two_digits(rate), "2e-3 at 1M parameters to InstructGPT's 9.65e-6 from 1.3B on")


def reward_rate(params: float) -> Ruled:
    rate = min(1e-3, through(published.REWARD_RATE, params, beyond=False))
    return Ruled(two_digits(rate), "4e-4 at 1M parameters to InstructGPT's 9e-6 at 6B")


def rl_rate(params: float) -> Ruled:
    rate = min(1e-3, through(published.RL_RATE, params, beyond=False))
    return Ruled(two_digits(rate), "4e-4 at 1M parameters to 3e-6 at 1B (PPO on Pythia-1B)")


def fine_tuning_batch(params: float, tokens: float) -> Ruled:
    """Tokens a step of SFT: 1.5k at 1M parameters to InstructGPT's 32 sequences at 1.3B."""
    size = max(512.0, through(((1e6, 1500), (1.3e9, 16384)), params, beyond=False))
    rule = "1.5k at 1M parameters to 32 sequences of 512 (InstructGPT) at 1.3B"
    if tokens / 300 < size:
        size, rule = max(512.0, tokens / 300), rule + ", cut so that the data gives 300 steps"
    return Ruled(int(two_digits(size)), rule)


def episodes(params: float) -> Ruled:
    count = through(((1e6, 10_000), (1.3e9, 256_000)), max(params, 1e6), beyond=False)
    return Ruled(int(two_digits(count)), "10k at 1M parameters to InstructGPT's 256k at 1.3B")


def warmup_steps(steps: int) -> Ruled:
    """2% of the steps, at least 10 of them and at most LLaMA's 2,000, never over a tenth."""
    wanted = min(2000, max(10, round(0.02 * steps)))
    return Ruled(min(wanted, steps // 10), "2% of the steps, at least 10, at most LLaMA's 2,000")


def schedule(stage: str, params: float) -> Ruled:
    if stage == "rl":
        return Ruled("constant", "the policy's rate stays, as InstructGPT's after its warm-up")
    if stage == "pretrain" and params >= _SMALL:
        return Ruled("cosine", "GPT-3 and LLaMA: cosine to a tenth")
    return Ruled("linear", "to zero: best in short runs")


def final_fraction(kind: str) -> Ruled:
    if kind == "constant":
        return Ruled(1.0, "a constant schedule ends where it began")
    if kind == "cosine":
        return Ruled(0.1, "GPT-3 and LLaMA: cosine to a tenth")
    return Ruled(0.0, "to zero: best in short runs")


# The highest that a sweep was best at.
_MOST_FOR_MUON = 3e-2
# The highest tried, at 160 thousand parameters, where it beat a half, a quarter and a tenth of it.
_MOST_FOR_ADAPTERS = 2e-2


def adapter_alpha(adapter: Adapter) -> Ruled:
    rule = "twice the rank: a scale of 2, as 32 has at rank 16"
    if adapter.kind == "rslora":
        rule = "the same at any rank, whose root the scale is divided by (rsLoRA)"
    return Ruled(adapter.usual_alpha, rule)


def adapter_rate(full: Ruled) -> Ruled:
    """The rate of an adapter, whose best one is about ten times that of full training."""
    rule = f"{full.rule}; ten times for an adapter (Schulman et al., LoRA Without Regret, 2025)"
    return Ruled(two_digits(min(10 * full.value, _MOST_FOR_ADAPTERS)), rule)


def weight_decay(stage: str, has_adapter: bool = False) -> Ruled:
    if has_adapter:
        return Ruled(0.0, "none on an adapter, which it would pull back to the base (QLoRA)")
    if stage in ("pretrain", "sft"):
        return Ruled(0.1, "GPT-3, LLaMA, DeepSpeed-Chat")
    return Ruled(0.0, "none where one epoch leaves nothing to overfit")


def pretraining_tokens(params: float, available: float | None = None) -> Ruled:
    """Compute-optimal tokens of the size, at most four passes over the data there is."""
    best = published.compute_optimal_tokens(params)
    if available is not None and 4 * available < best:
        return Ruled(
            max(1, int(4 * available)),
            f"4 epochs of the {shown(int(available))} tokens there are (more repeats help little: "
            f"Muennighoff et al., 2023); Chinchilla would take {shown(int(two_digits(best)))}",
        )
    return Ruled(int(two_digits(best)), "Chinchilla, table 3: about 20 tokens a parameter")


def pairs_per_step(params: float) -> Ruled:
    points = ((1e6, 16), (6e9, 64))
    pairs = 2 ** round(math.log2(max(8.0, through(points, params, beyond=False))))
    return Ruled(pairs, "16 pairs at 1M parameters to InstructGPT's 64 at 6B")


def group(row: Algorithm) -> Ruled:
    if row.needs_groups:
        return Ruled(8, f"{row.name} compares answers to one prompt: 8, as in Dr. GRPO")
    return Ruled(1, f"{row.name} compares no answers to one prompt")


def overlong_buffer(max_new_tokens: int) -> Ruled:
    return Ruled(max(1, max_new_tokens // 5), "a fifth of max_new_tokens: 4,096 of 20,480 in DAPO")


def rollout_batch(params: float) -> Ruled:
    batch = 256 if params < 100e6 else 512
    return Ruled(batch, "256 episodes an iteration when small, InstructGPT's 512 from 100M on")


def minibatches(batch: int) -> Ruled:
    count = 8 if batch >= 512 else 4 if batch >= 4 else 1
    return Ruled(count, "4 updates an iteration, InstructGPT's 8 of 64 from a batch of 512 on")


def every(steps: int, times: int) -> int:
    """Steps between two of `times` evenly spread moments."""
    return max(1, steps // times)
