"""A run folder with a tiny model and the world's prompts, and a stand-in for a judge's server."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Generator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from fourstage.cli.app import main
from fourstage.files import write_lines
from fourstage.interchange import save_model
from fourstage.labelling.drawing import CompletionSet, Drawn, Item
from fourstage.tasks import Task
from fourstage.tokenizer import train_tokenizer
from fourstage.worlds import calibration as world
from pipeline_support import tiny
from tiny_models import tiny_model

DRAWN = Drawn("rl", "0" * 64, "rl", 2, 1.0, 16, 0)


def make_run(folder: Path, prompts: int = 12) -> Path:
    """A run with an sft and an rl model of random weights; nothing is trained."""
    texts = [world.document(0, "train", index).text for index in range(50)]
    tokenizer = train_tokenizer(texts, 300)
    for stage, seed in (("sft", 1), ("rl", 2)):
        model = tiny_model(vocab_size=tokenizer.vocab_size, context=192, seed=seed)
        save_model(folder / stage / "model", model, tokenizer, card="# Tiny")
    (folder / "recipe.yaml").write_text(tiny().to_yaml())
    for split, first in (("train", 0), ("validation", 100)):
        tasks = [world.instruction(0, "rl", first + index) for index in range(prompts)]
        write_lines(folder / "data" / "rl" / f"{split}.jsonl", [t.to_json() for t in tasks])
    return folder


def write_set(folder: Path, count: int = 4, k: int = 2, checker: bool = False) -> CompletionSet:
    """A set of made-up completions, `good` first; with a checker the world knows their gold."""
    items = []
    for index in range(count):
        if checker:
            task = world.instruction(0, "rl", index)
            pair = world.comparison(0, "train", index)
            items.append(Item(pair.task, (pair.chosen, pair.rejected)))
        else:
            task = Task(f"Question {index}?", "own", {})
            items.append(Item(task, tuple(f"answer {index}.{n}" for n in range(k))))
    drawn = Drawn(**{**DRAWN.to_json(), "k": k})
    held = CompletionSet(folder, drawn, items)
    held.write()
    return held


def call(capsys, *arguments: str | Path) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `fourstage ...` in this process."""
    with pytest.raises(SystemExit) as ended:
        main([str(each) for each in arguments])
    out, err = capsys.readouterr()
    return ended.value.code, out, err


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


class StandIn(ThreadingHTTPServer):
    """Answers chat completions with what `reply(first response, second response)` says.

    Attributes:
        asked: bodies of all requests. headers: of all requests.
    """

    daemon_threads = True

    def __init__(self, reply: Callable[[str, str], Any]):
        super().__init__(("127.0.0.1", 0), _Answer)
        self.reply, self.asked, self.headers = reply, [], []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class _Answer(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        server: Any = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server.asked.append((self.path, body))
        server.headers.append(dict(self.headers))
        told = server.reply(*responses_in(body))
        status, told = told if isinstance(told, tuple) else (200, told)
        if isinstance(told, str):
            told = json.dumps({"choices": [{"message": {"content": told}}]}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(told)))
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(told)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""


def responses_in(body: dict[str, Any]) -> tuple[str, str]:
    """The two responses of a request, as they stand between their tags."""
    told = body["messages"][-1]["content"]
    first = told.split("\n<A-")[1].split(">\n", 1)[1].split("\n</A-")[0]
    second = told.split("\n<B-")[1].split(">\n", 1)[1].split("\n</B-")[0]
    return first, second


@contextlib.contextmanager
def stand_in(reply: Callable[[str, str], Any]) -> Generator[StandIn]:
    server = StandIn(reply)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
