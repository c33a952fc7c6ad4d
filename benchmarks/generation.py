"""Tokens per second of the engine beside `transformers` on the same weights, in the same run.

    OMP_NUM_THREADS=1 python benchmarks/generation.py [--batch 256] [--new 40] [--repeats 3]

Both draw at temperature 1 from the whole distribution, without stop tokens, in turns; the best of
the repeats counts, so that another process takes from both alike. Prompts have 15 to 35 tokens.
"""

from __future__ import annotations

import argparse
import logging
import random
import tempfile

import torch
from turns import best_seconds

from fourstage.generation.engine import Engine
from fourstage.generation.sampling import Sampling
from fourstage.interchange.configs import to_huggingface
from fourstage.interchange.weights import export_weights, write_weights
from fourstage.model.config import ModelConfig
from fourstage.model.transformer import Transformer


def transformers_twin(model: Transformer):
    """The same weights as a model of transformers."""
    import json
    from pathlib import Path

    from transformers import AutoModelForCausalLM

    logging.getLogger("transformers").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        config = to_huggingface(model.config, model.head) | {"eos_token_id": None}
        Path(folder, "config.json").write_text(json.dumps(config | {"pad_token_id": 0}))
        write_weights(Path(folder, "model.safetensors"), export_weights(model))
        return AutoModelForCausalLM.from_pretrained(folder).eval()


def padded_left(prompts: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, [prompts, longest]."""
    longest = max(map(len, prompts))
    ids = [[0] * (longest - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids), torch.tensor(mask)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16, 64, 256])
    parser.add_argument("--new", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocab", type=int, default=860)
    arguments = parser.parse_args()

    config = ModelConfig(
        vocab_size=arguments.vocab,
        width=arguments.width,
        layers=arguments.layers,
        heads=max(1, arguments.width // 32),
        kv_heads=max(1, arguments.width // 32),
        mlp_width=arguments.width * 8 // 3 // 8 * 8,
        context=256,
    )
    model = Transformer(config).initialise(0)
    theirs, engine = transformers_twin(model), Engine(model)
    dice = random.Random(0)
    print(f"{config.parameters():,} parameters, {arguments.new} new tokens, "
          f"{torch.get_num_threads()} threads")  # fmt: skip
    print(f"{'batch':>6} {'transformers':>14} {'fourstage':>11} {'ratio':>6}   tokens per second")
    for batch in arguments.batch:
        prompts = [
            [dice.randrange(1, arguments.vocab) for _ in range(dice.randint(15, 35))]
            for _ in range(batch)
        ]
        ids, mask = padded_left(prompts)
        sampling = Sampling(max_new_tokens=arguments.new)

        def run_theirs(ids=ids, mask=mask):
            return theirs.generate(
                ids, attention_mask=mask, max_new_tokens=arguments.new, do_sample=True, top_k=0
            )

        def run_ours(prompts=prompts, sampling=sampling):
            return engine.generate(prompts, sampling, seeds=range(len(prompts)))

        best = best_seconds({"theirs": run_theirs, "ours": run_ours}, arguments.repeats)
        speed = {name: batch * arguments.new / seconds for name, seconds in best.items()}
        print(f"{batch:>6} {speed['theirs']:>14,.0f} {speed['ours']:>11,.0f} "
              f"{speed['ours'] / speed['theirs']:>6.2f}")  # fmt: skip


if __name__ == "__main__":
    main()
