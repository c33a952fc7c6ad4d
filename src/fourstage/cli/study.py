"""`fourstage study overoptimisation`: experiments around a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Experiments around a finished run; run again, each goes on where it stopped.",
)


@app.callback()
def study() -> None:
    """Experiments around a finished run; run again, each goes on where it stopped."""


@app.command("overoptimisation")
def overoptimisation(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run")],
    out: Annotated[Path | None, typer.Option(help="The study's folder; else RUN/study")] = None,
    samples: Annotated[int, typer.Option("--n", help="Responses to each prompt")] = 256,
    prompts: Annotated[int, typer.Option(help="Held-out prompts")] = 64,
    kl: Annotated[
        str | None, typer.Option(help="KL coefficients to train by, such as 0.02,0.05,0.2")
    ] = None,
    comparisons: Annotated[
        str | None, typer.Option(help="Reward models of so many comparisons, such as 500,2000")
    ] = None,
    gold: Annotated[
        Path | None, typer.Option(help="A reward model that stands for the truth")
    ] = None,
    reward_model: Annotated[
        list[Path] | None, typer.Option(help="A further reward model to choose by; several")
    ] = None,
    by_each: Annotated[
        bool, typer.Option("--rl-by-each", help="RL against each of these reward models too")
    ] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto")] = "auto",
) -> None:
    """What more of the reward model's score does to gold, by best-of-n and by RL, and its laws.

    Draws responses of the SFT model, and reads what the rl stage wrote down. With --kl and
    --comparisons it also trains, each in a run of its own in the study's folder.
    """
    from fourstage.reporting.runfiles import read_run
    from fourstage.study.asked import Asked, numbers

    asked = Asked(
        samples=samples,
        prompts=prompts,
        coefficients=numbers(kl, "--kl"),
        comparisons=numbers(comparisons, "--comparisons", int),
        gold=gold,
        rivals=tuple(reward_model or ()),
        by_each=by_each,
        device=device,
    )
    read_run(run)
    from fourstage.reporting.overoptimisation import SHORT_HEADER, short_rows, unfitted
    from fourstage.reporting.tables import print_table
    from fourstage.study import overoptimisation as overoptimisation_of

    found = overoptimisation_of.study(run, out, asked)
    print_table(SHORT_HEADER, short_rows(found))
    for line in unfitted(found):
        print(line)
    print((out or run / "study") / overoptimisation_of.PAGE)
    if out is None:
        from fourstage.reporting import build_report

        print(build_report(run))
