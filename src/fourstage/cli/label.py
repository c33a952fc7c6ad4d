"""`fourstage label`: compare a run's completions, in the terminal, on a page, or by a judge."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fourstage.errors import InputError, nearest

if TYPE_CHECKING:
    from fourstage.labelling.drawing import CompletionSet, Item
    from fourstage.labelling.judge import Judge
    from fourstage.labelling.labels import LabelFile
    from fourstage.labelling.session import Session

_ME = "me"


def command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run")],
    stage: Annotated[
        str | None, typer.Option(help="Whose completions: sft or rl; else the last there is")
    ] = None,
    prompts: Annotated[
        int | None, typer.Option(help="How many prompts; 50, or what the set holds")
    ] = None,
    k: Annotated[int | None, typer.Option(help="Completions a prompt, 2 to 9; else 2")] = None,
    source: Annotated[
        str | None,
        typer.Option(
            help="rl (RL's training prompts, the default), held-out, or a FILE of prompts"
        ),
    ] = None,
    set_name: Annotated[
        str | None, typer.Option("--set", help="The set's name; else the stage's")
    ] = None,
    labeller: Annotated[
        str | None, typer.Option(help="Who labels: a file each; me, or the judge's model")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The comparisons; else labels/<set>/ in the run")
    ] = None,
    form: Annotated[
        str | None, typer.Option(help="pairs (the default for two) or rankings (for more)")
    ] = None,
    page: Annotated[bool, typer.Option("--page", help="Label on a page of this machine")] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of the page; 0 is a free one")] = 0,
    judge: Annotated[
        str | None, typer.Option(help="URL of an OpenAI-compatible server, such as http://HOST/v1")
    ] = None,
    judge_model: Annotated[
        str | None, typer.Option(help="The model as the server calls it")
    ] = None,
    judge_key_env: Annotated[
        str | None, typer.Option(help="The environment variable that holds the key")
    ] = None,
    judge_seconds: Annotated[float, typer.Option(min=0.1, help="A request may take")] = 60.0,
    judge_retries: Annotated[int, typer.Option(min=0, help="Of a request that failed")] = 4,
    judge_workers: Annotated[int, typer.Option(min=1, max=64, help="Requests at a time")] = 4,
    judge_requests: Annotated[
        int | None, typer.Option(min=2, help="At most so many now; two a pair")
    ] = None,
    judge_tokens: Annotated[int, typer.Option(min=8, help="Longest answer; more to think")] = 512,
    criteria: Annotated[str | None, typer.Option(help="What the judge prefers, in words")] = None,
    temperature: Annotated[float | None, typer.Option(help="Of the completions; else 1")] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Longest completion; else that of the run's RL")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of prompts, completions and order")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps")] = "auto",
    summary: Annotated[
        bool, typer.Option("--summary", help="Label nothing: agreement and counts alone")
    ] = False,
) -> None:
    """Compare a run's completions, and write comparisons for the reward stage.

    Completions are drawn once and kept in RUN/labels; the same command goes on where it stopped.
    Train on them with data.preferences=FILE.
    """
    from fourstage.labelling.opening import Asked, open_set, set_folder
    from fourstage.labelling.session import Session

    _check_modes(page, judge, judge_model, summary, form)
    asked = Asked(stage, source, prompts, k, temperature, max_new_tokens, seed, device)
    folder = set_folder(run, set_name, stage)
    name = _labeller(labeller, judge_model)
    if summary:
        _tell(_existing(folder), run)
        return
    judging = None
    if judge is not None and judge_model is not None:
        from fourstage.labelling.judge import CRITERIA, Judge
        from fourstage.labelling.service import ChatService

        # Checked before anything is drawn.
        service = ChatService(judge, judge_model, judge_key_env, judge_seconds, judge_retries)
        judging = Judge(service, criteria or CRITERIA, judge_tokens)
    held = open_set(run, folder, asked)
    from fourstage.labelling.labels import LabelFile
    from fourstage.labelling.results import labels_path

    with LabelFile(labels_path(folder, name)) as labels:
        _check_labels(held, labels, judging is not None, name)
        items = held.items[:prompts]
        try:
            if judging is not None:
                judging.keep(folder / f"{name}.judge.json")
                _let_judge(judging, items, labels, judge_workers, judge_requests)
            else:
                _label(Session(items, labels, name, held.drawn.seed), page, port)
        finally:
            _leave(held, run, name, out, form)
    _tell(held, run)


def _check_modes(
    page: bool, judge: str | None, judge_model: str | None, summary: bool, form: str | None
) -> None:
    from fourstage.labelling.ranks import FORMS

    faults = []
    if (judge is None) != (judge_model is None):
        faults.append("--judge URL and --judge-model NAME belong together: write both")
    chosen = [("--page", page), ("--judge", judge is not None), ("--summary", summary)]
    told = [option for option, is_told in chosen if is_told]
    if len(told) > 1:
        faults.append(f"{' and '.join(told)} exclude each other: write one of them")
    if form is not None and form not in FORMS:
        faults.append(f"--form {form}: write {' or '.join(FORMS)}{nearest(form, FORMS)}")
    if faults:
        raise InputError(*faults)


def _labeller(name: str | None, judge_model: str | None) -> str:
    """The name that the labels are kept under."""
    from fourstage.labelling.labels import checked_name

    if name is None and judge_model is not None:
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", judge_model).strip("-._")[:64] or "judge"
    return checked_name(name or _ME, "--labeller")


def _existing(folder: Path) -> CompletionSet:
    from fourstage.labelling.drawing import CompletionSet

    held = CompletionSet.read(folder)
    if held is None:
        raise InputError(f"{folder} holds no completions yet: label without --summary first")
    return held


def _check_labels(held: CompletionSet, labels: LabelFile, by_judge: bool, name: str) -> None:
    """The labels that stand are of these completions, and of one kind of labeller.

    A person and a judge under one name would be taken for one labeller.
    """
    from fourstage.labelling.summary import read_labelled

    read_labelled(held, name, labels.path)
    told = {bool(label.said) for label in labels.labels}
    if told - {by_judge}:
        other = "a person" if by_judge else "a judge"
        raise InputError(
            f"--labeller {name}: {labels.path} holds labels of {other}; write another name"
        )


def _let_judge(
    judge: Judge, items: list[Item], labels: LabelFile, workers: int, most_requests: int | None
) -> None:
    from fourstage.labelling.judge import judge_pairs

    # Told before it is sent, also through a pipe.
    say = partial(print, flush=True)
    judge_pairs(judge, items, labels, say, workers=workers, most_requests=most_requests)


def _label(session: Session, page: bool, port: int) -> None:
    """A person's session, until all is labelled or they stop."""
    if not page:
        from fourstage.labelling.terminal import label_in_terminal

        label_in_terminal(session)
        return
    from fourstage.labelling.pageserver import LabelServer

    server = LabelServer(session, port)
    print(f"open {server.url}")
    print("(for this machine alone; stop on the page, or with Ctrl-C)", flush=True)
    try:
        server.wait()
    except KeyboardInterrupt:
        print("stopped: the same command goes on here")


def _leave(held: CompletionSet, run: Path, name: str, out: Path | None, form: str | None) -> None:
    """Writes the comparisons of all labels that there are, also where the session was cut off."""
    from fourstage.labelling.results import write_comparisons

    path, count = write_comparisons(held, name, run.resolve().name, out, form)
    print(f"{count} comparisons: data.preferences={path}" if count else "no comparisons yet")


def _tell(held: CompletionSet, run: Path) -> None:
    from fourstage.labelling.results import words_of
    from fourstage.labelling.summary import summarise

    for line in words_of(summarise(held, run)):
        print(line)
