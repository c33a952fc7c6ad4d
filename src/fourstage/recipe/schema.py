"""Every field of a recipe, with its type and range. None means: derived by a printed rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, model_validator

from fourstage.errors import InputError
from fourstage.recipe.data import (
    Count,
    Data,
    Fraction,
    NonNegative,
    Positive,
    PositiveInt,
    Section,
)
from fourstage.recipe.numbers import Real, Seconds, Whole

OpenFraction = Annotated[Real, Field(ge=0, lt=1)]
Schedule = Literal["cosine", "linear", "wsd", "constant"]
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


class TokenizerSection(Section):
    """The vocabulary: trained on the text, or a folder with a tokenizer.json.

    `split` is the rule by which text is cut before pieces merge, and `digits` how many digits
    stand together at most; of an adopted vocabulary both are its own.
    """

    vocab_size: Annotated[Whole, Field(ge=264, le=1_000_000)] | None = None
    path: str | None = None
    split: Literal["gpt2", "gpt4", "chinese"] = "gpt4"
    digits: Annotated[Literal[1, 3], BeforeValidator(_digits)] = 1


class Model(Section):
    """The shape: a target number of parameters, or any of its sizes."""

    params: Annotated[Whole, Field(ge=1000)] | None = None
    layers: PositiveInt | None = None
    width: PositiveInt | None = None
    heads: PositiveInt | None = None
    kv_heads: PositiveInt | None = None
    mlp_width: PositiveInt | None = None
    context: Annotated[Whole, Field(ge=8)] | None = None
    head_width: Annotated[Whole, Field(ge=2, multiple_of=2)] | None = None
    rope_theta: Positive = 10000.0
    norm_eps: Positive = 1e-6
    activation: Literal["swiglu", "relu2"] = "swiglu"
    qk_norm: bool = True
    tie_embeddings: bool | None = None


class Stage(Section):
    """What every stage shares.

    `tokens`, `epochs` and `steps` say how long it trains: one is enough, and where several are
    given the first to be reached ends the stage. Counts named `..._every` are in steps; 0 is
    never, as it is for `clip`, `ema` and `checkpoint_seconds`.
    """

    source_model: str | None = Field(default=None, alias="from")
    tokens: PositiveInt | None = None
    epochs: Positive | None = None
    steps: PositiveInt | None = None
    batch_tokens: PositiveInt | None = None
    micro_batch_tokens: PositiveInt | None = None
    learning_rate: Annotated[Real, Field(gt=0, le=1)] | None = None
    schedule: Schedule | None = None
    warmup_steps: Count | None = None
    final_fraction: Fraction | None = None
    weight_decay: NonNegative | None = None
    beta1: OpenFraction = 0.9
    beta2: OpenFraction = 0.95
    eps: Positive = 1e-8
    clip: NonNegative = 1.0
    ema: OpenFraction = 0.0
    validate_every: Count | None = None
    sample_every: Count | None = None
    checkpoint_every: Count | None = None
    checkpoint_seconds: Annotated[Seconds, Field(ge=0)] = 60.0
    keep_checkpoints: PositiveInt = 2
    log_every: PositiveInt | None = None


class Pretrain(Stage):
    """Next-token prediction on raw text."""


class Sft(Stage):
    """Next-token prediction on the responses of demonstrations."""


class Reward(Stage):
    """Bradley-Terry on comparisons. One epoch over `data.comparisons` unless said otherwise."""

    pairs_per_step: PositiveInt | None = None
    centring: NonNegative = 0.01
    language_coefficient: NonNegative = 0.0


class RL(Stage):
    """PPO or GRPO against the reward model.

    An iteration samples `rollout_batch` episodes and passes over them `epochs` times in
    `minibatches` updates each; `steps` counts the updates of the whole stage.
    """

    algorithm: Literal["ppo", "grpo"] = "ppo"
    reward_model: str | None = None
    episodes: PositiveInt | None = None
    rollout_batch: PositiveInt | None = None
    group: PositiveInt | None = None
    epochs: PositiveInt = 1
    minibatches: PositiveInt | None = None
    max_new_tokens: PositiveInt | None = None
    temperature: Positive = 1.0
    kl_coefficient: NonNegative = 0.05
    kl_target: Positive | None = None
    kl_horizon: Positive = 10000.0
    gamma: Annotated[Real, Field(gt=0, le=1)] = 1.0
    lam: Fraction = 0.95
    clip_range: Annotated[Real, Field(gt=0, lt=1)] = 0.2
    value_clip: Positive = 0.2
    value_coefficient: NonNegative = 0.1
    critic_learning_rate: Annotated[Real, Field(gt=0, le=1)] | None = None
    missing_end_penalty: Real = -1.0
    pretraining_mix: NonNegative = 0.0
    eps: Positive = 1e-5

    @model_validator(mode="after")
    def _groups_divide_the_batch(self) -> RL:
        if self.rollout_batch and self.group and self.rollout_batch % self.group:
            raise ValueError(
                f"rollout_batch={self.rollout_batch} is not a multiple of group={self.group}"
            )
        if self.algorithm == "grpo" and self.group == 1:
            raise ValueError("group=1 leaves GRPO nothing to compare with: write group=8")
        if self.algorithm == "grpo" and self.kl_target is not None:
            raise ValueError(
                f"kl_target={self.kl_target:g} moves the coefficient of a KL in the reward, and "
                "GRPO has its KL in the loss: leave kl_target out, or write algorithm=ppo"
            )
        if self.algorithm == "grpo" and self.pretraining_mix:
            raise ValueError(
                f"pretraining_mix={self.pretraining_mix:g} is PPO's (PPO-ptx): leave it out, or "
                "write algorithm=ppo"
            )
        return self


class Evaluation(Section):
    """How many held-out items each number is measured on."""

    documents: PositiveInt = 2000
    instructions: PositiveInt = 500
    pairs: PositiveInt = 1000
    prompts: PositiveInt = 500


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

    def needed(self) -> list[str]:
        """The stages that a whole run works on: the last one and all that it is made from.

        One whose product a model from outside replaces is left out, as pretraining is where
        `sft.from` is given.
        """
        wanted = {"rl"}
        if self.rl.reward_model is None:
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
            InputError: `data.pretrain` is missing.
        """
        asked = self.needed() if stages is None else stages
        needy = [s for s in asked if self.data.origin(PARTS[s]) == "made"]
        if self.data.pretrain in (None, []) and needy:
            raise InputError(
                f"data.pretrain is missing, and it is needed for {', '.join(needy)}: write "
                "data.pretrain=FOLDER (text, JSONL or JSON lists) or data.pretrain=world"
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
