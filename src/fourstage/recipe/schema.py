"""Every field of a recipe, with its type and range. None means: derived by a printed rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, model_validator

from fourstage.errors import InputError
from fourstage.recipe.architecture import Architecture
from fourstage.recipe.data import (
    Count,
    Data,
    NonNegative,
    PositiveInt,
    Section,
)
from fourstage.recipe.numbers import Real, Whole
from fourstage.recipe.preference import reads_comparisons, refuse_other_rows
from fourstage.recipe.ramp import BatchRamp, StepCells
from fourstage.recipe.rewarding import RewardKind
from fourstage.recipe.rl import RL
from fourstage.recipe.stage import Stage

STAGES = ("pretrain", "sft", "reward", "rl")
# stage -> the part of `data` that it is made from.
PARTS = {"pretrain": "pretrain", "sft": "sft", "reward": "preferences", "rl": "prompts"}


class World(Section):
    """How much of the embedded world is written out."""

    documents: PositiveInt | None = None
    validation_documents: PositiveInt = 2000


def _digits(value: Any) -> Any:
    """A count as the command line gives it."""
    return int(value) if isinstance(value, str) and value.isdecimal() else value


def _switch(value: Any) -> Any:
    """`on` and `off`, which YAML reads as true and false."""
    return {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value


class TokenizerSection(Section):
    """The vocabulary: trained on the text, or adopted from a folder with a tokenizer.json.

    A run that starts from a model adopts that model's, unless `path` names another one or `train`
    asks for one of its own; the model is then changed to that vocabulary. `split` is the rule by
    which text is cut before pieces merge, and `digits` how many digits stand together at most; of
    an adopted vocabulary both are its own.
    """

    vocab_size: Annotated[Whole, Field(ge=264, le=1_000_000)] | None = None
    path: str | None = None
    train: bool = False
    split: Literal["gpt2", "gpt4", "chinese"] = "gpt4"
    digits: Annotated[Literal[1, 3], BeforeValidator(_digits)] = 1

    @model_validator(mode="after")
    def _is_from_one_place(self) -> TokenizerSection:
        if self.train and self.path is not None:
            raise ValueError(
                f"path={self.path} is adopted, and train=true trains one: leave one of the two out"
            )
        return self


class Model(Architecture):
    """The shape: a target number of parameters or any of its sizes, and options.

    With `width_scaling: mup` learning rates are those of a model of `base_width`, and serve at any
    width.
    """

    width_scaling: Literal["standard", "mup"] = "standard"
    base_width: PositiveInt | None = None

    @model_validator(mode="after")
    def _widths_scale(self) -> Model:
        if self.width_scaling == "standard" and self.base_width is not None:
            raise ValueError(
                f"base_width={self.base_width} is of width_scaling=mup: write that too, or leave "
                "base_width out"
            )
        if self.width_scaling == "mup" and self.tie_embeddings:
            raise ValueError(
                "tie_embeddings=true shares one table where width_scaling=mup needs two rates: "
                "write tie_embeddings=false"
            )
        return self

    @property
    def width_ratio(self) -> float:
        """Width over that which learning rates are for; of a resolved recipe."""
        return (self.width or 1) / self.base_width if self.base_width else 1.0


class Pretrain(Stage):
    """Next-token prediction on raw text.

    `z_loss` is the coefficient of `log(Z)^2` beside the loss, which holds logits near 0 (PaLM:
    1e-4). With `batch_ramp` the first steps read less than `batch_tokens`.
    """

    z_loss: NonNegative = 0.0
    batch_ramp: BatchRamp | None = None

    @model_validator(mode="after")
    def _an_adapter_has_a_base(self) -> Pretrain:
        if self.adapter is not None and self.source_model is None:
            raise ValueError(
                "adapter trains beside a model that is there: write from=FOLDER, or leave it out"
            )
        return self

    @model_validator(mode="after")
    def _the_batch_grows(self) -> Pretrain:
        ramp, batch = self.batch_ramp, self.batch_tokens
        if ramp is not None and batch is not None and ramp.from_tokens > batch:
            raise ValueError(
                f"batch_ramp.from_tokens={ramp.from_tokens} is more than batch_tokens={batch}: "
                f"write less, such as {max(1, batch // 8)}"
            )
        return self

    def step_cells(self) -> StepCells:
        """What each step reads; of a resolved recipe."""
        return StepCells(self.batch_tokens or 1, self.batch_ramp)

    def drawn_tokens(self) -> int:
        """Tokens that all its steps read; of a resolved recipe."""
        return self.step_cells().begin(self.steps or 0)


class Sft(Stage):
    """Next-token prediction on the responses of demonstrations."""


class Reward(Stage, RewardKind):
    """A reward model. One epoch over `data.comparisons` unless said otherwise.

    `pairs_per_step` counts rows of data.preferences: pairs, rankings, or answers judged alone.
    """

    pairs_per_step: PositiveInt | None = None


class Evaluation(Section):
    """How many held-out items each number is measured on."""

    documents: PositiveInt = 2000
    instructions: PositiveInt = 500
    pairs: PositiveInt = 1000
    prompts: PositiveInt = 500


class Compute(Section):
    """How the machine is used. Nothing here is part of a stage: changing it repeats none.

    Attributes:
        precision: of matrix products; `auto` is bf16 on CUDA devices that multiply it, and fp32
            elsewhere; `fp8` takes large layers of training to fp8, where the device has it. Weights
            are fp32 in all of them.
        compile: whether blocks are compiled; `auto` on CUDA. Where it fails, they are not.
        kernels: `auto` takes the C kernels of a CPU where the machine has a compiler.
        workers: copies of the model that threads of a CPU work with; left out, one a core.
        recompute: whether the backward pass makes each block's activations again instead of
            keeping them; `auto` where they would not fit.
        memory: share of a device's memory that is planned with.
        tune: whether the micro-batch is tried before the first step, and made smaller to fit.
        prefetch: whether a thread draws the next batch while a step computes; `auto` on CUDA.
    """

    precision: Literal["auto", "fp32", "bf16", "fp8"] = "auto"
    compile: Annotated[Literal["auto", "on", "off"], BeforeValidator(_switch)] = "auto"
    kernels: Annotated[Literal["auto", "off"], BeforeValidator(_switch)] = "auto"
    workers: PositiveInt | None = None
    recompute: Annotated[Literal["auto", "off", "block"], BeforeValidator(_switch)] = "auto"
    memory: Annotated[Real, Field(gt=0, le=1)] = 0.8
    tune: bool = True
    prefetch: Annotated[Literal["auto", "on", "off"], BeforeValidator(_switch)] = "auto"


class Parallel(Section):
    """How a model lies over the processes of torchrun; no part of a stage.

    What is left out is derived: `replicate x shard x tensor` is the number of processes.

    Attributes:
        replicate: whole copies, each on its own part of a batch.
        shard: processes that each keep a part of every weight, gradient and moment (ZeRO-3).
        tensor: processes that share each matrix product.
        sequence: whether those also share out the norms between products, by cells.
    """

    replicate: PositiveInt | None = None
    shard: PositiveInt | None = None
    tensor: PositiveInt | None = None
    sequence: bool = False


class Recipe(Section):
    """Data, tokenizer, model and the four stages."""

    name: Annotated[str, Field(min_length=1, pattern=r"^[^/\\\x00-\x1f]+$")] = "run"
    seed: Count = 0
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    data: Data = Data()
    world: World = World()
    tokenizer: TokenizerSection = TokenizerSection()
    model: Model = Model()
    pretrain: Pretrain = Pretrain()
    sft: Sft = Sft()
    reward: Reward = Reward()
    rl: RL = RL()
    evaluation: Evaluation = Evaluation()
    compute: Compute = Compute()
    parallel: Parallel = Parallel()

    @model_validator(mode="after")
    def _compares_what_is_prepared(self) -> Recipe:
        refuse_other_rows(self)
        return self

    @model_validator(mode="after")
    def _vllm_leaves_memory(self) -> Recipe:
        engine, planned = self.rl.engine, self.compute.memory
        if engine is not None and engine.kind == "vllm" and engine.memory >= planned:
            raise ValueError(
                f"rl.engine.memory={engine.memory:g} leaves nothing of compute.memory={planned:g} "
                "to the trainer on the same device: write less"
            )
        return self

    @model_validator(mode="after")
    def _steps_are_judged_by_who_learned_it(self) -> Recipe:
        how, reward = self.rl.step_rewards, self.reward
        if how is None or self.rl.reward_model is not None:
            return self
        if reward.objective != "process":
            raise ValueError(
                f"rl.step_rewards={how} takes a reward model that learned to judge steps, and this "
                f"one learns by reward.objective={reward.objective}: write "
                "reward.objective=process, or leave rl.step_rewards out"
            )
        if reward.ensemble > 1:
            raise ValueError(
                f"rl.step_rewards={how} reads the steps of one model: write reward.ensemble=1"
            )
        return self

    def needed(self) -> list[str]:
        """The stages that a whole run works on: the last one and all that it is made from.

        One whose product a model from outside replaces is left out, as pretraining is where
        `sft.from` is given.
        """
        wanted = {"rl"}
        if self.rl.needs_reward_model and self.rl.reward_model is None:
            wanted.add("reward")
        if any(self.stage(stage).source_model is None for stage in wanted):
            wanted.add("sft")
        if "sft" in wanted and self.sft.source_model is None:
            wanted.add("pretrain")
        return [stage for stage in STAGES if stage in wanted]

    def require_data(self, stages: Sequence[str] | None = None) -> None:
        """Checks that every part that is to be made from the text has a text to be made from.

        Args:
            stages: that are to be worked on; else those of a whole run.

        Raises:
            InputError: `data.pretrain` is missing, or text is to be mixed in that nothing prepares.
        """
        asked = list(self.needed() if stages is None else stages)
        if "rl" in asked:
            self.require_text_to_mix()
        if "rl" in asked and "reward" not in asked and reads_comparisons(self.rl):
            asked.append("reward")
        needy = [s for s in asked if self.data.origin(PARTS[s]) == "made"]
        if self.data.pretrain in (None, []) and needy:
            raise InputError(
                f"data.pretrain is missing, and it is needed for {', '.join(needy)}: write "
                "data.pretrain=FOLDER (text, JSONL or JSON lists) or data.pretrain=world"
            )

    def require_text_to_mix(self) -> None:
        """Raises `InputError` where rl mixes in text of pretraining that nothing prepares."""
        if self.rl.pretraining_mix and "pretrain" not in self.needed():
            raise InputError(
                f"rl.pretraining_mix={self.rl.pretraining_mix:g} mixes in the text of pretraining, "
                "and a run whose models come from outside prepares none: leave rl.pretraining_mix "
                "out, or one of rl.from, rl.reward_model and sft.from"
            )

    def stage(self, name: str) -> Stage:
        """The section of one of the four stages."""
        return getattr(self, name)

    def to_dict(self) -> dict[str, Any]:
        """Plain values under the names a recipe file uses (`from`, not `source_model`)."""
        return self.model_dump(mode="json", by_alias=True)

    def to_yaml(self) -> str:
        """A recipe file that loads to an equal recipe; what is None (derived) is left out."""
        plain = self.model_dump(mode="json", by_alias=True, exclude_none=True)
        plain = {key: value for key, value in plain.items() if value != {}}
        return yaml.dump(plain, Dumper=_RecipeDumper, sort_keys=False, allow_unicode=True)


class _RecipeDumper(yaml.SafeDumper):
    """Numbers as people write them: 0.0003 and 3.0e-5, both of which YAML reads as numbers."""


def _represent_float(dumper: yaml.SafeDumper, value: float) -> yaml.ScalarNode:
    text = repr(value)
    if "e" in text and "." not in text:
        text = text.replace("e", ".0e")
    return dumper.represent_scalar("tag:yaml.org,2002:float", text)


_RecipeDumper.add_representer(float, _represent_float)
