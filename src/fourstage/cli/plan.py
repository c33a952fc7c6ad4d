"""`fourstage plan`: what a run takes, or the largest model that fits a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fourstage.errors import InputError

if TYPE_CHECKING:
    from fourstage.planning import DataFacts
    from fourstage.planning.budget import SpeedOf
    from fourstage.planning.hardware import Gpus
    from fourstage.planning.speed import Speed
    from fourstage.recipe import Recipe

_FEWEST_PARAMS, _MOST_PARAMS = 1000, 1e15
_ASK = "write a recipe (quickstart), --params 1B, or --time 10m"
# What `--params` shows of the values that the rules gave; a recipe's plan shows all.
_MAIN = (
    "model.",
    "tokenizer.",
    "tokens",
    "steps",
    "learning_rate",
    "schedule",
    "pairs_per_step",
    "episodes",
    "rollout_batch",
)


def command(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RECIPE] [KEY=VALUE ...]",
            help="A recipe file or the name of a shipped one, then fields by their dotted path",
        ),
    ] = None,
    params: Annotated[
        str | None, typer.Option(metavar="N", help="What a model of this size takes, such as 1B")
    ] = None,
    time: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="The largest model that fits, such as 10m or 24h"),
    ] = None,
    hours: Annotated[
        str | None, typer.Option(metavar="H", help="The same in hours: --hours 24")
    ] = None,
    gpus: Annotated[
        str | None, typer.Option(metavar="NxNAME", help="On these instead of here, such as 8xH100")
    ] = None,
    price: Annotated[
        float | None, typer.Option(help="Of one of the --gpus for an hour; gives the cost")
    ] = None,
    mfu: Annotated[
        float | None,
        typer.Option(help="Share of their peak that the --gpus reach in training; 0.4 unless said"),
    ] = None,
    write: Annotated[
        Path | None, typer.Option(help="Where the recipe of --time goes; else it is printed")
    ] = None,
) -> None:
    """Tell what a recipe takes in tokens, FLOPs, memory and time, or what fits a time.

    fourstage plan RECIPE, or --params 1B, or --time 10m; each also with --gpus 8xH100.
    """
    recipe, overrides = _split(words or [])
    seconds = _seconds(time, hours)
    size = _params(params)
    _one_question(recipe, size, seconds)
    machine = _gpus(gpus, price, mfu)
    if write is not None:
        _writable(write, seconds)
    if recipe is not None:
        print(_of_recipe(recipe, overrides, machine, price))
    elif size is not None:
        print(_of_size(size, overrides, machine, price))
    elif seconds is not None:
        _of_time(seconds, overrides, machine, price, write)


def _split(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """The recipe, where the first word is one, and the overrides."""
    if words and ("=" not in words[0] or Path(words[0]).is_file()):
        return words[0], list(words[1:])
    return None, list(words)


def _params(text: str | None) -> int | None:
    """The number of parameters asked for.

    Raises:
        InputError: it is no number, or none a model can have.
    """
    from fourstage.recipe.numbers import parse_number

    if text is None:
        return None
    try:
        number = parse_number(text)
    except ValueError as error:
        raise InputError(f"--params: {error}") from error
    if not _FEWEST_PARAMS <= number <= _MOST_PARAMS:
        bound = f"at least {_FEWEST_PARAMS:,}" if number < _FEWEST_PARAMS else "at most 1000T"
        raise InputError(f"--params {text}: a model has {bound} parameters; write for example 1B")
    return round(number)


def _seconds(time: str | None, hours: str | None) -> float | None:
    """The time asked for.

    Raises:
        InputError: it is no time, not positive, or given twice.
    """
    from fourstage.recipe.numbers import parse_number, parse_seconds

    if time is not None and hours is not None:
        raise InputError(f"--time {time} and --hours {hours} say the same: write one of them")
    name, text = ("--time", time) if hours is None else ("--hours", hours)
    if text is None:
        return None
    try:
        seconds = parse_seconds(text) if hours is None else 3600 * parse_number(text)
    except ValueError as error:
        raise InputError(f"{name}: {error}") from error
    if seconds <= 0:
        raise InputError(f"{name} {text}: write a time above 0, such as 10m or 24h")
    return seconds


def _one_question(recipe: str | None, size: int | None, seconds: float | None) -> None:
    asked = [
        name
        for name, given in (
            (f"the recipe {recipe}", recipe),
            ("--params", size),
            ("--time", seconds),
        )
        if given is not None
    ]
    if not asked:
        raise InputError(f"nothing to plan: {_ASK}")
    if len(asked) > 1:
        raise InputError(f"{' and '.join(asked)} are different questions: {_ASK}, one at a time")


def _gpus(text: str | None, price: float | None, mfu: float | None) -> Gpus | None:
    """The accelerators asked for.

    Raises:
        InputError: they are unknown, or an option that needs them came without.
    """
    from fourstage.planning.hardware import USUAL_UTILISATION, parse_gpus

    if text is None:
        lonely = [name for name, given in (("--price", price), ("--mfu", mfu)) if given is not None]
        if lonely:
            raise InputError(f"{lonely[0]} is about accelerators: add --gpus 8xH100")
        return None
    if price is not None and not 0 <= price < float("inf"):
        raise InputError(f"--price {price:g}: write what one of them costs an hour, such as 2.50")
    return parse_gpus(text, USUAL_UTILISATION if mfu is None else mfu)


def _writable(path: Path, seconds: float | None) -> None:
    """Refuses a file that cannot become the recipe.

    Raises:
        InputError: with words on what to write.
    """
    if seconds is None:
        raise InputError("--write keeps the recipe that --time 10m makes: add --time")
    if path.suffix not in (".yaml", ".yml"):
        raise InputError(f"--write {path}: a recipe is YAML, write a name such as {path.stem}.yaml")
    if path.exists():
        raise InputError(f"--write {path}: it exists; write another name, or remove it")


def _of_recipe(name: str, overrides: list[str], gpus: Gpus | None, price: float | None) -> str:
    from fourstage.cli.planned import rules, shape, told
    from fourstage.planning.plan import make_plan
    from fourstage.recipe import load

    recipe = load(name, overrides)
    recipe.require_text_to_mix()
    facts, notes = _facts(recipe, gpus)
    speed = _at(recipe, facts, _speed_of(recipe, gpus))
    plan = make_plan(recipe, facts, speed)
    if recipe.data.pretrain is None and recipe.pretrain.source_model is None:
        notes.append("No text is named yet: data.pretrain=FOLDER gives its size to the plan.")
    text = told(plan, f"{recipe.name}, {shape(plan)}", notes, price)
    return "\n".join([text, rules(plan.derived)])


def _of_size(size: int, overrides: list[str], gpus: Gpus | None, price: float | None) -> str:
    from fourstage.cli.planned import rules, shape, told
    from fourstage.planning.budget import text_for
    from fourstage.planning.plan import make_plan

    recipe = _from_overrides([*overrides, f"model.params={size}"])
    if recipe.data.pretrain is None and text_for(size):
        recipe = _from_overrides([*overrides, f"model.params={size}", "data.pretrain=world"])
    facts, notes = _facts(recipe, gpus)
    plan = make_plan(recipe, facts, _at(recipe, facts, _speed_of(recipe, gpus)))
    text = told(plan, shape(plan), notes, price)
    main = [each for each in plan.derived if any(part in each.key for part in _MAIN)]
    return "\n".join([text, rules(main)])


def _of_time(
    seconds: float, overrides: list[str], gpus: Gpus | None, price: float | None, write: Path | None
) -> None:
    from fourstage.cli.planned import as_file, how_to_run, shape, told
    from fourstage.files import write_text
    from fourstage.planning.budget import fit

    base = _from_overrides(overrides)
    facts, notes = _facts(base, gpus)
    fitted = fit(seconds, base, facts, _speed_of(base, gpus), gpus)
    text = told(fitted.plan, shape(fitted.plan), notes + fitted.notes, price)
    if write is None:
        print(as_file(fitted, text, seconds, "FILE"), end="")
        return
    write_text(write, as_file(fitted, text, seconds, str(write)))
    print(f"{text}\nwritten: {write}\n  {how_to_run(fitted, str(write))}")


def _from_overrides(overrides: list[str]) -> Recipe:
    from fourstage.recipe import recipe_from
    from fourstage.recipe.loading import apply_overrides

    values: dict[str, Any] = {}
    faults = apply_overrides(values, overrides, {})
    if faults:
        raise InputError(*faults)
    return recipe_from(values)


def _facts(recipe: Recipe, gpus: Gpus | None) -> tuple[DataFacts, list[str]]:
    """What is known of data, models from outside and the machine, and what of it is not here.

    Raises:
        InputError: data or a model are not here, and no cluster is asked about that may have them.
    """
    from fourstage.data.counting import with_counts
    from fourstage.data.prepare import text_bytes
    from fourstage.planning import DataFacts, parent_shape
    from fourstage.planning.budget import sharded

    notes = []
    try:
        found = DataFacts(text_bytes=text_bytes(recipe), model=parent_shape(recipe))
    except InputError as error:
        if gpus is None:
            raise
        notes.append(f"Not here, so planned by rule: {error.faults[0]}.")
        found = DataFacts()
    found, counted = with_counts(recipe, found)
    notes += counted
    if gpus is None:
        return _here(recipe, found), notes
    return sharded(recipe, found, gpus), notes


def _here(recipe: Recipe, facts: DataFacts) -> DataFacts:
    """The facts with what this machine is."""
    from dataclasses import replace

    from fourstage.devices import memory_of, resolve_device

    device = resolve_device(recipe.device)
    return replace(facts, device=device.type, memory_bytes=memory_of(device))


def _speed_of(recipe: Recipe, gpus: Gpus | None) -> SpeedOf:
    """The speed of a shape: from data sheets, or measured here."""
    from fourstage.planning.speed import Trial, from_gpus, measure

    if gpus is not None:
        return lambda resolved, config: from_gpus(gpus, config, resolved.rl.rollout_batch or 256)
    from fourstage.devices import resolve_device

    device = resolve_device(recipe.device)
    return lambda resolved, config: measure(config, device, Trial.of(resolved))


def _at(recipe: Recipe, facts: DataFacts, speed_of: SpeedOf) -> Speed:
    from fourstage.planning import model_config, resolve

    resolved, _ = resolve(recipe, facts)
    return speed_of(resolved, model_config(resolved, facts.vocab_size))
