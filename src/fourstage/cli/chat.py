"""`fourstage chat`: talk to a model in the terminal."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fourstage.errors import InputError, nearest

if TYPE_CHECKING:
    from fourstage.generation.conversation import Conversation

_HELP = """/reset   forget what was said
/quit    leave (so does the end of the input)
/help    show this"""
_COMMANDS = ("/reset", "/quit", "/help")


def command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A model folder or a run folder")],
    temperature: Annotated[float, typer.Option(help="0 is greedy, 1 the model's own")] = 0.7,
    top_k: Annotated[int, typer.Option(help="Draw among the k most likely; 0 is off")] = 0,
    top_p: Annotated[float, typer.Option(help="Draw among this share; 1 is off")] = 1.0,
    min_p: Annotated[float, typer.Option(help="Least relative probability; 0 is off")] = 0.0,
    max_new_tokens: Annotated[int, typer.Option(help="Longest reply in tokens")] = 256,
    seed: Annotated[int, typer.Option(help="The same seed gives the same replies")] = 0,
    system: Annotated[str, typer.Option(help="What the model is told before you speak")] = "",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps")] = "auto",
) -> None:
    """Talk to a model: /reset forgets, /quit leaves."""
    from fourstage.interchange.resolve import resolve_model

    resolve_model(folder)
    from fourstage.generation.conversation import Conversation
    from fourstage.generation.engine import Engine
    from fourstage.generation.sampling import Sampling
    from fourstage.interchange.resolve import open_model

    sampling = Sampling(temperature, top_k, top_p, min_p, max_new_tokens, seed=seed)
    opened = open_model(folder, device)
    conversation = Conversation(
        Engine(opened.model, max_batch=1), opened.tokenizer, opened.stopping(sampling), system
    )
    typed = sys.stdin.isatty()
    if typed:
        print(f"{opened.folder}: {opened.model.config.parameters():,} parameters. /help, /quit")
    _talk(conversation, typed)


def _talk(conversation: Conversation, typed: bool) -> None:
    """Reads lines until the end; piped input gets the replies alone, one after another."""
    while True:
        line = _line(typed)
        if line is None or line == "/quit":
            return
        if line == "/reset":
            conversation.reset()
            _note("forgotten")
        elif line == "/help":
            _note(_HELP)
        elif line.startswith("/"):
            _note(f"no such command: {line}{nearest(line, _COMMANDS)} (/help lists them)")
        elif line:
            _reply(conversation, line)


def _line(typed: bool) -> str | None:
    """The next line without surrounding blanks, or None at the end of the input."""
    try:
        return input("\n> " if typed else "").strip()
    except EOFError:
        return None
    except UnicodeDecodeError as error:
        raise InputError("the input is not UTF-8 text: convert it to UTF-8") from error


def _reply(conversation: Conversation, line: str) -> None:
    pieces = conversation.reply(line)
    try:
        for count, piece in enumerate(pieces):
            if count == 0 and conversation.dropped:
                _note(f"the context is full: the oldest {conversation.dropped} turns are forgotten")
            print(piece, end="", flush=True)
        print(flush=True)
    except KeyboardInterrupt:
        pieces.close()
        print(flush=True)
        _note("stopped")
    except InputError as error:
        for fault in error.faults:
            _note(f"error: {fault}")


def _note(text: str) -> None:
    """Words of the program and not of the model: on stderr, so that piped replies stay clean."""
    print(text, file=sys.stderr, flush=True)
