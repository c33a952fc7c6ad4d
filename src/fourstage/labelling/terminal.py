"""Labelling in the terminal: two or more completions, a key and Enter."""

from __future__ import annotations

import sys

from fourstage.errors import InputError
from fourstage.labelling.session import Question, Session
from fourstage.labelling.words import harmless, shown_turns

_KEYS = {"t": "tie", "b": "bad", "s": "skip"}
HELP = """1, 2, ...   the number of the best one
t           a tie: none of them is better
b           all of them are bad (counts as a tie)
s           skip this prompt
u           undo the last answer
q           stop here; the same command goes on (so does the end of the input)
?           show this"""


def label_in_terminal(session: Session) -> None:
    """Asks until everything is labelled or the labeller stops."""
    print(HELP)
    while True:
        question = session.question()
        if question is None:
            print("\neverything is labelled: Enter ends, u undoes the last answer")
            if _line("u") != "u" or not session.undo():
                return
            continue
        print(f"\n{_shown(question)}\n")
        if not _asked(session, question):
            print("stopped: the same command goes on here")
            return


def _shown(question: Question) -> str:
    lines = [f"--- prompt {question.number} of {question.total} ---"]
    for turn in shown_turns(question.item.task.prompt):
        lines += [f"{turn['role']}: {turn['content']}"]
    for number, text in enumerate(question.texts, 1):
        lines += ["", f"[{number}]", harmless(text)]
    return "\n".join(lines)


def _asked(session: Session, question: Question) -> bool:
    """Reads keys until the question is answered or taken back; False to stop."""
    numbers = " ".join(str(number) for number in range(1, len(question.shown) + 1))
    while True:
        key = _line(f"{numbers} t b s u q ?")
        if key is None or key == "q":
            return False
        if key == "u":
            if session.undo():
                return True
            _note("nothing to undo")
        elif key in _KEYS:
            session.answer(question, _KEYS[key])
            return True
        elif key.isdecimal() and 1 <= int(key) <= len(question.shown):
            session.answer(question, "best", int(key) - 1)
            return True
        elif key == "?":
            _note(HELP)
        elif key:
            _note(f"{key!r} is no key: write 1 to {len(question.shown)}, t, b, s, u, q or ?")


def _line(keys: str) -> str | None:
    """The next line, or None where the labeller stops."""
    try:
        return input(f"{keys} > " if sys.stdin.isatty() else "").strip().lower()
    except (EOFError, KeyboardInterrupt):
        return None
    except UnicodeDecodeError as error:
        raise InputError("the input is not UTF-8 text: convert it to UTF-8") from error


def _note(text: str) -> None:
    """Words of the program, apart from what is asked."""
    print(text, file=sys.stderr, flush=True)
