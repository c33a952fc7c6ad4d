"""`fourstage explore`: the distribution over the next token at each position, as bars."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fourstage.errors import InputError

if TYPE_CHECKING:
    from fourstage.generation.explore import Candidate, Position
    from fourstage.tokenizer import Tokenizer


def command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A model folder or a run folder")],
    prompt: Annotated[str, typer.Option(help="The text to continue")],
    steps: Annotated[int, typer.Option(help="Positions to look at")] = 8,
    top: Annotated[int, typer.Option(help="Tokens shown at each position")] = 8,
    temperature: Annotated[float, typer.Option(help="0 is greedy, 1 the model's own")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Draw among the k most likely; 0 is off")] = 0,
    top_p: Annotated[float, typer.Option(help="Draw among this share; 1 is off")] = 1.0,
    min_p: Annotated[float, typer.Option(help="Least relative probability; 0 is off")] = 0.0,
    seed: Annotated[int, typer.Option(help="The same seed gives the same draw")] = 0,
    chat: Annotated[bool, typer.Option("--chat", help="Put the prompt in the template")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps")] = "auto",
) -> None:
    """See the distribution over the next token at each position, greedy beside drawn."""
    from fourstage.cli.generate import checked_prompt
    from fourstage.interchange.resolve import resolve_model

    faults = [
        f"--{name} {number}: write 1 or more"
        for name, number in (("steps", steps), ("top", top))
        if number < 1
    ]
    if faults:
        raise InputError(*faults)
    resolve_model(folder)
    text = checked_prompt(prompt)
    from fourstage.generation.engine import Engine
    from fourstage.generation.explore import explore
    from fourstage.generation.sampling import Sampling
    from fourstage.interchange.resolve import open_model

    sampling = Sampling(temperature, top_k, top_p, min_p, steps, seed=seed)
    opened = open_model(folder, device)
    tokenizer = opened.tokenizer
    ids = tokenizer.chat_prompt(text) if chat else tokenizer.encode(text)
    positions, greedy = explore(Engine(opened.model), ids, opened.stopping(sampling), top)
    width = min(shutil.get_terminal_size().columns, 100)
    print("\n\n".join(block(position, tokenizer, width) for position in positions))
    print(f"\ngreedy: {shown_text(tokenizer, greedy)}")
    print(f"drawn:  {shown_text(tokenizer, [position.drawn.token for position in positions])}")


def block(position: Position, tokenizer: Tokenizer, width: int = 80) -> str:
    """One position: a headline, then a bar a token, widths in proportion to probability."""
    drawn = position.drawn
    lines = [
        f"position {position.index}   entropy {position.entropy:.2f} bits   "
        f"greedy {piece(tokenizer, position.top[0].token)}   "
        f"drawn {piece(tokenizer, drawn.token)} {drawn.probability:.1%} (rank {position.rank})"
    ]
    rows = list(position.top)
    if all(each.token != drawn.token for each in rows):
        rows.append(drawn)
    labels = [piece(tokenizer, each.token) for each in rows]
    column = max(len(label) for label in labels)
    room = max(10, width - column - 27)
    for row, (label, candidate) in enumerate(zip(labels, rows, strict=True)):
        marks = _marks(candidate, row == 0, candidate.token == drawn.token)
        stroke = bar(candidate.probability, room)
        lines.append(f"  {label:<{column}} {candidate.probability:>6.1%} {stroke} {marks}".rstrip())
    return "\n".join(lines)


def _marks(candidate: Candidate, greedy: bool, drawn: bool) -> str:
    words = [("greedy", greedy), ("drawn", drawn), ("cut off", not candidate.allowed)]
    return "  ".join(word for word, holds in words if holds)


def bar(share: float, width: int) -> str:
    """A bar of `share` of `width` cells, to an eighth of a cell, padded to the width."""
    eighths = round(share * width * 8)
    partial = " ▏▎▍▌▋▊▉"[eighths % 8] if eighths % 8 else ""
    return ("█" * (eighths // 8) + partial).ljust(width)


def piece(tokenizer: Tokenizer, token: int) -> str:
    """One token in quotes, with its spaces and line breaks seen; specials by their name."""
    return json.dumps(tokenizer.decode([token], skip_special=False), ensure_ascii=False)


def shown_text(tokenizer: Tokenizer, tokens: list[int]) -> str:
    return json.dumps(tokenizer.decode(tokens, skip_special=False), ensure_ascii=False)
