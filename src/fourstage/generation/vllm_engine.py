"""Completions from vLLM in this process, which gets the policy's weights tensor by tensor."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fourstage.errors import MachineError
from fourstage.extras import require
from fourstage.generation.elsewhere import Elsewhere, completion, last_line
from fourstage.generation.engine import Completion, spread
from fourstage.generation.sampling import Sampling
from fourstage.interchange.weights import export_weights
from fourstage.model.transformer import Transformer


class Vllm(Elsewhere):
    """vLLM beside the trainer, on the same device.

    Args:
        write: writes a model to a folder, from which vLLM reads its shape and its first weights.
        memory: share of the device's memory that vLLM takes.
    """

    def __init__(self, write: Callable[[Transformer], Path], memory: float = 0.3):
        self.write, self.memory = write, memory
        self._llm: Any = None

    def start(self, say: Callable[[str], None]) -> None:
        say(f"rl.engine draws with vLLM {getattr(_vllm(), '__version__', '')} in this process")

    def take(self, model: Transformer) -> None:
        if self._llm is None:
            self._llm = self._opened(model)
            return
        # The way in which TRL gives a trainer's weights to vLLM in the same process.
        inner = self._llm.llm_engine.model_executor.driver_worker.model_runner.model
        inner.load_weights(export_weights(model).items())
        self._llm.reset_prefix_cache()

    def _opened(self, model: Transformer) -> Any:
        # The model has to be within reach: in a process of its own it is not.
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        folder, vllm = self.write(model), _vllm()
        try:
            return vllm.LLM(
                model=str(folder),
                skip_tokenizer_init=True,
                gpu_memory_utilization=self.memory,
                max_model_len=model.config.context,
                # At the temperature, as a trainer computes them.
                logprobs_mode="processed_logprobs",
            )
        except Exception as error:
            raise MachineError(
                f"vLLM does not start with rl.engine.memory={self.memory:g} "
                f"({last_line(error)}): write another share of the device's memory, or leave "
                "rl.engine out"
            ) from error

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling | Sequence[Sampling],
        seeds: Sequence[int] | None = None,
    ) -> list[Completion]:
        vllm = _vllm()
        asked = spread(prompts, sampling, seeds)
        parameters = [
            vllm.SamplingParams(
                temperature=each.temperature,
                top_p=each.top_p,
                top_k=each.top_k or -1,
                min_p=each.min_p,
                max_tokens=each.max_new_tokens,
                stop_token_ids=list(each.stop_ids),
                seed=seed,
                logprobs=0,
                detokenize=False,
            )
            for _, each, seed in asked
        ]
        rows = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        done = self._llm.generate(rows, parameters, use_tqdm=False)
        found = []
        for each, (_, wanted, _) in zip(done, asked, strict=True):
            tokens = list(each.outputs[0].token_ids)
            held = each.outputs[0].logprobs or []
            logprobs = [at[token].logprob for at, token in zip(held, tokens, strict=True)]
            found.append(completion(tokens, logprobs, wanted, "vLLM"))
        return found

    def close(self) -> None:
        self._llm = None


def _vllm() -> Any:
    """The library.

    Raises:
        InputError: it is not installed.
    """
    return require("vllm", "vllm", "for rl.engine.kind=vllm")
