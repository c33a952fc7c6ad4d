"""`fourstage tune`: short trials around the rules' values, and the rate and batch they propose."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from fourstage.cli.running import Out, Overrides, RecipeArgument, run_folder
from fourstage.errors import InputError

if TYPE_CHECKING:
    from fourstage.tuning.rangetest import Tuned

# Longer than the trials by more than this, a run wants a lower rate.
_MUCH_LONGER = 2.0
# The best rate falls as tokens to this power (Bjorck et al., Scaling Optimal LR Across Token
# Horizons, 2024).
_HORIZON_POWER = -0.32


def command(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    stage: Annotated[str, typer.Option(help="pretrain, sft or reward")] = "pretrain",
    out: Out = None,
    rates: Annotated[
        int, typer.Option(min=3, max=15, help="Learning rates, in steps of two around the rule's")
    ] = 5,
    batches: Annotated[
        int, typer.Option(min=1, max=7, help="Batches, in steps of two around the rule's")
    ] = 3,
    time: Annotated[str, typer.Option(help="For all trials together, such as 10m or 2h")] = "10m",
) -> None:
    """Try learning rates and batches in short runs of equal tokens, and propose the best.

    Uses the data of the run (--out, else runs/<name>), and leaves what it finds in its folder
    tune/<stage>. Run again, it goes on where it stopped; the run's stages are not touched.
    """
    seconds = _seconds(time)
    from fourstage.recipe import load

    loaded = load(recipe, overrides or [])
    from fourstage.devices import resolve_device
    from fourstage.parallel.group import Group
    from fourstage.tuning.rangetest import Asked, check_stage, range_test

    check_stage(stage)
    loaded.require_data([stage])
    group = Group.from_environment(resolve_device(loaded.device))
    asked = Asked(stage, rates, batches, seconds)
    try:
        tuned = range_test(loaded, run_folder(out, loaded.name), asked, group)
    finally:
        group.close()
    _tell(tuned)


def _seconds(text: str) -> float:
    """The time asked for.

    Raises:
        InputError: it is no time above 0.
    """
    from fourstage.recipe.numbers import parse_seconds

    try:
        seconds = parse_seconds(text)
    except ValueError as error:
        raise InputError(f"--time: {error}") from error
    if seconds <= 0:
        raise InputError(f"--time {text}: write a time above 0, such as 10m or 2h")
    return seconds


def _tell(tuned: Tuned) -> None:
    from fourstage.reporting.tables import print_table
    from fourstage.tuning.proposal import sweeps

    rows = [
        [
            sweep.batch,
            f"{sweep.fit.rate:.3g}",
            f"{sweep.fit.low:.3g} to {sweep.fit.high:.3g}",
            f"{sweep.fit.loss:.4f}",
            f"{sweep.tokens_per_second:,.0f}",
            "at an end: it may lie beyond" if sweep.fit.at_end else "",
        ]
        for sweep in sweeps(tuned.outcomes)
    ]
    print_table(["batch", "best rate", "95%", "loss there", "tokens/s", ""], rows)
    for line in _words(tuned):
        print(line)
    print(tuned.folder / "tune.html")


def _words(tuned: Tuned) -> list[str]:
    """What is proposed, what it gains, and what to know beside it."""
    proposal = tuned.proposal
    if proposal is None:
        return ["Every trial diverged: write a lower learning_rate and tune again."]
    centre = proposal.centre
    lines = ["", "  " + " ".join(tuned.overrides), ""]
    start = f"Rate {centre.rate:g} with batch {centre.batch:,}"
    if proposal.loses is None:
        lines.append(f"{start} diverged.")
    else:
        lines.append(
            f"{start} comes to a loss of {proposal.centre_loss:.4f}, the proposal to "
            f"{proposal.loss:.4f}{_change(proposal.loses)}."
        )
    if proposal.batch != centre.batch and proposal.centre_tokens_per_second:
        ratio = proposal.tokens_per_second / proposal.centre_tokens_per_second
        lines.append(f"Its batch trains at {ratio:.2f} times the speed.")
    times = tuned.stage_amount / tuned.amount
    if times > _MUCH_LONGER:
        longer = proposal.rate * times**_HORIZON_POWER
        lines.append(
            f"The stage is {times:.0f} times as long as a trial, and longer runs want lower "
            f"rates: falling as tokens^{_HORIZON_POWER} (Bjorck et al., 2024), this one would be "
            f"{longer:.2g} there. With more --time the trials come nearer to the stage."
        )
    return lines


def _change(loses: float) -> str:
    """By how much the centre's loss is above the proposal's, as the end of a sentence."""
    if abs(loses) < 0.0005:
        return ", which is the same"
    return f": {abs(loses):.1%} {'lower' if loses > 0 else 'higher'}"
