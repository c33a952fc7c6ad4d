"""`fourstage inspect data | batch | rollout`: what goes in, token by token."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="See what is in data files, every token of a batch, or every token of a rollout.",
)
Run = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run")]


@app.command("batch")
def batch(
    run: Run,
    stage: Annotated[str, typer.Option(help="pretrain, sft, reward or rl")],
    step: Annotated[int | None, typer.Option(min=0, help="From 0; rl: a checkpoint's")] = None,
    documents: Annotated[int, typer.Option(min=1, help="How many to show")] = 8,
) -> None:
    """Every token of a stage's batch, with those that are trained marked."""
    from rich.console import Console

    from fourstage.reporting.batches import open_tokenizer, stage_batch
    from fourstage.reporting.inspection import print_batch
    from fourstage.reporting.runfiles import read_run

    read_run(run)
    found, rows = stage_batch(run, stage, step)
    print_batch(found, open_tokenizer(run), Console(highlight=False), rows=rows, most=documents)


@app.command("rollout")
def rollout(
    run: Run,
    step: Annotated[
        int | None, typer.Option(min=0, help="Of a checkpoint; else the newest")
    ] = None,
    episode: Annotated[int, typer.Option(min=0, help="The first episode to show")] = 0,
    episodes: Annotated[
        int | None, typer.Option(min=1, help="How many to show; 2, or 32 on a page")
    ] = None,
    colour: Annotated[
        str | None, typer.Option(help="advantage, KL, reward, value or ratio")
    ] = None,
    html: Annotated[
        Path | None, typer.Option(help="Write a page there, instead of the terminal")
    ] = None,
    model: Annotated[
        bool, typer.Option("--model/--no-model", help="Ask the checkpoint's weights too (now)")
    ] = True,
) -> None:
    """Every token of RL's rollouts: log-probabilities, KL, reward, value, advantage, ratio."""
    from rich.console import Console

    from fourstage.reporting.batches import open_tokenizer, resolved_recipe
    from fourstage.reporting.rollouts.episodes import chosen, episodes_of
    from fourstage.reporting.rollouts.held import load_rollout
    from fourstage.reporting.runfiles import read_run

    name = read_run(run).name
    at, found = load_rollout(run, step)
    most = episodes or (2 if html is None else 32)
    shown = [each.number for each in chosen(episodes_of(found), episode, most)]
    tokenizer = open_tokenizer(run)
    from fourstage.stages.revisiting import present_policy, with_outcomes, with_present

    if model:
        recipe = resolved_recipe(run)
        found = with_present(found, present_policy(run, recipe, tokenizer, at), recipe.rl)
    everything = episodes_of(with_outcomes(found, run, tokenizer, shown))
    words = f"rollouts held at step {at} of rl; all in nats" + (
        "; now is the policy of that step" if model else ""
    )
    if html is not None:
        from fourstage.files import write_text
        from fourstage.reporting.rollouts.page import rollout_page

        title = f"Rollouts of {name} at step {at}"
        told = [everything[number] for number in shown]
        write_text(html, rollout_page(everything, told, tokenizer, title, f"{words}.", colour))
        print(html)
        return
    from fourstage.reporting.rollouts.terminal import print_rollout

    console = Console(highlight=False)
    console.print(words, style="dim")
    print_rollout(everything, tokenizer, console, first=episode, most=most, colour=colour)


@app.command("data")
def data(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE...", help="Files, folders, or the folder of a run")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for programs")] = False,
    key: Annotated[str | None, typer.Option(help="The key of the text, as data.key")] = None,
    mapping: Annotated[
        list[str] | None, typer.Option("--map", metavar="OURS=THEIRS", help="As data.map")
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="A folder with a tokenizer, to count tokens")
    ] = None,
    context: Annotated[
        int | None, typer.Option(min=1, help="Tell what is longer than so many tokens")
    ] = None,
    against: Annotated[
        list[str] | None, typer.Option(help="Files whose texts the data must not hold")
    ] = None,
    examples: Annotated[int, typer.Option(min=0, help="Rows of each file to show")] = 1,
) -> None:
    """What each file is, every bad row with its line and reason, and its rows in numbers."""
    from fourstage.reporting.doctor import command

    command.inspect_data(
        files,
        as_json=as_json,
        mapping=command.mapping_of(key, mapping or []),
        tokenizer=tokenizer,
        context=context,
        against=against or [],
        examples=examples,
    )
