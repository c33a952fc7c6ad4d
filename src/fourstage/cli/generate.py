"""`fourstage generate`: the raw continuation of a text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fourstage.errors import InputError


def command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A model folder or a run folder")],
    prompt: Annotated[str, typer.Option(help="The text to continue")],
    temperature: Annotated[float, typer.Option(help="0 is greedy, 1 the model's own")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Draw among the k most likely; 0 is off")] = 0,
    top_p: Annotated[float, typer.Option(help="Draw among this share; 1 is off")] = 1.0,
    min_p: Annotated[float, typer.Option(help="Least relative probability; 0 is off")] = 0.0,
    max_new_tokens: Annotated[int, typer.Option(help="Stop after so many tokens")] = 128,
    seed: Annotated[int, typer.Option(help="The same seed gives the same text")] = 0,
    chat: Annotated[bool, typer.Option("--chat", help="Put the prompt in the template")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps")] = "auto",
) -> None:
    """Continue a text: prints what the model writes after it, and nothing else."""
    from fourstage.interchange.resolve import resolve_model

    resolve_model(folder)
    text = checked_prompt(prompt)
    from fourstage.generation.engine import Engine
    from fourstage.generation.sampling import Sampling
    from fourstage.interchange.resolve import open_model

    sampling = Sampling(temperature, top_k, top_p, min_p, max_new_tokens, seed=seed)
    opened = open_model(folder, device)
    tokenizer = opened.tokenizer
    ids = tokenizer.chat_prompt(text) if chat else tokenizer.encode(text)
    completion = Engine(opened.model).generate([ids], opened.stopping(sampling))[0]
    print(tokenizer.decode(completion.tokens))


def checked_prompt(prompt: str) -> str:
    """The prompt, checked.

    Raises:
        InputError: it is empty, or not text in UTF-8.
    """
    try:
        prompt.encode("utf-8")
    except UnicodeError as error:
        raise InputError("--prompt is not UTF-8 text: convert it to UTF-8") from error
    if not prompt:
        raise InputError("--prompt is empty: write at least one character")
    return prompt
