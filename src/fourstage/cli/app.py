"""The `fourstage` command: finds the command's file, runs it, and turns errors into exit codes.

Only the file of the command that was asked for is imported, so `fourstage --help` answers in a
fraction of a second although torch takes many.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import sys
import textwrap
from collections.abc import Sequence

from fourstage import __version__
from fourstage.errors import FailedElsewhere, FourstageError, InputError, nearest
from fourstage.memory import is_out_of_memory
from fourstage.parallel import failing

# name -> what it does; the code is `command` in cli/<name>.py
COMMANDS = {
    "run": "All stages of a recipe; run again to go on where it stopped",
    "prepare": "Prepare the data and the tokenizer of a recipe",
    "pretrain": "The first stage: a base model from raw text",
    "sft": "The second stage: supervised fine-tuning",
    "reward": "The third stage: a reward model from comparisons",
    "rl": "The fourth stage: reinforcement learning against the reward model",
    "plan": "What it will take in parameters, tokens, memory and time, before spending it",
    "tune": "Try learning rates and batches in short runs, and propose the best",
    "recipes": "List the shipped recipes, or print one to edit",
    "chat": "Talk to a model",
    "label": "Compare completions, by people or by a judge, for the reward stage",
    "generate": "Continue a text",
    "explore": "See the distribution over the next token at each position",
    "eval": "Measure a model folder",
    "compare": "Measure model folders side by side",
    "report": "Build report.html of a run",
    "study": "See how far a reward model can be trusted: over-optimisation by best-of-n and RL",
    "inspect": "See every token of a batch or a rollout, or what is in data files",
    "export": "Save a model in another format",
    "serve": "Serve a model over HTTP",
    "bench": "Measure speed, time and memory of the parts of each stage on this machine",
}


def available() -> list[str]:
    """The commands whose file exists, in the order they are shown."""
    return [name for name in COMMANDS if importlib.util.find_spec(f"fourstage.cli.{name}")]


def help_text() -> str:
    width = min(shutil.get_terminal_size().columns, 100)
    lines = [
        "fourstage: raw text to an aligned chat model in four stages",
        "",
        "  fourstage COMMAND [ARGUMENTS]        fourstage COMMAND --help tells more",
        "",
    ]
    for name in available():
        lines += textwrap.wrap(
            COMMANDS[name], width, initial_indent=f"  {name:<10}", subsequent_indent=" " * 12
        )
    lines += ["", "  --version   --help", "", "Start with: fourstage run quickstart"]
    return "\n".join(lines)


def run_command(name: str, arguments: Sequence[str]) -> int:
    """Imports `cli/<name>.py` and runs its `command` with typer; returns the exit code.

    Raises:
        InputError: an option or argument is unknown, missing or out of range.
    """
    import typer
    import typer.main

    module = importlib.import_module(f"fourstage.cli.{name}")
    app = getattr(module, "app", None)
    if not isinstance(app, typer.Typer):
        app = typer.Typer(
            add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False
        )
        app.command(name, help=module.command.__doc__ or COMMANDS[name])(module.command)
    command = typer.main.get_command(app)
    try:
        outcome = command.main(
            args=list(arguments), prog_name=f"fourstage {name}", standalone_mode=False
        )
    except (typer.Exit, typer.Abort) as error:
        return getattr(error, "exit_code", 130)
    except Exception as error:
        # Typer's usage errors derive from click's, or from its own copy of click since 0.20:
        # both have format_message(), which no other exception has.
        if not hasattr(error, "format_message"):
            raise
        raise InputError(_usage_fault(name, command, error)) from error
    return outcome if isinstance(outcome, int) else 0


def _usage_fault(name: str, command: object, error: Exception) -> str:
    """One line for a usage error: typer's message, and the nearest option where one is unknown."""
    message = " ".join(str(error.format_message()).split()).rstrip(".")  # ty: ignore
    message = message[:1].lower() + message[1:]
    unknown = getattr(error, "option_name", None)
    if unknown:
        parameters = getattr(command, "params", [])
        options = [option for parameter in parameters for option in parameter.opts]
        options = [option for option in options if option.startswith("-")]
        # An option that is there and lacks its value is refused by its name as well.
        if unknown not in options:
            message = f"no such option: {unknown}{nearest(unknown, options)}"
    return f"{message} (fourstage {name} --help tells what it takes)"


def _dispatch(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0] in ("--help", "-h", "help"):
        print(help_text())
        return 0
    name = arguments[0]
    if name == "--version":
        print(f"fourstage {__version__}")
        return 0
    names = available()
    if name not in names:
        kind = "option" if name.startswith("-") else "command"
        near = nearest(name, [*names, "--help", "--version"])
        raise InputError(f"no such {kind}: {name}{near} (fourstage --help lists them)")
    return run_command(name, arguments[1:])


def main(arguments: Sequence[str] | None = None) -> None:
    """The console script. Exit codes: 0, 1 machine failed, 2 wrong input, 130 interrupted."""
    try:
        code = _dispatch(sys.argv[1:] if arguments is None else arguments)
    except FailedElsewhere as error:
        code = error.exit_code
    except FourstageError as error:
        _tell(getattr(error, "faults", (str(error),)))
        code = error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    except BrokenPipeError:
        # The reader (head, less) has gone; keep Python's own flush at exit from complaining.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except Exception as error:
        code = _tell_of(error)
    failing.leave(code)


def _tell_of(error: Exception) -> int:
    """Tells of an error that is the machine's; the exit code. Any other is a fault of the program,
    and is raised again as it is."""
    words = failing.explained(error)
    by_another = words is not None
    if isinstance(error, RuntimeError | MemoryError) and is_out_of_memory(error):
        first = next(iter(str(error).splitlines()), type(error).__name__)
        words = f"out of memory ({first}): end what else uses it, or take a smaller model or batch"
    if words is None:
        raise error
    _tell([words], by_another)
    return 1


def _tell(faults: Sequence[str], by_another: bool = False) -> None:
    """A line a fault; of several processes, the one that failed first tells."""
    if failing.is_the_one_to_tell(by_another):
        for fault in faults:
            print(f"error: {failing.name_of_process()}{fault}", file=sys.stderr)
