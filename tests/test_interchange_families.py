"""What every supported architecture promises: transformers and this model are the same function.

Random weights of each family, made by transformers, are loaded, trained a step, saved and reopened.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fourstage.errors import InputError
from fourstage.generation.engine import Engine
from fourstage.generation.sampling import Sampling
from fourstage.interchange import load_config, load_model, save_model
from fourstage.interchange.configs import exportable
from fourstage.model.config import RopeScaling
from fourstage.model.layout import Layout
from fourstage.model.transformer import Transformer
from tiny_models import Letters, logits_of, tiny_model

# 24 tokens: longer than any window below, and than the original context of scaled positions.
TOKENS = [5, 9, 17, 3, 58, 22, 22, 41, 7, 30, 2, 11, 50, 49, 8, 6, 33, 4, 19, 20, 21, 44, 12, 13]
SHORT = TOKENS[:7]

LLAMA: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
GEMMA = LLAMA | {"num_hidden_layers": 3, "head_dim": 8, "sliding_window": 6}
NEOX = LLAMA | {"num_key_value_heads": None}
GPT2 = {"vocab_size": 60, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
FACTORS = {"short_factor": [1.0, 1.1, 1.3, 2.0], "long_factor": [1.0, 2.0, 4.0, 8.0]}


def scaled(kind: str, original: int | None = None, **fields) -> dict[str, Any]:
    rope = {"rope_type": kind, "rope_theta": 1000.0, **fields}
    return {
        "rope_parameters": rope
        if original is None
        else {**rope, "original_max_position_embeddings": original}
    }


# name -> class prefix, fields of the config, the family it is saved as.
CASES: dict[str, tuple[str, dict[str, Any], str]] = {
    "llama": ("Llama", LLAMA, "llama"),
    "llama-biases": ("Llama", LLAMA | {"attention_bias": True, "mlp_bias": True}, "llama"),
    "llama-llama3": ("Llama", LLAMA | scaled("llama3", 16, **LLAMA3), "llama"),
    "llama-linear": ("Llama", LLAMA | scaled("linear", factor=4.0), "llama"),
    "llama-dynamic": ("Llama", LLAMA | scaled("dynamic", factor=4.0), "llama"),
    "llama-yarn": ("Llama", LLAMA | scaled("yarn", 16, factor=4.0), "llama"),
    "llama-longrope": ("Llama", LLAMA | scaled("longrope", 16, factor=4.0, **FACTORS), "llama"),
    "mistral": ("Mistral", LLAMA | {"sliding_window": 6}, "mistral"),
    "mistral-open": ("Mistral", LLAMA | {"sliding_window": None, "head_dim": 16}, "mistral"),
    "qwen2": ("Qwen2", LLAMA | {"tie_word_embeddings": True}, "qwen2"),
    "qwen2-window": (
        "Qwen2",
        LLAMA | {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
        "qwen2",
    ),
    "qwen3": ("Qwen3", LLAMA | {"head_dim": 16, "tie_word_embeddings": True}, "qwen3"),
    "qwen3-yarn": (
        "Qwen3",
        LLAMA | {"head_dim": 8} | scaled("yarn", 16, factor=4.0, beta_fast=16.0),
        "qwen3",
    ),
    "gemma2": ("Gemma2", GEMMA | {"query_pre_attn_scalar": 5}, "gemma2"),
    "gemma3": ("Gemma3", GEMMA | {"num_hidden_layers": 7, "query_pre_attn_scalar": 5}, "gemma3"),
    "gemma3-scaled": (
        "Gemma3",
        GEMMA
        | {
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
            },
        },
        "gemma3",
    ),
    "olmo2": ("Olmo2", LLAMA, "olmo2"),
    "phi3": ("Phi3", LLAMA | {"sliding_window": 6, "pad_token_id": 0}, "phi3"),
    "phi3-longrope": (
        "Phi3",
        LLAMA
        | {"pad_token_id": 0, "original_max_position_embeddings": 16}
        | {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1000.0, **FACTORS}},
        "phi3",
    ),
    "phi3-partial": ("Phi3", LLAMA | {"pad_token_id": 0, "partial_rotary_factor": 0.5}, "phi3"),
    "mixtral": ("Mixtral", LLAMA | {"num_local_experts": 4, "sliding_window": 6}, "mixtral"),
    "qwen3-moe": (
        "Qwen3Moe",
        LLAMA
        | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "head_dim": 8},
        "qwen3_moe",
    ),
    "gpt2": ("GPT2", GPT2, "gpt2"),
    "gpt2-untied": ("GPT2", GPT2 | {"tie_word_embeddings": False, "n_inner": 40}, "gpt2"),
    "neox": ("GPTNeoX", NEOX | {"rotary_pct": 0.25}, "neox"),
    "neox-serial": (
        "GPTNeoX",
        NEOX | {"use_parallel_residual": False, "attention_bias": False, "rotary_pct": 1.0},
        "neox",
    ),
    "bloom": ("Bloom", {"vocab_size": 60, "hidden_size": 48, "n_layer": 2, "n_head": 6}, "bloom"),
}
WRITERS = {"GPT2": "GPT2LMHeadModel"}
CONFIGS = {"Gemma3": "Gemma3TextConfig"}
# One of each family for what does not depend on its variants.
FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "olmo2", "phi3", "mixtral"]
FAMILIES += ["qwen3-moe", "gpt2", "neox", "bloom"]


@pytest.fixture(scope="session")
def transformers():
    import transformers

    logging.getLogger("transformers").setLevel(logging.ERROR)
    return transformers


@pytest.fixture
def made(transformers, tmp_path):
    """Makes a model of a case and saves it; -> (theirs, ours)."""

    def make(case: str, **saving) -> tuple[Any, Transformer]:
        theirs = random_model(transformers, case)
        theirs.save_pretrained(tmp_path / case, **saving)
        return theirs, load_model(tmp_path / case)

    return make


def random_model(transformers, case: str, kind: str = "ForCausalLM", **changes):
    """A model of transformers in which every weight matters."""
    prefix, fields, _ = CASES[case]
    fields = {"initializer_range": 0.2, "eos_token_id": 3, "pad_token_id": 0, **fields, **changes}
    config = getattr(transformers, CONFIGS.get(prefix, f"{prefix}Config"))(**fields)
    config._attn_implementation = "eager"
    name = WRITERS.get(prefix, prefix + kind) if kind == "ForCausalLM" else prefix + kind
    torch.manual_seed(0)
    model = getattr(transformers, name)(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 1:
                weight.add_(torch.empty_like(weight).uniform_(-0.4, 0.4))
            elif "gate.weight" in name and "experts" not in name:
                weight.normal_(0, 0.5)
    return model


def their_logits(model, tokens: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0]


def their_text(model, prompt: list[int], new: int) -> list[int]:
    out = model.generate(torch.tensor([prompt]), max_new_tokens=new, do_sample=False)
    return out[0, len(prompt) :].tolist()


def our_text(model: Transformer, prompt: list[int], new: int, stop: int = 3) -> list[int]:
    sampling = Sampling(temperature=0, max_new_tokens=new, stop_ids=(stop,))
    return Engine(model).generate([prompt], sampling)[0].tokens


def loss_of(logits: torch.Tensor, tokens: list[int]) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(tokens[1:]))


@pytest.mark.parametrize("case", CASES)
def test_a_folder_of_transformers_has_the_same_logits_and_greedy_text_here(case, made):
    theirs, ours = made(case)
    assert exportable(ours.config) == CASES[case][2]

    read = [TOKENS, SHORT]
    for tokens in read:
        assert (their_logits(theirs, tokens) - logits_of(ours, tokens)).abs().max() < 1e-4
    for prompt in read:
        assert our_text(ours, prompt, 9) == their_text(theirs, prompt, 9)


@pytest.mark.parametrize("case", CASES)
def test_what_is_saved_here_opens_in_transformers_and_here_as_it_was(
    case, made, transformers, tmp_path
):
    theirs, ours = made(case)
    save_model(tmp_path / "again", ours, Letters(), card="# A model")
    opener = transformers.AutoModelForCausalLM
    reopened = opener.from_pretrained(tmp_path / "again", attn_implementation="eager").eval()
    assert type(reopened) is type(theirs)
    for tokens in (TOKENS, SHORT):
        assert torch.equal(their_logits(theirs, tokens), their_logits(reopened, tokens))
    again = load_model(tmp_path / "again")
    assert again.config == ours.config == load_config(tmp_path / "again")
    assert torch.equal(logits_of(ours, TOKENS), logits_of(again, TOKENS))


@pytest.mark.parametrize("case", FAMILIES)
def test_gradients_and_a_step_of_adamw_are_those_of_transformers(case, made, tmp_path):
    theirs, ours = made(case)
    for model, logits in (
        (theirs, lambda: theirs(torch.tensor([TOKENS])).logits[0]),
        (ours, lambda: ours.logits(ours(torch.tensor(TOKENS), Layout([len(TOKENS)])))),
    ):
        loss_of(logits(), TOKENS).backward()
        torch.optim.AdamW(model.parameters(), lr=1e-2, eps=1e-3, weight_decay=0.1).step()
    # Their gradients and weights under our names: saved by transformers, read here.
    theirs_after = _under_our_names(theirs, tmp_path / "after")
    with torch.no_grad():
        for weight in theirs.parameters():
            weight.copy_(weight.grad if weight.grad is not None else torch.zeros_like(weight))
    gradients = _under_our_names(theirs, tmp_path / "gradients")
    for name, weight in ours.named_parameters():
        size = gradients[name].abs().max()
        assert (weight.grad - gradients[name]).abs().max() < 1e-4 * (size + 1), name
        assert (weight - theirs_after[name]).abs().max() < 1e-4, name


def _under_our_names(model, folder: Path) -> dict[str, torch.Tensor]:
    model.save_pretrained(folder)
    return dict(load_model(folder).named_parameters())


@pytest.mark.parametrize("case", FAMILIES)
def test_a_batch_of_documents_is_what_transformers_makes_of_each(case, made):
    theirs, ours = made(case)
    documents = [TOKENS, SHORT, TOKENS[3:19], [9], TOKENS[::-1]]
    with torch.no_grad():
        flat = torch.tensor([token for document in documents for token in document])
        together = ours.logits(ours(flat, Layout([len(document) for document in documents])))
    alone = torch.cat([their_logits(theirs, document) for document in documents])
    assert (together - alone).abs().max() < 1e-4


@pytest.mark.parametrize("case", FAMILIES)
def test_a_reward_model_scores_as_its_classifier_in_transformers(
    case, made, transformers, tmp_path
):
    _, ours = made(case)
    scorer = ours.with_scalar_head(seed=3)
    save_model(tmp_path / "reward", scorer, Letters(), card="# A reward model")
    opener = transformers.AutoModelForSequenceClassification
    theirs = opener.from_pretrained(tmp_path / "reward", attn_implementation="eager").eval()
    with torch.no_grad():
        mine = scorer.scores(scorer(torch.tensor(TOKENS), Layout([len(TOKENS)])))[-1]
        assert abs(float(mine - theirs(torch.tensor([TOKENS])).logits[0, 0])) < 1e-4
    again = load_model(tmp_path / "reward")
    assert again.head == "scalar" and again.config == scorer.config


@pytest.mark.parametrize("case", ["phi3", "mixtral", "gpt2", "neox", "bloom"])
def test_shards_and_half_precision_load_as_they_are(case, transformers, tmp_path):
    half = random_model(transformers, case).to(torch.bfloat16)
    half.save_pretrained(tmp_path, max_shard_size="10KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    opener = transformers.AutoModelForCausalLM
    theirs = opener.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager")
    ours = load_model(tmp_path)
    assert {weight.dtype for weight in ours.parameters()} == {torch.float32}
    assert (their_logits(theirs.eval(), TOKENS) - logits_of(ours, TOKENS)).abs().max() < 1e-4


def _without_body(name: str) -> str:
    return name.removeprefix("transformer.")


def _as_older_neox(name: str) -> str:
    return name.replace("lm_head", "embed_out")


@pytest.mark.parametrize(
    ("case", "older", "buffers"),
    [
        ("gpt2", _without_body, ("h.0.attn.bias", "h.0.attn.masked_bias")),
        ("bloom", _without_body, ()),
        (
            "neox",
            _as_older_neox,
            ("gpt_neox.layers.0.attention.bias", "gpt_neox.layers.0.attention.rotary_emb.inv_freq"),
        ),
        ("llama", str, ("model.layers.0.self_attn.rotary_emb.inv_freq",)),
    ],
)
def test_checkpoints_of_older_versions_hold_the_same_model(case, older, buffers, made, tmp_path):
    _, ours = made(case)
    path = tmp_path / case / "model.safetensors"
    tensors = {older(name): weight for name, weight in load_file(path).items()}
    assert tensors.keys() != load_file(path).keys() or buffers
    save_file(tensors | {name: torch.ones(2) for name in buffers}, path)
    assert torch.equal(logits_of(load_model(tmp_path / case), TOKENS), logits_of(ours, TOKENS))


@pytest.mark.parametrize("case", ["mixtral", "qwen3-moe"])
def test_experts_load_stacked_as_they_are_in_memory_too(case, made, tmp_path):
    theirs, ours = made(case)
    assert any(".experts.gate_up_proj" in name for name in theirs.state_dict())
    path = tmp_path / case / "model.safetensors"
    assert any(".experts.0." in name for name in load_file(path))
    save_file({name: weight.clone() for name, weight in theirs.state_dict().items()}, path)
    assert torch.equal(logits_of(load_model(tmp_path / case), TOKENS), logits_of(ours, TOKENS))


@pytest.mark.parametrize("case", ["phi3", "neox", "gpt2", "mixtral"])
def test_what_a_folder_lacks_is_named_as_its_own_family_names_it(case, made, tmp_path):
    made(case)
    path = tmp_path / case / "model.safetensors"
    tensors = load_file(path)
    lost = next(
        name
        for name in sorted(tensors)
        if "qkv" in name or "c_attn" in name or "w1" in name or "query_key" in name
    )
    del tensors[lost]
    save_file(tensors, path)
    with pytest.raises(InputError, match=f"the weights lack {lost}"):
        load_model(tmp_path / case)


@pytest.mark.parametrize(
    "scaling",
    [
        RopeScaling("linear", 4.0, 16),
        RopeScaling("dynamic", 4.0, 16),
        RopeScaling("yarn", 4.0, 16),
        RopeScaling("llama3", 4.0, 16),
    ],
    ids=lambda scaling: scaling.kind,
)
def test_a_model_made_longer_here_is_the_same_in_transformers(scaling, transformers, tmp_path):
    ours = tiny_model(context=64, rope_scaling=scaling)
    save_model(tmp_path, ours, Letters(), card="# A model")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    again = load_model(tmp_path)
    for tokens in (TOKENS, SHORT):
        mine = logits_of(ours, tokens)
        assert (their_logits(theirs, tokens) - mine).abs().max() < 1e-4
        assert (logits_of(again, tokens) - mine).abs().max() < 1e-5
