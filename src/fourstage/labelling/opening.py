"""Which set of completions a command labels: the one that stands there, or one drawn now."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path

from fourstage.errors import InputError, nearest
from fourstage.files import explained
from fourstage.labelling.drawing import CompletionSet, Drawn
from fourstage.labelling.labels import checked_name, lock
from fourstage.labelling.prompts import RUN_SOURCES, prompts_of

STAGES = ("sft", "rl")
FOLDER = "labels"
_PROMPTS = 50
_LONGEST = 256


@dataclass(frozen=True)
class Asked:
    """What a person wrote; None where they left it to the set, or to the defaults.

    Raises:
        InputError: a value is out of range.
    """

    stage: str | None = None
    source: str | None = None
    prompts: int | None = None
    k: int | None = None
    temperature: float | None = None
    max_new_tokens: int | None = None
    seed: int | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        faults = []
        if self.stage is not None and self.stage not in STAGES:
            faults.append(f"--stage {self.stage}: write sft or rl{nearest(self.stage, STAGES)}")
        if self.prompts is not None and self.prompts < 1:
            faults.append(f"--prompts {self.prompts}: write 1 or more")
        if self.k is not None and not 2 <= self.k <= 9:
            faults.append(f"--k {self.k}: write 2 to 9 completions a prompt")
        if self.temperature is not None and not 0 < self.temperature < float("inf"):
            faults.append(
                f"--temperature {self.temperature:g}: write more than 0; greedy completions are "
                "all the same"
            )
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            faults.append(f"--max-new-tokens {self.max_new_tokens}: write 1 or more")
        if faults:
            raise InputError(*faults)

    def told(self) -> dict[str, object]:
        """What a set is drawn with, as far as it was written."""
        names = ("stage", "source", "k", "temperature", "max_new_tokens", "seed")
        found = {name: getattr(self, name) for name in names}
        if self.source is not None and self.source not in RUN_SOURCES:
            found["source"] = Path(self.source).name
        return {name: value for name, value in found.items() if value is not None}


def set_folder(run: Path, name: str | None, stage: str | None) -> Path:
    """The folder of a set: `labels/<name>` of the run; the stage's name where none is given.

    Raises:
        InputError: it is no run, or has no model that writes.
    """
    if not run.is_dir() or not (run / "recipe.yaml").is_file():
        siblings = [each.name for each in run.parent.iterdir()] if run.parent.is_dir() else []
        near = nearest(run.name, siblings) if not run.is_dir() else ""
        raise InputError(f"{run} is not the folder of a run (it has no recipe.yaml){near}")
    if name is not None:
        return run / FOLDER / checked_name(name, "--set")
    if stage is None:
        found = [each for each in reversed(STAGES) if (run / each / "model").is_dir()]
        if not found:
            raise InputError(f"{run} holds no finished sft or rl model yet: run it on, then label")
        stage = found[0]
    return run / FOLDER / stage


def open_set(
    run: Path, folder: Path, asked: Asked, say: Callable[[str], None] = print
) -> CompletionSet:
    """The set in `folder`, with completions of as many prompts as are asked for.

    What was drawn stays as it is, whatever becomes of the model. More prompts are drawn from the
    same model only.

    Raises:
        InputError: the set was drawn otherwise, the model changed, or there are no prompts.
    """
    held = CompletionSet.read(folder)
    if held is not None:
        _check_same(held, asked)
    if held is None or (asked.prompts or 0) > held.tried:
        with _drawing_alone(folder):
            # Another process may have drawn meanwhile.
            held = CompletionSet.read(folder) or CompletionSet(folder, _drawn(run, folder, asked))
            _check_same(held, asked)
            _draw_more(run, held, asked.prompts or _PROMPTS, asked, say)
    if not held.items:
        raise InputError(f"{folder}: no prompt has two completions that differ; nothing to label")
    return held


@contextlib.contextmanager
def _drawing_alone(folder: Path) -> Generator[None]:
    """Raises `InputError` where another process draws this set's completions."""
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / ".drawing", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        lock(descriptor, f"{folder}: another process draws its completions: wait until it has")
        yield
    finally:
        os.close(descriptor)


def _drawn(run: Path, folder: Path, asked: Asked) -> Drawn:
    """How a set is drawn that does not stand there yet."""
    from fourstage.pipeline.lineage import model_hash

    stage = asked.stage or (folder.name if folder.name in STAGES else _newest(run))
    return Drawn(
        stage=stage,
        model=model_hash(_model(run, stage)),
        source=str(asked.told().get("source", RUN_SOURCES[0])),
        k=asked.k or 2,
        temperature=1.0 if asked.temperature is None else asked.temperature,
        max_new_tokens=asked.max_new_tokens or _longest(run),
        seed=asked.seed or 0,
    )


def _newest(run: Path) -> str:
    return "rl" if (run / "rl" / "model").is_dir() else "sft"


def _model(run: Path, stage: str) -> Path:
    from fourstage.interchange.resolve import resolve_model

    return resolve_model(run / stage)


def _longest(run: Path) -> int:
    """The longest response of the run's own rollouts, else a cautious one."""
    from fourstage.recipe import load

    return load(str(run / "recipe.yaml")).rl.max_new_tokens or _LONGEST


def _check_same(held: CompletionSet, asked: Asked) -> None:
    drawn = held.drawn.to_json()
    faults = [
        f"--{name.replace('_', '-')} {value}: the set in {held.folder} was drawn with "
        f"{drawn[name]}; leave it out, or write --set NAME for another set"
        for name, value in asked.told().items()
        if value != drawn[name]
    ]
    if faults:
        raise InputError(*faults)


def _draw_more(
    run: Path, held: CompletionSet, wanted: int, asked: Asked, say: Callable[[str], None]
) -> None:
    from fourstage.interchange.resolve import open_model
    from fourstage.pipeline.lineage import model_hash

    source, drawn = asked.source or held.drawn.source, held.drawn
    if source not in RUN_SOURCES and asked.source is None:
        raise InputError(f"--prompts {wanted}: more of {source} are needed; write --source FILE")
    folder = _model(run, drawn.stage)
    if held.tried and model_hash(folder) != drawn.model:
        raise InputError(
            f"{folder} is not the model any more that the set in {held.folder} was drawn from: "
            "write --set NAME to begin another, or leave --prompts out"
        )
    tasks = held.beyond(prompts_of(run, source, drawn.seed), wanted)
    if len(tasks) < wanted - held.tried:
        say(f"{source} has {held.tried + len(tasks)} different prompts: all of them are taken")
    if not tasks:
        return
    say(
        f"drawing {drawn.k} completions of each of {len(tasks)} prompts from {folder} "
        f"(temperature {drawn.temperature:g}, seed {drawn.seed})"
    )
    held.draw(open_model(folder, asked.device), tasks, say)
