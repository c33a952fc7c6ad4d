"""Episodes that are alive, side by side: here, or in processes of their own with a limit of time.

Never ends a run: whatever an environment does wrong is a fault of its episode. A process that hangs
is killed; its other episodes are played again from their responses, which gives the same state.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from fourstage.environments.contracts import Opening, Step
from fourstage.errors import InputError
from fourstage.rewards.contracts import outcome
from fourstage.rewards.importing import imported
from fourstage.rewards.workers import Answer, Workers

Make = Callable[[], Any]
_SHOWN = 60


@dataclass(frozen=True)
class Request:
    """What an episode is asked: its beginning, what comes of its last response, or its end.

    Attributes:
        key: of the episode. responses: all so far, the newest last; none asks for the beginning.
    """

    key: int
    task: Mapping[str, Any]
    seed: int
    responses: tuple[str, ...] = ()
    is_end: bool = False


class Host:
    """Answers requests with plain values; what they may be wrong in is told as a `ValueError`."""

    def __init__(self, make: Make):
        self.make = make
        self._alive: dict[int, tuple[Any, int]] = {}

    def __call__(self, request: Request) -> Any:
        environment, taken = self._alive.pop(request.key, (None, 0))
        if request.is_end:
            return _close(environment)
        if environment is None or taken != len(request.responses) - 1:
            _close(environment)
            environment, first = self._begun(request)
            if not request.responses:
                self._alive[request.key] = environment, 0
                return first
        with self._ended_by_a_fault(environment):
            observation, reward, done = _step_of(environment.step(request.responses[-1]))
        if done:
            _close(environment)
        else:
            self._alive[request.key] = environment, len(request.responses)
        return observation, reward, done

    def _begun(self, request: Request) -> tuple[Any, Any]:
        """The environment as it was before the newest response, and what it first said."""
        environment = self.make()
        with self._ended_by_a_fault(environment):
            first = _messages_of(environment.reset(request.task, request.seed))
            for response in request.responses[:-1]:
                environment.step(response)
        return environment, first

    @contextlib.contextmanager
    def _ended_by_a_fault(self, environment: Any) -> Generator[None]:
        try:
            yield
        except BaseException:
            # What it ended with is told, and not what closing adds to that.
            with contextlib.suppress(Exception):
                _close(environment)
            raise


class Environments:
    """All episodes of an iteration, asked together.

    Args:
        host: makes what hosts episodes, in each process once.
        workers: processes that episodes are dealt to; 0 has them in this one.
        seconds: that a step may take in a process of its own.
        introduced: tells a person what is used, and raises `InputError` where it is not there.
    """

    def __init__(
        self,
        host: Callable[[], Host],
        workers: int = 0,
        seconds: float = 60.0,
        introduced: Callable[[], str] | None = None,
    ):
        self.introduced = introduced
        self._here = host() if not workers else None
        # One each: an episode stays where its state is.
        self._processes: list[Workers[Request]] = [
            Workers(host, 1, seconds) for _ in range(workers)
        ]
        self._requests: list[Request] = []

    def start(self, say: Callable[[str], None], tasks: Sequence[Mapping[str, Any]]) -> None:
        """Gets ready, and begins an episode of the first task to see that it works.

        Raises:
            InputError: it cannot be made, or does not begin as it should.
        """
        try:
            if self.introduced is not None:
                say(self.introduced())
            for each in self._processes:
                each.start()
        except InputError as error:
            raise InputError(*(f"rl.environment, {fault}" for fault in error.faults)) from error
        (first,) = self.reset(tasks[:1], [0]) if tasks else [Opening()]
        self.end()
        if first.fault:
            raise InputError(f"rl.environment does not begin: {first.fault}")

    def reset(self, tasks: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> list[Opening]:
        """Begins an episode of each task; those before are ended."""
        self.end()
        self._requests = [
            Request(key, task, seed)
            for key, (task, seed) in enumerate(zip(tasks, seeds, strict=True))
        ]
        answers = self._asked(self._requests)
        return [Opening(each.value, each.fault) for each in answers]

    def step(self, keys: Sequence[int], responses: Sequence[str]) -> list[Step]:
        """What comes of the responses of some episodes, by their numbers."""
        asked = []
        for key, response in zip(keys, responses, strict=True):
            before = self._requests[key]
            made = Request(key, before.task, before.seed, (*before.responses, response))
            self._requests[key] = made
            asked.append(made)
        answers = self._asked(asked)
        return [Step(*each.value) if not each.fault else Step(fault=each.fault) for each in answers]

    def end(self) -> None:
        """Closes what is left of the episodes."""
        left = [Request(r.key, {}, r.seed, is_end=True) for r in self._requests]
        self._requests = []
        if left:
            self._asked(left)

    def close(self) -> None:
        """Ends the processes, with all that is in them."""
        if self._here is not None:
            self.end()
        for each in self._processes:
            each.close()

    def _asked(self, requests: Sequence[Request]) -> list[Answer]:
        if self._here is not None:
            return [_guarded(self._here, each) for each in requests]
        count = len(self._processes)
        dealt = [[r for r in requests if r.key % count == place] for place in range(count)]
        with ThreadPoolExecutor(count) as pool:
            found = list(pool.map(Workers.answers, self._processes, dealt))
        by_key = {
            request.key: answer
            for part, answers in zip(dealt, found, strict=True)
            for request, answer in zip(part, answers, strict=True)
        }
        return [by_key[each.key] for each in requests]


def own_host(path: str, options: Mapping[str, Any]) -> Host:
    """A host of a person's own environment, imported in its process before any limit of time runs.

    Raises:
        InputError: it cannot be imported or made, or lacks a method.
    """
    make = functools.partial(imported("path", path), **options)
    try:
        made = make()
    except Exception as error:
        raise InputError(
            f"path={path} cannot be made with these options: {type(error).__name__}: {error}"
        ) from error
    lacking = [name for name in ("reset", "step") if not callable(getattr(made, name, None))]
    if lacking:
        raise InputError(f"path={path} has no method {' and no method '.join(lacking)}")
    with contextlib.suppress(Exception):
        # Made to be looked at; what closing raises is told of an episode that was played.
        _close(made)
    return Host(make)


def _close(environment: Any) -> None:
    close = getattr(environment, "close", None)
    if close is not None:
        close()


def _guarded(host: Host, request: Request) -> Answer:
    try:
        return Answer(host(request))
    except Exception as error:
        return Answer(fault=f"{type(error).__name__}: {error}")


def _messages_of(value: Any) -> Any:
    """What `reset` gave, as text or messages that the template knows.

    Raises:
        ValueError: it is something else.
    """
    if value is None or isinstance(value, str):
        return value
    # Imported where it is needed: it brings the library of tokenizers.
    from fourstage.tokenizer.chat import ROLES

    is_list = isinstance(value, (list, tuple)) and value
    if not is_list or not all(isinstance(each, Mapping) for each in value):
        raise ValueError(f"reset gave {_short(value)}, and neither text nor messages")
    messages = []
    for each in value:
        role, content = each.get("role"), each.get("content")
        if role not in ROLES or not isinstance(content, str):
            raise ValueError(
                f"reset gave the message {_short(each)}: write role (one of {', '.join(ROLES)}) "
                "and content"
            )
        messages.append({"role": role, "content": content})
    if messages[-1]["role"] == "assistant":
        raise ValueError("reset gave messages whose last is the assistant's, which is to answer")
    return messages


def _step_of(value: Any) -> tuple[str, float, bool]:
    """What `step` gave.

    Raises:
        ValueError: it is not text, a finite number, and whether it is over.
    """
    if not isinstance(value, (tuple, list)) or len(value) != 3:
        raise ValueError(f"step gave {_short(value)}, and not (observation, reward, done)")
    observation, reward, done = value
    if not isinstance(observation, str):
        raise ValueError(f"step gave the observation {_short(observation)}, which is no text")
    said = outcome(reward)
    if said.fault or said.score is None:
        raise ValueError(f"step gave a reward that is none: {said.fault or 'None'}")
    try:
        is_over = bool(done)
    except Exception as error:
        raise ValueError(f"step gave {_short(done)} for whether it is over") from error
    return observation, said.score, is_over


def _short(value: Any) -> str:
    try:
        text = json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        text = type(value).__name__
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
