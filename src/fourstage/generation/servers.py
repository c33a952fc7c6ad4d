"""Completions from a server: the OpenAI interface as vLLM serves it, or SGLang's own.

Ids are posted and ids come back, with the log-probability of each: text between would be encoded
another way. Each prompt is a request of its own, since a seed is of a request.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fourstage.errors import InputError, MachineError
from fourstage.generation.elsewhere import Elsewhere, completion
from fourstage.generation.engine import Completion, spread
from fourstage.generation.sampling import Sampling
from fourstage.model.transformer import Transformer
from fourstage.posting import Failed, Poster, bearer, check_key

# Seeds of requests, which some servers keep in 32 bits.
_SEED_BITS = 2**31 - 1


@dataclass(frozen=True)
class Dialect:
    """How a server is asked, and where its answer has ids and log-probabilities."""

    name: str
    body: Callable[[str | None, Sequence[int], Sampling, int], dict[str, Any]]
    parts: Callable[[Any], tuple[list[int], list[float]]]


class Server(Elsewhere):
    """An engine behind an address.

    Args:
        dialect: `OPENAI` or `SGLANG`.
        model: the name that the server has it under, where it asks for one.
        workers: requests at a time.
        write: writes a model to a folder that the server can read, and names it.
        update: where `{"model_path": FOLDER}` is posted for the server to load it; None leaves the
            server the weights that it began with.
        token_env: the environment variable of a bearer token, which so stands in no recipe.
    """

    def __init__(
        self,
        dialect: Dialect,
        address: Poster,
        model: str | None = None,
        workers: int = 16,
        write: Callable[[Transformer], Path] | None = None,
        update: Poster | None = None,
        token_env: str | None = None,
    ):
        self.dialect, self.address, self.model = dialect, address, model
        self.workers, self.write, self.update = workers, write, update
        self.token_env = token_env

    def start(self, say: Callable[[str], None]) -> None:
        check_key("rl.engine.token_env", self.token_env)
        told = f", and has it load weights at {self.update.url}" if self.update else ""
        say(f"rl.engine posts prompts to {self.address.url}{told}, as the recipe says")
        try:
            self._asked([1], Sampling(max_new_tokens=1), 0)
        except (Failed, MachineError) as error:
            raise InputError(
                f"{self.address.url} does not answer a prompt as it should: {error} (what it has "
                "to answer stands in docs/environments.md)"
            ) from error

    def take(self, model: Transformer) -> None:
        if self.update is None or self.write is None:
            return
        folder = self.write(model)
        try:
            told = {"model_path": str(folder)}
            is_loaded = self.update.post(told, _success, bearer(self.token_env))
        except Failed as error:
            raise MachineError(
                f"{self.update.url} did not load the weights in {folder}: {error}"
            ) from error
        if is_loaded is False:
            raise MachineError(f"{self.update.url} did not load the weights in {folder}")

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling | Sequence[Sampling],
        seeds: Sequence[int] | None = None,
    ) -> list[Completion]:
        asked = spread(prompts, sampling, seeds)
        with ThreadPoolExecutor(self.workers) as pool:
            return list(pool.map(lambda each: self._completion(*each), asked))

    def close(self) -> None:
        """The server is another's: it goes on."""

    def _completion(self, prompt: Sequence[int], sampling: Sampling, seed: int) -> Completion:
        try:
            return self._asked(prompt, sampling, seed)
        except Failed as error:
            raise MachineError(
                f"{self.address.url} drew nothing: {error}; run the same command again to go on"
            ) from error

    def _asked(self, prompt: Sequence[int], sampling: Sampling, seed: int) -> Completion:
        body = self.dialect.body(self.model, prompt, sampling, seed & _SEED_BITS)
        tokens, logprobs = self.address.post(body, self._drawn, bearer(self.token_env))
        return completion(tokens, logprobs, sampling, self.address.url)

    def _drawn(self, said: bytes) -> tuple[list[int], list[float]]:
        try:
            tokens, logprobs = self.dialect.parts(json.loads(said))
            return [int(token) for token in tokens], [float(each) for each in logprobs]
        except (KeyError, IndexError, TypeError, ValueError, RecursionError) as error:
            raise Failed(
                f"its answer has no token ids with log-probabilities ({type(error).__name__}: "
                f"{error})",
                passing=False,
            ) from error


def _success(said: bytes) -> Any:
    """What an answer says of itself, where it says something."""
    try:
        told = json.loads(said)
    except (ValueError, RecursionError):
        return None
    return told.get("success") if isinstance(told, dict) else None


def _openai_body(
    model: str | None, prompt: Sequence[int], sampling: Sampling, seed: int
) -> dict[str, Any]:
    # What is left out would be as the served model's generation_config.json has it.
    return {
        **({"model": model} if model is not None else {}),
        "prompt": list(prompt),
        "max_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k or -1,
        "min_p": sampling.min_p,
        "repetition_penalty": 1.0,
        "seed": seed,
        "n": 1,
        "stream": False,
        "logprobs": 1,
        "stop_token_ids": list(sampling.stop_ids),
        "skip_special_tokens": False,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
    }


def _openai_parts(answer: Any) -> tuple[list[int], list[float]]:
    choice = answer["choices"][0]
    logprobs = choice["logprobs"]["token_logprobs"]
    if choice.get("token_ids") is not None:
        return choice["token_ids"], logprobs
    # Earlier versions name tokens by their ids.
    return [int(each.removeprefix("token_id:")) for each in choice["logprobs"]["tokens"]], logprobs


def _sglang_body(
    model: str | None, prompt: Sequence[int], sampling: Sampling, seed: int
) -> dict[str, Any]:
    return {
        "input_ids": list(prompt),
        "sampling_params": {
            "max_new_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k or -1,
            "min_p": sampling.min_p,
            "stop_token_ids": list(sampling.stop_ids),
            "skip_special_tokens": False,
        },
        "return_logprob": True,
        "stream": False,
    }


def _sglang_parts(answer: Any) -> tuple[list[int], list[float]]:
    found = answer["meta_info"]["output_token_logprobs"]
    return [each[1] for each in found], [each[0] for each in found]


OPENAI = Dialect("openai", _openai_body, _openai_parts)
SGLANG = Dialect("sglang", _sglang_body, _sglang_parts)
