"""A service gives numbers; what it does not give in time and form is a fault, never an end."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from fourstage.errors import InputError
from fourstage.rewards.contracts import Item
from fourstage.rewards.service import Service


class Server:
    """A service on the loopback that answers as it is told to; its requests are kept."""

    def __init__(self, answer: Callable[[dict[str, Any], int], tuple[int, bytes]]):
        self.requests: list[tuple[dict[str, Any], dict[str, str]]] = []
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                owner.requests.append((body, dict(self.headers)))
                status, said = answer(body, len(owner.requests))
                self.send_response(status)
                self.end_headers()
                for start in range(0, len(said), 5 if b"trickle" in said else len(said) or 1):
                    if b"trickle" in said:
                        time.sleep(0.1)
                    self.wfile.write(said[start : start + 5] if b"trickle" in said else said)
                    self.wfile.flush()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass

        self.server = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/score?a=b"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *error: object) -> None:
        self.server.shutdown()
        self.server.server_close()


def lengths(body: dict[str, Any], number: int = 0) -> tuple[int, bytes]:
    return 200, json.dumps({"rewards": [len(item["response"]) for item in body["items"]]}).encode()


def service(server: Server, **options) -> Service:
    return Service(server.url, **{"seconds": 0.5, "retries": 2, "backoff": 0.01, **options})


ITEMS = [Item(f"p{n}", "x" * n, n % 2 == 0, n, f"t{n}", {"level": n}) for n in range(5)]


def test_batches_are_posted_and_numbers_come_in_the_order_of_the_items(monkeypatch) -> None:
    monkeypatch.setenv("TOKEN", "s3cret")
    with Server(lengths) as server:
        reward = service(server, batch=2, token_env="TOKEN")
        said: list[str] = []
        reward.start(said.append)
        assert server.url in said[0] and server.requests[0][0] == {"items": []}
        assert [each.score for each in reward.score(ITEMS)] == [0.0, 1.0, 2.0, 3.0, 4.0]
        posted = sorted(
            (body["items"] for body, _ in server.requests[1:]), key=lambda i: i[0]["tokens"]
        )
        assert [len(items) for items in posted] == [2, 2, 1]
        assert posted[1][1] == {
            "prompt": "p3", "response": "xxx", "ended": False, "tokens": 3,
            "ground_truth": "t3", "columns": {"level": 3},
        }  # fmt: skip
        assert all(h["Authorization"] == "Bearer s3cret" for _, h in server.requests)


def test_a_passing_failure_is_asked_again_and_another_is_not() -> None:
    for status, count in ((503, 3), (429, 3), (400, 1), (404, 1)):
        with Server(lambda body, number, s=status: (s, b"why")) as server:
            (found,) = service(server).score(ITEMS[:1])
            assert f"status {status}: 'why'" in found.fault and len(server.requests) == count
    with Server(lambda body, number: (503, b"") if number < 3 else lengths(body)) as server:
        assert [each.score for each in service(server).score(ITEMS[:2])] == [0.0, 1.0]


def test_one_bad_batch_costs_its_own_items_alone() -> None:
    def answer(body: dict[str, Any], number: int) -> tuple[int, bytes]:
        return (400, b"") if body["items"][0]["prompt"] == "p2" else lengths(body)

    with Server(answer) as server:
        found = service(server, batch=2).score(ITEMS)
        assert [each.score for each in found] == [0.0, 1.0, None, None, 4.0]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"<html>", "no JSON"),
        (b"[1]", 'no list "rewards"'),
        (b'{"rewards": 1}', 'no list "rewards"'),
        (b'{"rewards": [1, 2]}', "2 rewards for 1 items"),
        (b'{"rewards": ["x"]}', "is no number"),
        (b'{"rewards": [NaN]}', "the number is nan"),
        (b'{"rewards": [1e999]}', "the number is inf"),
        (b"[" * 100_000, "no JSON"),
        (b" " * 300_000 + b'{"rewards": [1]}', "larger than 200,000 bytes"),
    ],
)
def test_a_malformed_answer_is_a_fault(answer, said) -> None:
    with Server(lambda body, number: (200, answer)) as server:
        (found,) = service(server, most_bytes=200_000).score(ITEMS[:1])
        assert found.score is None and said in found.fault
        assert len(server.requests) == 1


def test_null_says_nothing_of_an_item() -> None:
    with Server(lambda body, number: (200, b'{"rewards": [null]}')) as server:
        (found,) = service(server).score(ITEMS[:1])
        assert found.score is None and not found.fault


def test_a_late_answer_is_a_fault_and_so_is_one_that_trickles() -> None:
    def late(body: dict[str, Any], number: int) -> tuple[int, bytes]:
        time.sleep(2)
        return lengths(body)

    trickle = b'{"rewards": [1], "trickle": "' + b"x" * 500 + b'"}'
    for answer in (late, lambda body, number: (200, trickle)):
        with Server(answer) as server:
            begun = time.monotonic()
            (found,) = service(server, retries=0).score(ITEMS[:1])
            assert found.fault == "no answer within 0.5 s"
            assert time.monotonic() - begun < 1.5


def test_a_service_that_is_not_there_is_one_error_before_training(monkeypatch) -> None:
    with Server(lengths) as server:
        url = server.url
    with pytest.raises(InputError, match=r"does not answer .*ConnectionRefusedError.*rewards.md"):
        Service(url, retries=0).start(print)
    with Server(lambda body, number: (404, b"")) as server, pytest.raises(InputError, match="404"):
        service(server).start(print)
    monkeypatch.delenv("NO_TOKEN", raising=False)
    with pytest.raises(InputError, match="no such environment variable"):
        Service(url, token_env="NO_TOKEN").start(print)


def test_redirects_are_not_followed() -> None:
    with Server(lambda body, number: (307, b"")) as server:
        (found,) = service(server).score(ITEMS[:1])
        assert "status 307" in found.fault and len(server.requests) == 1
