"""`LlamaForCausalLM` from its package, transformers, with random weights."""

from __future__ import annotations

from torch import Tensor, nn

from peers.shapes import Shape


def llama_model(shape: Shape) -> nn.Module:
    """The model as its package makes it, attention through `scaled_dot_product_attention`."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.width,
        intermediate_size=shape.gated_mlp,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=shape.context,
        tie_word_embeddings=shape.tied,
        attn_implementation="sdpa",
        use_cache=False,
    )
    return LlamaForCausalLM(config)


class Llama(nn.Module):
    """[rows, time] token ids -> [rows, time, vocab] logits."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.inner = llama_model(shape)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.inner(input_ids=tokens).logits
