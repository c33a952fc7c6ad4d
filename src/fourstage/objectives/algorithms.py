"""The algorithms of policy optimisation as data: an advantage, a ratio, a loss, a mean, a KL.

    algorithm = algorithm_of("dapo", clip_high=0.3)
    streams = estimate(algorithm, batch, scores, prompts)     # fourstage.objectives.estimating
    objective = PolicyGradient(algorithm, temperature=1.0)    # fourstage.objectives.policy_gradient

Imports no torch, so that a recipe can be checked without it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from fourstage.errors import InputError, nearest

# Advantages of each token, and those that are one number for all tokens of a response.
_OF_TOKENS = ("critic", "rewards_to_go", "group_rewards_to_go")
_OF_RESPONSES = ("group", "others")
CHOICES = {
    "advantage": (*_OF_TOKENS, *_OF_RESPONSES),
    "scale": ("none", "group", "batch"),
    "ratio": ("token", "sequence_mean", "sequence_sum"),
    "surrogate": ("clipped", "cispo", "plain"),
    "aggregation": ("token_mean", "sequence_mean", "sequence_sum", "constant"),
    "kl": ("reward", "loss"),
    "kl_estimator": ("k1", "k2", "k3"),
}


@dataclass(frozen=True)
class Algorithm:
    """One way to learn from scored responses; defaults are those of its paper.

    Attributes:
        advantage: `critic`, generalised advantage estimation; `group`, the reward less the mean of
            the responses to its prompt; `others`, less the mean of the other ones;
            `rewards_to_go`, what is still to come at each token; `group_rewards_to_go`, the same of
            scores less their group's mean.
        scale: what advantages are divided by: the deviation of the `group`, of the `batch`, or
            `none`. Of those of tokens, `batch` also takes off the mean.
        ratio: of each `token`, or of the response: `sequence_mean` of its tokens' log-ratios, or
            `sequence_sum`.
        surrogate: `clipped`, `cispo` (a clipped weight on the log-probability) or `plain`.
        clip_low, clip_high: ratios are cut at `1 - clip_low` and `1 + clip_high`.
        dual_clip: the ratio beyond which a bad token pulls no harder; None is nowhere.
        aggregation: `token_mean`, over the tokens of a step; `sequence_mean`, over responses the
            mean of each; `sequence_sum`, over responses the sum of each; `constant`, as that,
            divided by `constant_length`.
        constant_length: tokens; the longest response there can be.
        kl: where the distance to the reference is paid, in the `reward` or in the `loss`.
        kl_estimator: k1, k2 or k3. In the loss, k1 has no gradient on average.
        kl_summed: in the loss, of the whole response's log-ratio instead of each token's.
        kl_weighted: in the loss, times the ratio, which makes it unbiased off-policy too.
        kl_coefficient: beta; 0 does without a reference.
        source: the paper.
    """

    name: str
    advantage: str
    scale: Literal["none", "group", "batch"] = "none"
    ratio: Literal["token", "sequence_mean", "sequence_sum"] = "token"
    surrogate: Literal["clipped", "cispo", "plain"] = "clipped"
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None
    aggregation: Literal["token_mean", "sequence_mean", "sequence_sum", "constant"] = "token_mean"
    constant_length: int = 0
    kl: Literal["reward", "loss"] = "reward"
    kl_estimator: Literal["k1", "k2", "k3"] = "k1"
    kl_summed: bool = False
    kl_weighted: bool = False
    kl_coefficient: float = 0.0
    source: str = ""

    @property
    def needs_critic(self) -> bool:
        return self.advantage == "critic"

    @property
    def needs_groups(self) -> bool:
        """Whether several responses to a prompt are needed."""
        return self.advantage in ("group", "others", "group_rewards_to_go")

    @property
    def needs_reference(self) -> bool:
        return self.kl_coefficient > 0

    def check(self) -> None:
        """Refuses what does not go together.

        Raises:
            InputError: each fault with what to write instead.
        """
        faults = [
            f"{key}={value} is not one of {', '.join(known)}{nearest(value, known)}"
            for key, known in CHOICES.items()
            if (value := getattr(self, key)) not in known
        ]
        faults += [*self._of_advantages(), *self._of_clips(), *self._of_means()]
        if faults:
            raise InputError(*faults)

    def _of_advantages(self) -> Iterator[str]:
        if self.ratio != "token" and self.advantage in _OF_TOKENS:
            yield (
                f"ratio={self.ratio} is of whole responses and advantage={self.advantage} of "
                "tokens: write ratio=token, or advantage=group"
            )
        if self.advantage == "others" and self.scale != "none":
            yield (
                f"scale={self.scale} would bias the leave-one-out baseline of advantage=others: "
                "write scale=none, or advantage=group"
            )
        if self.advantage in _OF_TOKENS and self.scale == "group":
            yield (
                f"scale=group needs one advantage a response, and advantage={self.advantage} has "
                "one a token: write scale=batch"
            )

    def _of_clips(self) -> Iterator[str]:
        if not (0 <= self.clip_low <= 1 and self.clip_high >= 0):
            yield (
                f"clip_low={self.clip_low:g} and clip_high={self.clip_high:g} cut ratios at "
                "1 - clip_low and 1 + clip_high: write 0 to 1 for the first, at least 0 for the "
                "second"
            )
        if self.dual_clip is None:
            return
        if self.surrogate != "clipped":
            yield (
                f"dual_clip={self.dual_clip:g} is of surrogate=clipped, not {self.surrogate}: "
                "leave it out"
            )
        if self.dual_clip <= 1 + self.clip_high:
            yield (
                f"dual_clip={self.dual_clip:g} is inside of the clip range, which ends at "
                f"{1 + self.clip_high:g}: write a larger one, such as 3"
            )

    def _of_means(self) -> Iterator[str]:
        if self.aggregation == "constant" and self.constant_length < 1:
            yield (
                "aggregation=constant divides by constant_length, which is not given: write the "
                "longest response, max_new_tokens"
            )
        if self.kl_coefficient < 0:
            yield f"kl_coefficient={self.kl_coefficient:g} is below 0: write 0 or more"
        if self.kl == "reward" and (self.kl_summed or self.kl_weighted):
            yield "kl_summed and kl_weighted are of a KL in the loss: write kl=loss"


_TABLE = (
    Algorithm(
        "ppo",
        "critic",
        scale="batch",
        kl_coefficient=0.05,
        source="Schulman et al., 2017; Ouyang et al. (InstructGPT), 2022",
    ),
    Algorithm(
        "grpo",
        "group",
        scale="group",
        aggregation="sequence_mean",
        kl="loss",
        kl_estimator="k3",
        kl_coefficient=0.04,
        source="Shao et al. (DeepSeekMath), 2024",
    ),
    Algorithm(
        "dr-grpo",
        "group",
        aggregation="constant",
        source="Liu et al. (Understanding R1-Zero-Like Training), 2025",
    ),
    Algorithm(
        "dapo",
        "group",
        scale="group",
        clip_high=0.28,
        source="Yu et al., 2025",
    ),
    Algorithm(
        "gspo",
        "group",
        scale="group",
        ratio="sequence_mean",
        clip_low=3e-4,
        clip_high=4e-4,
        aggregation="sequence_mean",
        source="Zheng et al., 2025",
    ),
    Algorithm(
        "cispo",
        "group",
        scale="group",
        surrogate="cispo",
        clip_low=1.0,
        clip_high=4.0,
        source="MiniMax-M1, 2025; the bound of 5 from Khatri et al. (ScaleRL), 2025",
    ),
    Algorithm(
        "rloo",
        "others",
        ratio="sequence_sum",
        aggregation="sequence_sum",
        kl_coefficient=0.05,
        source="Ahmadian et al. (Back to Basics), 2024",
    ),
    Algorithm(
        "reinforce",
        "rewards_to_go",
        surrogate="plain",
        aggregation="sequence_sum",
        kl_coefficient=0.05,
        source="Williams, 1992",
    ),
    Algorithm(
        "reinforce++",
        "rewards_to_go",
        scale="batch",
        kl_coefficient=0.01,
        source="Hu et al., 2025",
    ),
    Algorithm(
        "reinforce++-baseline",
        "group_rewards_to_go",
        scale="batch",
        kl="loss",
        kl_estimator="k2",
        kl_coefficient=0.01,
        source="Hu et al., 2025",
    ),
)
ALGORITHMS = {each.name: each for each in _TABLE}


def algorithm_of(name: str, **changes: Any) -> Algorithm:
    """The algorithm of that name with some of its fields changed, checked.

    Raises:
        InputError: no such algorithm or field, or fields that do not go together.
    """
    if name not in ALGORITHMS:
        raise InputError(
            f"algorithm {name!r} is not one of {', '.join(ALGORITHMS)}{nearest(name, ALGORITHMS)}"
        )
    known = {field.name for field in fields(Algorithm)} - {"name", "source"}
    strange = [key for key in changes if key not in known]
    if strange:
        raise InputError(
            *(f"an algorithm has no field {key!r}{nearest(key, known)}" for key in strange)
        )
    algorithm = replace(ALGORITHMS[name], **changes)
    algorithm.check()
    return algorithm
