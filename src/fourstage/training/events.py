"""What happened to a run that a person should know: a line for them, and a row of metrics.jsonl.

    {"step": 121, "tokens": 185856, "event": "skip", "cause": "loss", "value": 9.31, "usual": 3.02,
     "deviations": 14.2}

`event` is `warning`, `skip`, `rollback` or `lower_rate`; `cause` is `loss`, `gradient_norm` or
`not_finite`, which has a `detail` in the place of the numbers. A rollback stands at the step that
jumps over the `batches` [first, last] that it leaves out, with `from_step`, that spiked, and
`to_step`, the last that was kept.
"""

from __future__ import annotations

from typing import Any

from fourstage.errors import MachineError
from fourstage.training.counts import Counts
from fourstage.training.diagnosis import Diagnosis
from fourstage.training.guards import NotFinite
from fourstage.training.reactions import Rollback, Stability
from fourstage.training.update import Outcome


class Unstable(MachineError):
    """The run spiked again after it was rolled back as often as was allowed."""


def cause_of(outcome: Outcome, diagnosis: Diagnosis | None = None) -> dict[str, Any]:
    """Why a step was told of, as the row of its event holds it."""
    spike = outcome.spike
    if spike is None:
        detail = f"{outcome.fault}; {diagnosis}" if diagnosis else outcome.fault
        return {"cause": "not_finite", "detail": detail}
    return {
        "cause": spike.cause,
        "value": spike.value,
        "usual": spike.usual,
        "deviations": round(spike.deviations, 1),
    }


def words(outcome: Outcome, cause: dict[str, Any]) -> str:
    """The cause as part of a line."""
    if outcome.spike is not None:
        return f"spiked: {outcome.spike}"
    return (
        f"was not finite (loss {outcome.loss:.4g}, gradient norm {outcome.gradient_norm:.4g}; "
        f"first {cause['detail']})"
    )


def react(
    outcome: Outcome, cause: dict[str, Any], stability: Stability, counts: Counts
) -> tuple[str, dict[str, Any]]:
    """Does what is to be done about an odd step, once it is counted: the line and row of its event.

    Both are empty for a spike that is only told, and belongs to one that has been.

    Raises:
        NotFinite: too many steps in a row were not.
    """
    settings, step, what = stability.settings, counts.step, words(outcome, cause)
    if outcome.fault and counts.skipped_in_a_row >= settings.most_skipped:
        raise NotFinite(
            f"{counts.skipped_in_a_row} steps in a row were not finite; the last, step {step}, "
            f"{what}. Lower learning_rate, or look at the data of these steps; earlier "
            "checkpoints are intact"
        )
    row = {"step": step, "event": "warning" if outcome.applied else "skip", **cause}
    if settings.on_spike == "lower_rate":
        rate = stability.lower_rate()
        row |= {"event": "lower_rate", "rate": rate}
        done = f"the learning rate is {rate:g} of the schedule's from here on"
    elif not outcome.applied:
        done = "is skipped"
    elif stability.is_told(step):
        return "", {}
    else:
        done = "its update is applied"
    return f"step {step} {what} and {done}", row


def rollback_row(rollback: Rollback, step: int) -> dict[str, Any]:
    """The row of a rollback at the `step` that jumps over its batches.

    A later rollback to before this one leaves out its batches too, and then both stand there.
    """
    return {
        "step": step,
        "event": "rollback",
        "from_step": rollback.from_step,
        "to_step": rollback.to_step,
        "batches": [rollback.first, rollback.last],
        **rollback.cause,
    }
