"""The section `rl`: an algorithm, what is changed of it, and what gives it numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from fourstage.errors import InputError, nearest
from fourstage.objectives.algorithms import ALGORITHMS, Algorithm, algorithm_of
from fourstage.recipe.data import Count, Fraction, NonNegative, Positive, PositiveInt
from fourstage.recipe.numbers import Real
from fourstage.recipe.preference import (
    COMPARING,
    DISTILLING,
    DistilSection,
    PreferenceSection,
    asks_reference,
    draws,
    faults,
    learns_otherwise,
    reads_comparisons,
)
from fourstage.recipe.rewards import RewardParts
from fourstage.recipe.rollouts import Rollouts, faults_of_rollouts

# What a recipe may change of an algorithm's row, by the row's own names.
_OF_THE_ROW = {
    "advantage": "advantage",
    "advantage_scale": "scale",
    "ratio": "ratio",
    "surrogate": "surrogate",
    "clip_low": "clip_low",
    "clip_high": "clip_high",
    "dual_clip": "dual_clip",
    "aggregation": "aggregation",
    "kl": "kl",
    "kl_estimator": "kl_estimator",
    "kl_summed": "kl_summed",
    "kl_weighted": "kl_weighted",
    "kl_coefficient": "kl_coefficient",
}
# What of `step_rewards` is paid where steps end; the others are of the whole response.
PLACING = ("each", "progress")
# Advantages that know what is paid on the way.
_BY_TOKEN = ("critic", "rewards_to_go", "group_rewards_to_go")
_CLIPS = ("clip_range", "clip_low", "clip_high")
_OF_A_CORRECTION = ("correction_level", "correction_low", "correction_high")
# Numbers of a critic, and of a KL with the reference.
_OF_A_CRITIC = ("lam", "value_clip", "value_coefficient", "critic_learning_rate")
_OF_A_KL = ("kl", "kl_estimator", "kl_summed", "kl_weighted")
# key -> the one without which it is not read.
_OF_ANOTHER = {"kl_horizon": "kl_target", "dynamic_rounds": "dynamic_sampling"}
# Score of a response without an end, in place of the reward model's.
_MISSING_END = -1.0


def _known(algorithm: str) -> str:
    names = (*ALGORITHMS, *COMPARING, *DISTILLING)
    if algorithm not in names:
        raise ValueError(f"must be one of {', '.join(names)}{nearest(algorithm, names)}")
    return algorithm


class RL(Rollouts):
    """Policy optimisation against a reward model, other rewards, or both; or a loss on comparisons,
    or the best of its own responses (`recipe/preference.py`).

    An iteration samples `rollout_batch` episodes and passes over them `epochs` times in
    `minibatches` updates each; `steps` counts the updates of the whole stage.

    What is left out of `advantage` to `kl_weighted` is as the algorithm has it (`row`); those that
    compare or imitate have none of these.

    Attributes:
        online: whether a loss on comparisons compares the policy's own responses.
        clip_range: both `clip_low` and `clip_high`.
        entropy_coefficient: of the mean entropy of a token, which is rewarded in the loss.
        value_warmup: iterations that train the critic alone.
        reference_reset: iterations after which the reference becomes the policy of that moment.
        correction: weights for a sampler that rounds otherwise than the trainer; bounds that are
            left out are the published ones.
        overlong: of responses that reach `max_new_tokens`: `penalty`, a reward that falls to -1
            over the last `overlong_buffer` tokens; `leave_out`, no part in the loss.
        dynamic_sampling: whether groups of equal rewards are drawn again from further prompts, up
            to `dynamic_rounds` times an iteration.
        missing_end_penalty: what counts in place of the reward model's score without an end.
        watch_model: a second reward model, which is asked and pays nothing.
        step_rewards: what is made of the scores of a process reward model, one a step: paid where
            each step ends, as they are or as progress, or one number for the whole.
    """

    algorithm: Annotated[str, AfterValidator(_known)] = "ppo"
    online: bool | None = None
    preference: PreferenceSection | None = None
    distil: DistilSection | None = None
    reward_model: str | None = None
    watch_model: str | None = None
    step_rewards: Literal["each", "progress", "least", "mean", "product", "last"] | None = None
    rewards: RewardParts = Field(default_factory=list)
    episodes: PositiveInt | None = None
    rollout_batch: PositiveInt | None = None
    group: PositiveInt | None = None
    epochs: PositiveInt = 1
    minibatches: PositiveInt | None = None
    max_new_tokens: PositiveInt | None = None
    temperature: Positive = 1.0
    advantage: (
        Literal["critic", "rewards_to_go", "group_rewards_to_go", "group", "others"] | None
    ) = None
    advantage_scale: Literal["none", "group", "batch"] | None = None
    ratio: Literal["token", "sequence_mean", "sequence_sum"] | None = None
    surrogate: Literal["clipped", "cispo", "plain"] | None = None
    clip_range: Annotated[Real, Field(gt=0, lt=1)] | None = None
    clip_low: Fraction | None = None
    clip_high: NonNegative | None = None
    dual_clip: Annotated[Real, Field(gt=1)] | None = None
    aggregation: Literal["token_mean", "sequence_mean", "sequence_sum", "constant"] | None = None
    kl: Literal["reward", "loss"] | None = None
    kl_estimator: Literal["k1", "k2", "k3"] | None = None
    kl_summed: bool | None = None
    kl_weighted: bool | None = None
    kl_coefficient: NonNegative | None = None
    kl_target: Positive | None = None
    kl_horizon: Positive = 10000.0
    entropy_coefficient: NonNegative = 0.0
    gamma: Annotated[Real, Field(gt=0, le=1)] = 1.0
    lam: Fraction = 0.95
    value_clip: Positive = 0.2
    value_coefficient: NonNegative = 0.1
    value_warmup: Count = 0
    critic_learning_rate: Annotated[Real, Field(gt=0, le=1)] | None = None
    reference_reset: Count = 0
    correction: Literal["tis", "icepop"] | None = None
    correction_level: Literal["token", "sequence"] | None = None
    correction_low: Fraction | None = None
    correction_high: Annotated[Real, Field(gt=1)] | None = None
    overlong: Literal["penalty", "leave_out"] | None = None
    overlong_buffer: PositiveInt | None = None
    missing_end_penalty: Real = _MISSING_END
    dynamic_sampling: bool = False
    dynamic_rounds: PositiveInt = 10
    pretraining_mix: NonNegative = 0.0
    eps: Positive = 1e-5

    def row(self) -> Algorithm:
        """The algorithm with what the section changes of it; one of policy optimisation.

        Raises:
            InputError: changes that do not go together.
        """
        changes = {
            name: value
            for key, name in _OF_THE_ROW.items()
            if (value := getattr(self, key)) is not None
        }
        if self.clip_range is not None:
            changes |= {"clip_low": self.clip_range, "clip_high": self.clip_range}
        row = ALGORITHMS[self.algorithm]
        if changes.get("aggregation", row.aggregation) == "constant":
            turns = self.environment.turns if self.environment is not None else 1
            changes["constant_length"] = turns * (self.max_new_tokens or 1)
        return algorithm_of(self.algorithm, **changes)

    @property
    def is_on_policy(self) -> bool:
        """Whether each update learns from what the policy drew just before, and no reward asks how
        likely that was: then the pass of the update tells it. Of a resolved section."""
        row = self.row()
        pays = row.kl == "reward" and row.needs_reference
        elsewhere = bool(self.behind) or self.engine is not None
        return self.epochs == 1 and self.minibatches == 1 and not pays and not elsewhere

    @property
    def needs_critic(self) -> bool:
        return not learns_otherwise(self) and self.row().needs_critic

    @property
    def needs_groups(self) -> bool:
        """Whether several responses to a prompt are compared."""
        return draws(self) if learns_otherwise(self) else self.row().needs_groups

    @property
    def needs_reference(self) -> bool:
        """Whether training asks how likely a response was before."""
        return asks_reference(self) if learns_otherwise(self) else self.row().needs_reference

    @property
    def asks_others(self) -> bool:
        """Whether anything but a reward model gives numbers."""
        return bool(self.rewards) or self.environment is not None

    @property
    def needs_reward_model(self) -> bool:
        if reads_comparisons(self) or self.environment is not None:
            return False
        return not self.rewards or any(part.kind == "model" for part in self.rewards)

    @model_validator(mode="after")
    def _goes_together(self) -> RL:
        found = faults(self)
        if not learns_otherwise(self):
            found += self._of_the_row()
        found += [*self._of_rollouts(), *faults_of_rollouts(self), *self._of_rewards()]
        if not learns_otherwise(self):
            found += self._of_a_correction()
            found = found or [*self._of_models(), *self._unread()]
        found = found or [*self._of_steps()]
        if found:
            raise ValueError("; ".join(found))
        return self

    def _of_the_row(self) -> Iterator[str]:
        given = [key for key in _CLIPS if getattr(self, key) is not None]
        if "clip_range" in given and len(given) > 1:
            yield f"{' and '.join(given)} say the same twice: write clip_range, or the other two"
            return
        try:
            row = self.row()
        except InputError as error:
            # The row's own name of the key.
            yield from (fault.replace("scale=", "advantage_scale=") for fault in error.faults)
            return
        if row.surrogate == "plain" and given:
            yield f"{given[0]} clips nothing with surrogate=plain: leave it out"
        in_loss = row.kl == "loss" and row.needs_reference
        if in_loss and row.kl_estimator == "k1" and not row.kl_weighted:
            yield (
                "kl=loss with kl_estimator=k1 has a gradient of 0 on average, and holds nothing: "
                "write kl_estimator=k2, or kl=reward"
            )
        if self.kl_target is not None and (row.kl == "loss" or not row.needs_reference):
            where = "in the loss" if row.needs_reference else "at 0"
            yield (
                f"kl_target={self.kl_target:g} moves the coefficient of a KL in the reward, and "
                f"{self.algorithm} has its KL {where}: leave kl_target out, or write kl=reward and "
                "kl_coefficient=0.05"
            )

    def _of_rollouts(self) -> Iterator[str]:
        if self.adapter is not None and self.adapter.dropout:
            yield (
                f"adapter.dropout={self.adapter.dropout:g} would train another policy than the one "
                "that responses are drawn from: write 0"
            )
        if self.rollout_batch and self.group and self.rollout_batch % self.group:
            yield f"rollout_batch={self.rollout_batch} is not a multiple of group={self.group}"
        if self.overlong_buffer is not None:
            if self.overlong != "penalty":
                yield (
                    f"overlong_buffer={self.overlong_buffer} is of overlong=penalty: write that, "
                    "or leave it out"
                )
            elif self.max_new_tokens and self.overlong_buffer > self.max_new_tokens:
                yield (
                    f"overlong_buffer={self.overlong_buffer} is more than "
                    f"max_new_tokens={self.max_new_tokens}: write at most that"
                )

    def _of_rewards(self) -> Iterator[str]:
        if self.rewards and not any(part.weight for part in self.rewards):
            yield "rewards have no part with a weight above 0: nothing would be learned"
        if reads_comparisons(self):
            yield from self._of_drawn_rewards()
            return
        if self.needs_reward_model or self.environment is not None:
            return
        told = {
            key: value
            for key in ("reward_model", "watch_model", "step_rewards")
            if (value := getattr(self, key)) is not None
        }
        if self.missing_end_penalty != _MISSING_END:
            told["missing_end_penalty"] = f"{self.missing_end_penalty:g}"
        for key, value in told.items():
            yield (
                f"{key}={value} is of a reward model, and rewards have no part of kind model: add "
                "one, or leave it out"
            )

    def _of_drawn_rewards(self) -> Iterator[str]:
        for key in ("watch_model", "step_rewards"):
            if getattr(self, key) is not None:
                yield (
                    f"{key} is of responses that are drawn, and {self.algorithm} draws none: leave "
                    "it out, or write online=true"
                )

    def _of_steps(self) -> Iterator[str]:
        if self.step_rewards not in PLACING:
            return
        if learns_otherwise(self) or self.row().advantage not in _BY_TOKEN:
            yield (
                f"step_rewards={self.step_rewards} pays a response step by step, and "
                f"{self.algorithm} compares whole ones: write step_rewards=least, or algorithm=ppo"
            )

    def _of_a_correction(self) -> Iterator[str]:
        given = [key for key in _OF_A_CORRECTION if getattr(self, key) is not None]
        if self.correction is None and given:
            yield f"{given[0]} is of a correction: write correction=tis, or leave it out"
        if self.correction_low == 1:
            yield "correction_low=1 shuts out a weight of 1: write less"

    def _of_models(self) -> Iterator[str]:
        """What an algorithm without a critic, groups or a reference has no use for."""
        row = self.row()
        if row.needs_groups and self.group == 1:
            yield f"group=1 leaves {self.algorithm} nothing to compare with: write group=8"
        if self.dynamic_sampling and not row.needs_groups:
            yield (
                f"dynamic_sampling draws groups of equal rewards again, and {self.algorithm} "
                "compares none: leave it out, or write algorithm=dapo"
            )
        if self.value_warmup and not row.needs_critic:
            yield (
                f"value_warmup={self.value_warmup} trains a critic, and {self.algorithm} has none: "
                "leave it out, or write algorithm=ppo"
            )
        if self.value_warmup and self.weight_decay:
            yield (
                f"weight_decay={self.weight_decay:g} would change the policy while value_warmup "
                "trains the critic alone: write weight_decay=0"
            )
        if self.reference_reset and not row.needs_reference:
            yield (
                f"reference_reset={self.reference_reset} is of a reference, which "
                "kl_coefficient=0 does without: leave one of the two out"
            )
        if self.reference_reset and self.adapter is not None:
            yield (
                f"reference_reset={self.reference_reset} changes the reference, which with an "
                "adapter is the frozen model beneath it: leave one of the two out"
            )

    def _unread(self) -> Iterator[str]:
        """Numbers that nothing would read."""
        row, given = self.row(), self.changed()
        for key in _OF_A_CRITIC:
            if key in given and not row.needs_critic:
                yield (
                    f"{key} is of a critic, and {self.algorithm} has none: leave it out, or write "
                    "algorithm=ppo"
                )
        if "gamma" in given and row.advantage not in _BY_TOKEN:
            yield (
                f"gamma={self.gamma:g} discounts what is paid token by token, and "
                f"{self.algorithm} rewards whole responses: leave it out"
            )
        for key in _OF_A_KL:
            if key in given and not row.needs_reference:
                yield (
                    f"{key} is of a KL with the reference, and {self.algorithm} has none here: "
                    "leave it out, or write kl_coefficient=0.05"
                )
        for key, other in _OF_ANOTHER.items():
            if key in given and not getattr(self, other):
                yield f"{key} is of {other}, which is not given: leave it out, or write {other} too"
