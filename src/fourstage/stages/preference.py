"""Learning from comparisons, or from good and bad responses, without rollouts: DPO, KTO and kin.

The reference is asked for each batch on its way to the trainer. It is frozen and the whole batch is
read before it is cut, so a resumed run and one with other micro-batches get the same numbers, and
nothing has to be stored. With `rl.online` the policy's own responses are compared
(`stages/online.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from fourstage.data.batch import Batch
from fourstage.data.compared import (
    BAD,
    GOOD,
    compared,
    judged,
    labels_of,
    last_response,
    pair_rows,
    pairs_of,
    prompts_of,
)
from fourstage.data.sources import EndlessStream
from fourstage.data.store import Store
from fourstage.errors import InputError
from fourstage.evaluation.estimates import Numbers
from fourstage.evaluation.implicit import objective_on, pairs_in_order
from fourstage.evaluation.scoring import trained_logprobs
from fourstage.model.actor_critic import ActorCritic
from fourstage.model.transformer import Transformer
from fourstage.objectives.kto import KTO
from fourstage.objectives.logprobs import logprobs
from fourstage.objectives.mismatching import with_mismatches
from fourstage.objectives.objective import Objective
from fourstage.objectives.preference import DirectPreference
from fourstage.objectives.preferences import preference_of
from fourstage.parallel.group import Group
from fourstage.recipe import RL
from fourstage.recipe.preference import PreferenceSection, has_reference, reads_comparisons
from fourstage.stages.context import StageContext
from fourstage.stages.datafiles import sample_tasks
from fourstage.stages.episodes import Players, of_each
from fourstage.stages.iterating import Iterations
from fourstage.stages.judging import Judge
from fourstage.stages.models import aside
from fourstage.stages.policy_guards import ratio_tolerance, trains_responses
from fourstage.stages.samples import answers
from fourstage.tasks import Task
from fourstage.training.contracts import Guard
from fourstage.training.guards import documents_do_not_leak, first_ratio_is_one
from fourstage.training.trainer import TrainResult

# Held-out comparisons that the periodic validation reads.
_WATCHED = 200


class Finishing:
    """What a batch of responses gets before it is trained on: strangers for KTO, the reference.

    Args:
        reference: None where the loss has none.
        most_cells: of a document, such as the context.
        shares_weights: whether the reference is the policy without its adapter.

    Attributes:
        whole: gives a context in which the module in training holds its present weights.
    """

    def __init__(
        self,
        reference: Transformer | None,
        strangers: bool,
        most_cells: int,
        group: Group,
        shares_weights: bool = False,
    ):
        self.reference, self.strangers, self.most_cells = reference, strangers, most_cells
        self.group, self.shares_weights = group, shares_weights
        self.whole: Callable[[], AbstractContextManager] = nullcontext

    def __call__(self, batch: Batch) -> Batch:
        if self.strangers:
            batch = with_mismatches(batch, self.most_cells)
        if self.reference is None:
            return batch
        reference = self.reference
        with self.whole() if self.shares_weights else nullcontext():
            found = of_each(self.group, batch, lambda part: trained_logprobs(reference, part))
        batch.streams["ref_logprobs"] = found
        return batch


class GivenSource:
    """Comparisons, or single judgements, in a fresh order each epoch; a function of the step.

    Args:
        store: comparisons or rankings, or with `labels` single responses.
        labels: [rows] 1 or -1. per_step: comparisons, or judgements, a step.
        apart: whether the sides of a comparison are a good response and a bad one, each for itself.
    """

    def __init__(
        self,
        store: Store,
        per_step: int,
        seed: int,
        finishing: Finishing,
        labels: np.ndarray | None = None,
        apart: bool = False,
    ):
        self.store, self.per_step, self.labels, self.apart = store, per_step, labels, apart
        self.finishing = finishing
        self.pairs = pair_rows(store) if labels is None else np.zeros((0, 2), np.int64)
        units = len(self.pairs) if labels is None else len(store)
        self._stream = EndlessStream(np.ones(units, np.int64), per_step, seed)

    @property
    def whole(self) -> Callable[[], AbstractContextManager]:
        return self.finishing.whole

    @whole.setter
    def whole(self, whole: Callable[[], AbstractContextManager]) -> None:
        self.finishing.whole = whole

    @property
    def most_cells(self) -> int:
        """Cells that no trained batch has more of."""
        longest = int(np.asarray(self.store.lengths).max(initial=1))
        return (2 if self.labels is None else 1) * self.per_step * longest

    def batch(self, step: int) -> Batch:
        return self.of(self._stream.at(step))

    def of(self, chosen: Sequence[int]) -> Batch:
        """The batch of the chosen comparisons or judgements."""
        return self.finishing(self.responses(chosen))

    def responses(self, chosen: Sequence[int]) -> Batch:
        """Those that were given alone."""
        chosen = list(chosen)
        if self.labels is not None:
            rows = [last_response(self.store[index]) for index in chosen]
            return judged(rows, self.labels[chosen].tolist())
        rows = pairs_of(self.store, self.pairs[chosen])
        return judged(rows, [GOOD, BAD] * len(chosen)) if self.apart else compared(rows)

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Nothing to restore: the batch depends on the step alone."""


def train(
    context: StageContext, players: Players, tasks: Sequence[Task], judge: Judge
) -> TrainResult:
    """Trains the policy of `players` on comparisons.

    Args:
        tasks: prompts to draw responses to, for `rl.online`.
        judge: what then orders the responses.
    """
    section = context.section
    finishing = _finishing(context, players, context.group)
    watched: Callable[[], dict[str, float]] | None = None
    if section.online:
        from fourstage.stages.online import online_source

        source = online_source(context, players, tasks, judge, finishing)
        objective = objective_of(section, *_weights(context, None))
    else:
        source = given_source(context.data, section, context.seed, finishing)
        objective = objective_of(section, *_weights(context, source.labels))
        watched = _validation(context, players, objective)
    checks = [trains_responses, documents_do_not_leak()]
    if finishing.reference is not None:
        checks.append(starts_at_reference(ratio_tolerance(context.device)))
    with ExitStack() as stack:
        if isinstance(source, Iterations):
            stack.enter_context(closing(source))
        if reads_comparisons(section) and players.reward_model is not None:
            # Nothing asks it while the policy trains, but for a few samples.
            stack.enter_context(aside(context.device, players.reward_model))
        return context.train(
            players.trained,
            objective,
            source,
            guards=checks,
            validate=watched,
            sample=lambda step: answers(
                context, players.trained.policy, sample_tasks(context), judge.alone()
            ),
        )


def objective_of(section: RL, desirable: float = 1.0, undesirable: float = 1.0) -> Objective:
    """The loss that `rl.algorithm` names, with the numbers of `rl.preference`."""
    told = section.preference or PreferenceSection()
    if section.algorithm == "kto":
        return KTO(told.beta or 0.1, desirable, undesirable)
    return DirectPreference(preference_of(section.algorithm, **told.changes()))


def order(context: StageContext, players: Players) -> Numbers:
    """`preference_accuracy`: share of held-out comparisons that the policy orders as labelled."""
    folder, section = context.data / "reward" / "validation", context.section
    if section.online or not folder.is_dir():
        return Numbers()
    store = Store.open(folder)
    pairs = pair_rows(store)[: context.recipe.evaluation.pairs]
    found = pairs_in_order(
        players.trained.policy,
        players.reference if has_reference(section) else None,
        compared(pairs_of(store, pairs)),
        by_token=section.algorithm in ("simpo", "orpo"),
    )
    return Numbers().add_means("preference_accuracy", found)


def starts_at_reference(tolerance: float) -> Guard:
    """A guard: before any update the policy gives each token the reference's probability."""

    def policy_logprobs(module: nn.Module, batch: Batch) -> Tensor:
        assert isinstance(module, ActorCritic)
        return logprobs(module.policy, batch)

    inner = first_ratio_is_one(policy_logprobs, tolerance)

    def guard(module: nn.Module, objective: Objective, batch: Batch) -> None:
        streams = {**batch.streams, "old_logprobs": batch.streams["ref_logprobs"]}
        inner(module, objective, replace(batch, streams=streams))

    return guard


def _finishing(context: StageContext, players: Players, group: Group) -> Finishing:
    section = context.section
    return Finishing(
        players.reference if has_reference(section) else None,
        section.algorithm == "kto",
        players.trained.policy.config.context,
        group,
        section.adapter is not None,
    )


def given_source(data: Path, section: RL, seed: int, finishing: Finishing) -> GivenSource:
    """The source of what was prepared: single judgements where those were given.

    Args:
        data: the run's prepared data. section: `rl` of a resolved recipe.
    """
    told: Any = section.preference
    labelled = data / "reward" / "labelled" / "train"
    if labelled.is_dir():
        store = Store.open(labelled)
        return GivenSource(store, 2 * told.pairs_per_step, seed, finishing, labels_of(store))
    store = Store.open(data / "reward" / "train")
    apart = section.algorithm == "kto"
    return GivenSource(store, told.pairs_per_step, seed, finishing, apart=apart)


def _weights(context: StageContext, labels: np.ndarray | None) -> tuple[float, float]:
    """Weights of good and bad responses: those given, else the rarer kind counts as the other.

    Raises:
        InputError: all are of one kind.
    """
    told = context.section.preference
    labels = np.array([GOOD, BAD]) if labels is None else labels
    good, bad = int((labels == GOOD).sum()), int((labels == BAD).sum())
    if not (good and bad):
        raise InputError(
            f"data.preferences calls all its responses {'good' if good else 'bad'}, and "
            "kto learns from the difference: give rows of both labels"
        )
    by_rule = (max(good, bad) / good, max(good, bad) / bad)
    given = (told.desirable, told.undesirable)
    if given == (None, None) and good != bad:
        context.say(
            f"  rl.preference.desirable = {by_rule[0]:.4g}, undesirable = {by_rule[1]:.4g}  "
            f"({good:,} good and {bad:,} bad responses count alike: Ethayarajh et al., 2024)"
        )
    desirable, undesirable = (
        by_rule[side] if weight is None else weight for side, weight in enumerate(given)
    )
    return desirable, undesirable


def _validation(
    context: StageContext, players: Players, objective: Objective
) -> Callable[[], dict[str, float]]:
    """Measures the objective on held-out comparisons or judgements; the reference is asked once."""
    held: list[Batch | None] = []

    def watch() -> dict[str, float]:
        if not held:
            # Only the process that writes measures: it asks the reference by itself.
            alone = _finishing(context, players, Group(device=context.device))
            held.append(_held_out(context, alone))
        return {} if held[0] is None else objective_on(players.trained, objective, held[0])

    return watch


def _held_out(context: StageContext, finishing: Finishing) -> Batch | None:
    """Some held-out comparisons or judgements; None where KTO would find no strangers in them."""
    labelled = context.data / "reward" / "labelled" / "validation"
    is_labelled = labelled.is_dir()
    store = Store.open(labelled if is_labelled else context.data / "reward" / "validation")
    labels = labels_of(store) if is_labelled else None
    source = GivenSource(store, 1, context.seed, finishing, labels, finishing.strangers)
    units = len(store) if is_labelled else len(source.pairs)
    found = source.responses(range(min(_WATCHED, units)))
    if finishing.strangers and len(prompts_of(found)) < 2:
        return None
    return finishing(found)
