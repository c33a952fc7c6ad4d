"""What the `rl` stage learns by beside rollouts: preferences, and the best of its own responses."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from fourstage.objectives.preferences import PREFERENCES
from fourstage.recipe.data import NonNegative, Positive, PositiveInt, Section
from fourstage.recipe.numbers import Real

if TYPE_CHECKING:
    from fourstage.recipe.rl import RL
    from fourstage.recipe.schema import Recipe

# Names of `rl.algorithm` that are no rows of the table of policy gradients.
COMPARING = (*PREFERENCES, "kto")
DISTILLING = ("bon", "raft")
# Fields of a stage that take more than these algorithms know.
_OF_KTO = ("desirable", "undesirable")
_OF_LOSSES = ("label_smoothing", "gamma", "by_length", "nll_coefficient")
# Fields of `rl` that policy gradients alone have, but for `kl_coefficient`: ready-made recipes
# give it, and it has no effect here.
_OF_POLICY_GRADIENTS = (
    "advantage",
    "advantage_scale",
    "ratio",
    "surrogate",
    "clip_range",
    "clip_low",
    "clip_high",
    "dual_clip",
    "aggregation",
    "kl",
    "kl_estimator",
    "kl_summed",
    "kl_weighted",
    "kl_target",
    "kl_horizon",
    "entropy_coefficient",
    "gamma",
    "lam",
    "value_clip",
    "value_coefficient",
    "value_warmup",
    "critic_learning_rate",
    "reference_reset",
    "correction",
    "correction_level",
    "correction_low",
    "correction_high",
    "dynamic_sampling",
    "dynamic_rounds",
    "pretraining_mix",
)
# And those of responses that are drawn.
_OF_RESPONSES = ("group", "missing_end_penalty", "overlong", "overlong_buffer")


class PreferenceSection(Section):
    """A loss on comparisons (docs/algorithms.md); what is left out is as in its paper.

    Attributes:
        pairs_per_step: comparisons a step, where they are those of `data.preferences`; of single
            judgements twice as many.
        label_smoothing: share of comparisons that are taken to be labelled the wrong way round.
        gamma: the margin of simpo.
        by_length: log-ratios a token in dpo, cdpo and hinge.
        nll_coefficient: of the next-token loss of the chosen responses.
        desirable, undesirable: weights of good and bad responses in kto; left out, the rarer kind
            weighs more, so that both count alike.
    """

    pairs_per_step: PositiveInt | None = None
    beta: Positive | None = None
    label_smoothing: Annotated[Real, Field(ge=0, lt=0.5)] | None = None
    gamma: NonNegative | None = None
    by_length: bool | None = None
    nll_coefficient: NonNegative | None = None
    desirable: NonNegative | None = None
    undesirable: NonNegative | None = None

    def changes(self) -> dict[str, float | bool]:
        """The fields of a loss that are given, by their names in `preference_of`."""
        told = {name: getattr(self, name) for name in ("beta", *_OF_LOSSES)}
        return {name: value for name, value in told.items() if value is not None}


class DistilSection(Section):
    """Which of the responses drawn are imitated.

    Attributes:
        n: responses to one prompt.
        keep: the best of them that are kept.
        rounds: how often responses are drawn anew from the policy, of `raft`; an iteration is one.
        threshold: the least reward, in units of the reward model, of a response that is kept.
    """

    n: Annotated[PositiveInt, Field(ge=2)] | None = None
    keep: PositiveInt = 1
    rounds: PositiveInt | None = None
    threshold: Real | None = None


def compares(section: RL) -> bool:
    """Whether the stage learns by a loss on comparisons, or on good and bad responses."""
    return section.algorithm in COMPARING


def distils(section: RL) -> bool:
    """Whether the stage imitates the best of responses that it draws."""
    return section.algorithm in DISTILLING


def reads_comparisons(section: RL) -> bool:
    """Whether the stage learns from `data.preferences`."""
    return compares(section) and not section.online


def takes_judgements(section: RL) -> bool:
    """Whether rows of `data.preferences` may be single responses, called good or bad."""
    return section.algorithm == "kto" and reads_comparisons(section)


def draws(section: RL) -> bool:
    """Whether the stage draws responses to learn from."""
    return not reads_comparisons(section)


def learns_otherwise(section: RL) -> bool:
    """Whether the algorithm is no row of the table of policy gradients."""
    return compares(section) or distils(section)


def has_reference(section: RL) -> bool:
    """Whether the loss compares with a reference."""
    known = PREFERENCES.get(section.algorithm)
    return known is None or known.has_reference


def asks_reference(section: RL) -> bool:
    """Whether a reference is asked while the stage learns, by the loss or for the KL alone."""
    return has_reference(section) or draws(section)


def refuse_other_rows(recipe: Recipe) -> None:
    """Checks that the rows of `data.preferences` are prepared as what the rl stage compares.

    Raises:
        ValueError: they are prepared for a reward model that learns from something else.
    """
    section, kind = recipe.rl, recipe.reward
    if not reads_comparisons(section):
        return
    name, is_own = section.algorithm, recipe.data.origin("preferences") == "files"
    if kind.objective == "binary" and takes_judgements(section) and is_own:
        return
    if kind.objective != "bradley_terry":
        raise ValueError(
            f"reward.objective={kind.objective} takes other rows of data.preferences than "
            f"rl.algorithm={name}, which compares: write reward.objective=bradley_terry"
        )
    if kind.heads:
        raise ValueError(
            f"reward.heads are of several kinds of comparisons, and rl.algorithm={name} learns "
            "from one: leave them out"
        )


def faults(section: RL) -> list[str]:
    """What of these keys does not fit the algorithm, each with what to write instead."""
    found, name = [], section.algorithm
    changed = section.changed()

    def given(keys: Iterable[str]) -> list[str]:
        return [key for key in keys if key in changed and getattr(section, key)]

    if section.preference is not None and not compares(section):
        found.append(
            f"preference is of {', '.join(COMPARING)}, not {name}: leave it out, or write "
            "algorithm=dpo"
        )
    if section.distil is not None and not distils(section):
        found.append(
            f"distil is of {' and '.join(DISTILLING)}, not {name}: leave it out, or write "
            "algorithm=raft"
        )
    if section.online and not compares(section):
        found.append(
            f"online=true is of {', '.join(COMPARING)}; {name} draws responses anyway: leave it out"
        )
    if learns_otherwise(section):
        found += [
            f"{key} is of policy optimisation (ppo, grpo ...), and {name} has none: "
            + ("write preference.gamma" if (key, name) == ("gamma", "simpo") else "leave it out")
            for key in given(_OF_POLICY_GRADIENTS)
        ]
    if reads_comparisons(section):
        found += [
            f"{key} is of responses that are drawn, and {name} draws none: leave it out"
            for key in given(_OF_RESPONSES)
        ]
        if section.rewards:
            found.append(
                f"rewards are not read by {name}, which learns from given comparisons: leave them "
                "out, or write online=true"
            )
    if compares(section):
        found += _faults_of_preference(section)
    if distils(section):
        found += _faults_of_distilling(section)
    return found


def _faults_of_preference(section: RL) -> list[str]:
    from fourstage.errors import InputError
    from fourstage.objectives.preferences import preference_of

    told, name, found = section.preference or PreferenceSection(), section.algorithm, []
    if section.online and section.group == 1:
        found.append("group=1 leaves nothing to prefer: write group=8")
    if section.online and told.pairs_per_step is not None:
        found.append(
            f"preference.pairs_per_step={told.pairs_per_step} is of given comparisons, and with "
            "online=true a step is rollout_batch / group / minibatches pairs: leave it out"
        )
    if name == "kto" and told.pairs_per_step == 1:
        found.append(
            "preference.pairs_per_step=1 leaves kto no responses to other prompts to compare "
            "with: write 2 or more"
        )
    foreign = _OF_LOSSES if name == "kto" else _OF_KTO
    wrong = [key for key in foreign if getattr(told, key) is not None]
    found += [f"preference.{key} is not of {name}: leave it out" for key in wrong]
    if name != "kto" and not wrong:
        try:
            preference_of(name, **told.changes())
        except InputError as error:
            found += [f"preference.{fault}" for fault in error.faults]
    return found


def _faults_of_distilling(section: RL) -> list[str]:
    told, name, found = section.distil or DistilSection(), section.algorithm, []
    if section.group is not None and told.n not in (None, section.group):
        found.append(
            f"group={section.group} and distil.n={told.n} both say how many responses a prompt "
            "gets: leave group out"
        )
    n = told.n or section.group
    if n == 1:
        found.append(f"one response a prompt leaves {name} nothing to choose: write distil.n=8")
    if n is not None and told.keep > n:
        found.append(f"distil.keep={told.keep} is more than distil.n={n}: write at most {n}")
    if told.rounds and name == "bon":
        found.append("distil.rounds is of raft: bon draws from one model; leave it out")
    return found
