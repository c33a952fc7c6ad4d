"""The page: a scripted session by HTTP, and who is kept out."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
import threading
from urllib.parse import urlsplit

import pytest

from fourstage.errors import MachineError
from fourstage.labelling.labels import LabelFile, read_labels
from fourstage.labelling.pageserver import LabelServer
from fourstage.labelling.session import Session
from labelling_support import lines, write_set
from pipeline_support import environment, tiny


class Browser:
    """Asks a page's server as its script does, unless told otherwise."""

    def __init__(self, url: str):
        where = urlsplit(url)
        self.port, self.root = where.port, where.path

    def ask(self, method: str, path: str, body=None, **headers) -> tuple[int, dict, str]:
        """Status, headers and content."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        told = {"Content-Type": "application/json"} if method == "POST" else {}
        told |= {name.replace("_", "-"): value for name, value in headers.items()}
        content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        connection.request(method, path, content, {k: v for k, v in told.items() if v is not None})
        answer = connection.getresponse()
        found = answer.status, dict(answer.headers), answer.read().decode()
        connection.close()
        return found

    def state(self) -> dict:
        return json.loads(self.ask("GET", f"{self.root}state")[2])["state"]

    def post(self, name: str, **body) -> dict:
        status, _, content = self.ask("POST", self.root + name, body)
        return json.loads(content) | {"status": status}


@pytest.fixture
def served(tmp_path):
    """A server of four pairs, its browser, and the file of its labels."""
    held = write_set(tmp_path)
    with LabelFile(tmp_path / "me.labels.jsonl") as labels:
        server = LabelServer(Session(held.items, labels, "me", 0))
        waiting = threading.Thread(target=server.wait)
        waiting.start()
        yield server, Browser(server.url), tmp_path / "me.labels.jsonl"
        server.finished.set()
        waiting.join()


def test_a_scripted_session_writes_exactly_the_labels_expected(served):
    server, browser, path = served
    orders = [Session([i], server.session.labels, "me", 0).question() for i in server.session.items]
    orders = [question.shown for question in orders]
    state = browser.state()
    assert (state["done"], state["total"], state["labeller"]) == (0, 4, "me")
    for number, (verdict, place) in enumerate([("best", 1), ("tie", None), ("bad", None)]):
        assert state["texts"] == [f"answer {number}.{each}" for each in orders[number]]
        assert state["turns"] == [{"role": "user", "content": f"Question {number}?"}]
        body = {} if place is None else {"place": place}
        state = browser.post("answer", version=state["version"], verdict=verdict, **body)["state"]
    state = browser.post("undo", version=state["version"])["state"]
    assert state["done"] == 2 and state["turns"][0]["content"] == "Question 2?"
    state = browser.post("answer", version=state["version"], verdict="best", place=0)["state"]
    state = browser.post("answer", version=state["version"], verdict="skip")["state"]
    assert state["done"] == 4 and state["texts"] == []
    given = read_labels(path)
    assert [label.verdict for label in given] == ["best", "tie", "best", "skip"]
    assert [label.best for label in given] == [orders[0][1], None, orders[2][0], None]
    assert [label.shown for label in given] == orders


def test_the_page_is_told_nothing_that_would_unblind_it(served):
    _, browser, _ = served
    assert set(browser.state()) == {"version", "labeller", "done", "total", "turns", "texts"}


def test_an_old_tab_cannot_answer_another_question(served):
    _, browser, path = served
    state = browser.state()
    browser.post("answer", version=state["version"], verdict="best", place=0)
    told = browser.post("answer", version=state["version"], verdict="best", place=0)
    assert "Another tab" in told["note"] and told["state"]["done"] == 1
    told = browser.post("undo", version=state["version"])
    assert "Another tab" in told["note"] and len(read_labels(path)) == 1


def test_everything_is_behind_the_token(served):
    server, browser, path = served
    for wrong in ("/", "/state", "/x/", f"/{server.token[:-1]}/state", "//", "/%00/"):
        status, _, content = browser.ask("GET", wrong)
        assert status == 404 and "Question" not in content
    with socket.create_connection(("127.0.0.1", browser.port)) as raw:
        raw.sendall(f"GET /é/ HTTP/1.0\r\nHost: 127.0.0.1:{browser.port}\r\n\r\n".encode())
        assert raw.recv(100).split()[1] == b"404"
    body = {"version": 0, "verdict": "tie"}
    assert browser.ask("POST", "/answer", body)[0] == 404
    assert browser.ask("POST", "/x/answer", body)[0] == 404
    assert browser.ask("POST", "/x/finish", {})[0] == 404 and not server.finished.is_set()
    assert read_labels(path) == []


def test_tokens_are_long_and_of_one_session(tmp_path):
    held = write_set(tmp_path)
    tokens = set()
    for turn in range(3):
        with LabelFile(tmp_path / f"{turn}.labels.jsonl") as labels:
            server = LabelServer(Session(held.items, labels, "me", 0))
            tokens.add(server.token)
            assert server.server_address[0] == "127.0.0.1"
            server.server_close()
    assert len(tokens) == 3 and all(len(token) >= 32 for token in tokens)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 403),
        ({"Host": "127.0.0.1:1"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Content_Type": "text/plain"}, 415),
        ({"Content_Type": "application/x-www-form-urlencoded"}, 415),
    ],
)
def test_other_sites_cannot_post_even_if_they_knew_the_address(served, headers, status):
    _, browser, path = served
    found, _, _ = browser.ask(
        "POST", f"{browser.root}answer", {"version": 0, "verdict": "tie"}, **headers
    )
    assert found == status and read_labels(path) == []
    own = {"Origin": f"http://127.0.0.1:{browser.port}"}
    found, _, _ = browser.ask(
        "POST", f"{browser.root}answer", {"version": 0, "verdict": "tie"}, **own
    )
    assert found == 200 and len(read_labels(path)) == 1


@pytest.mark.parametrize(
    "body",
    [
        b"not json",
        b"[]",
        b"[" * 4000,
        b"x" * 5000,
        {"version": 0, "verdict": "best"},
        {"version": 0, "verdict": "best", "place": 2},
        {"version": 0, "verdict": "best", "place": -1},
        {"version": 0, "verdict": "best", "place": True},
        {"version": 0, "verdict": "best", "place": "0"},
        {"version": 0, "verdict": "tie", "place": 0},
        {"version": 0, "verdict": "worst"},
        {"version": 0, "verdict": ["tie"]},
        {"version": 0},
    ],
)
def test_what_is_no_answer_changes_nothing(served, body):
    _, browser, path = served
    assert browser.ask("POST", f"{browser.root}answer", body)[0] == 400
    assert read_labels(path) == [] and browser.state()["done"] == 0


def test_the_page_fetches_nothing_from_outside_and_runs_its_own_script_alone(served):
    _, browser, _ = served
    for name, kind in (("", "text/html"), ("style.css", "text/css"), ("script.js", "text/javasc")):
        status, headers, content = browser.ask("GET", browser.root + name)
        assert status == 200 and headers["Content-Type"].startswith(kind)
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert (
            headers["Referrer-Policy"] == "no-referrer" and headers["Cache-Control"] == "no-store"
        )
        assert "http" not in content.replace("http-equiv", "")
        assert "innerHTML" not in content and "onclick" not in content
    assert browser.ask("GET", f"{browser.root}../state")[0] == 404


def test_a_label_that_cannot_be_written_ends_the_session_and_says_so(tmp_path, monkeypatch):
    def full(label):
        raise MachineError("cannot write it: the disk is full")

    told = []
    with LabelFile(tmp_path / "me.labels.jsonl") as labels:
        monkeypatch.setattr(labels, "add", full)
        server = LabelServer(Session(write_set(tmp_path).items, labels, "me", 0))
        browser = Browser(server.url)

        def answer() -> None:
            told.append(browser.post("answer", version=0, verdict="tie"))

        answering = threading.Thread(target=answer)
        answering.start()
        with pytest.raises(MachineError, match="the disk is full"):
            server.wait()
        answering.join()
    assert told[0]["status"] == 500 and "not saved: cannot write it" in told[0]["note"]


def test_stopping_on_the_page_ends_the_command_which_writes_the_file(tmp_path):
    run = tmp_path / "tiny"
    write_set(run / "labels" / "rl")
    (run / "recipe.yaml").write_text(tiny().to_yaml())
    process = subprocess.Popen(
        [sys.executable, "-m", "fourstage", "label", run, "--set", "rl", "--page"],
        stdout=subprocess.PIPE,
        env=environment(),
        text=True,
    )
    browser = Browser(process.stdout.readline().split()[1])
    for version in range(3):
        browser.post("answer", version=version, verdict="best", place=0)
    assert browser.post("finish")["stopped"]
    out = process.communicate(timeout=20)[0]
    assert process.returncode == 0 and "3 comparisons: data.preferences=" in out
    assert len(lines(run / "labels" / "rl" / "me.preferences.jsonl")) == 3
