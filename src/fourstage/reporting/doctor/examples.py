"""Rows as training will read them: which tokens are context and which are trained."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from fourstage.data.shapes import Row
from fourstage.reporting.doctor.lengths import is_scored, sides
from fourstage.reporting.tokens import CLOSE, OPEN, READ, SCORED, TRAINED, coloured, visible
from fourstage.tasks import Messages
from fourstage.tokenizer import Tokenizer

# Of a longer row its beginning is shown.
MOST_TOKENS, MOST_CHARACTERS = 400, 1500
_SPECIAL = "bold magenta on grey11"


def print_legend(console: Console) -> None:
    text = Text("examples   ", style="bold")
    text.append("read only", style=READ[0])
    text.append(f"   {OPEN}", style="dim")
    text.append("trained", style=TRAINED[0])
    text.append(f"{CLOSE}   ", style="dim")
    text.append("<|special|>", style=_SPECIAL).append("   ")
    text.append("score read here", style=SCORED[0])
    console.print(text)


def print_example(row: Row, tokenizer: Tokenizer | None, console: Console) -> None:
    """A row with its loss mask in colour; by whole turns where there is no tokenizer."""
    if row.kind == "text":
        console.print(_document(row.text, tokenizer))
    for name, messages in sides(row) if row.kind != "text" else ():
        if name:
            console.print(Text(name, style="dim"))
        is_prompt = row.kind == "prompt"
        console.print(_conversation(messages, row, tokenizer, is_prompt=is_prompt))
    if row.answer is not None:
        console.print(Text(f"ground truth: {_short(str(row.answer))}", style="dim"))
    console.print()


def _document(text: str, tokenizer: Tokenizer | None) -> Text:
    if tokenizer is None:
        return Text(_short(text), style=TRAINED[0])
    # No need to encode a book to show its first page.
    example = tokenizer.document(text[: MOST_TOKENS * 20])
    return _tokens(tokenizer, example.tokens.tolist(), example.trained().tolist())


def _conversation(
    messages: Messages, row: Row, tokenizer: Tokenizer | None, *, is_prompt: bool
) -> Text:
    if tokenizer is None:
        return _turns(messages, row)
    if is_prompt:
        ids = tokenizer.chat_prompt(messages)
        return _tokens(tokenizer, ids, [False] * len(ids))
    if is_scored(row):
        # The answer may be trained on beside the score, at the weight that the recipe gives it.
        example = tokenizer.reward_example(messages)
        return _tokens(tokenizer, example.tokens.tolist(), example.trained().tolist())
    trained = row.trained if len(row.trained) == len(messages) else ()
    example = tokenizer.chat_example(messages, trained)
    return _tokens(tokenizer, example.tokens.tolist(), example.trained().tolist())


def _is_trained(messages: Messages, row: Row) -> list[bool]:
    """Of each answer of the assistant, in order."""
    flags = row.trained if len(row.trained) == len(messages) else [True] * len(messages)
    return [
        flag
        for message, flag in zip(messages, flags, strict=True)
        if message["role"] == "assistant"
    ]


def _turns(messages: Messages, row: Row) -> Text:
    text, answers = Text(), iter(_is_trained(messages, row))
    for message in messages:
        is_answer = message["role"] == "assistant"
        is_trained = is_answer and next(answers) and row.kind != "prompt"
        text.append(f"<|{message['role']}|>", style=_SPECIAL)
        said = _short(message["content"])
        if is_trained:
            text.append(OPEN, style="dim").append(said, style=TRAINED[0]).append(CLOSE, style="dim")
        else:
            text.append(said, style=READ[0])
    return text


def _tokens(tokenizer: Tokenizer, ids: list[int], trained: list[bool]) -> Text:
    """The beginning of a row, token by token.

    Special tokens are marked by their ids: text that only looks like one is not.
    """
    text, held = Text(), 0
    shown = min(len(ids), MOST_TOKENS)
    for place in range(shown + 1):
        is_special = place < shown and ids[place] in tokenizer.special_ids
        if place == shown or is_special:
            run = slice(held, place)
            text.append_text(coloured(tokenizer, ids[run], trained[run]))
            held = place + 1
        if is_special:
            marked = visible(tokenizer.token_text(ids[place]))
            style = SCORED[0] if ids[place] == tokenizer.reward else _SPECIAL
            text.append(f"{OPEN}{marked}{CLOSE}" if trained[place] else marked, style=style)
    if len(ids) > shown:
        text.append(" ...", style="dim")
    return text


def _short(text: str) -> str:
    text = "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text)
    return text if len(text) <= MOST_CHARACTERS else text[:MOST_CHARACTERS] + " ..."
