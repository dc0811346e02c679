"""The decoder-only transformer, as in the textbook, in torch. For export and for tests; never imported to serve.

Shapes: B batch, T tokens, E hidden size, H query heads, G key/value heads, D head size, F feed-forward size,
V vocabulary. Module names follow the Hugging Face checkpoints of the Llama family, so weights load by name.
Sources: Vaswani et al. 2017 (attention, residuals), Su et al. 2021 (rotary positions), Zhang and Sennrich 2019
(RMS norm), Shazeer 2020 (SwiGLU), Ainslie et al. 2023 (grouped queries), Touvron et al. 2023 (Llama).
"""

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from model.config import ModelConfig, UnsupportedModelError, rotary_frequencies


def rotary_tables(config: ModelConfig) -> tuple[Tensor, Tensor]:
    """Cosine and sine of every position's rotation angles: two float32 [context_tokens, D/2]."""
    frequencies = torch.tensor(rotary_frequencies(config), dtype=torch.float64)
    angles = torch.outer(torch.arange(config.context_tokens, dtype=torch.float64), frequencies)
    return angles.cos().float(), angles.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (x[i], x[i + D/2]) of each head by its position's angles.

    x: [B, heads, T, D]; cos, sin: [T, D/2]. Returns the shape of x.
    """
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def scaled_dot_product_attention(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Causal attention: each position looks at itself and what came before.

    query, key, value: [B, H, T, D]. Returns the output [B, H, T, D] and the attention weights [B, H, T, T],
    whose rows sum to one.
    """
    tokens = query.shape[-2]
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])  # [B, H, T, T]
    future = torch.ones(tokens, tokens, dtype=torch.bool, device=query.device).triu(1)
    weights = scores.masked_fill(future, float("-inf")).softmax(dim=-1)
    return weights @ value, weights


class RMSNorm(nn.Module):
    """Divide by the root mean square over the hidden axis, then scale by a learnt weight [E]."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:  # [B, T, E] -> [B, T, E]
        # a division, not a product with the reciprocal: ONNX Runtime fuses this form into one node
        return self.weight * (x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))


class Attention(nn.Module):
    """Multi-head attention in which H/G query heads share each key/value head."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        query_size, kv_size = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, query_size, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.hidden_size, kv_size, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.hidden_size, kv_size, bias=config.attention_bias)
        self.o_proj = nn.Linear(query_size, config.hidden_size, bias=config.attention_bias)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # [B, T, E] -> [B, T, E]
        query = rotate(self._split_heads(self.q_proj(x)), cos, sin)  # [B, H, T, D]
        key = rotate(self._split_heads(self.k_proj(x)), cos, sin)  # [B, G, T, D]
        value = self._split_heads(self.v_proj(x))  # [B, G, T, D]
        group = self.config.num_heads // self.config.num_kv_heads
        key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
        output, _ = scaled_dot_product_attention(query, key, value)
        return self.o_proj(output.transpose(1, 2).flatten(2))  # heads side by side again

    def _split_heads(self, x: Tensor) -> Tensor:  # [B, T, heads * D] -> [B, heads, T, D]
        return x.unflatten(-1, (-1, self.config.head_dim)).transpose(1, 2)


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)), through the wider size F."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:  # [B, T, E] -> [B, T, E]
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nn.Module):
    """Norm, attention, residual; norm, feed-forward, residual."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = FeedForward(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # [B, T, E] -> [B, T, E]
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Transformer(nn.Module):
    """Embedding, stacked layers, final norm and the head that scores every token of the vocabulary."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.embed_tokens.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        """input_ids: int64 [B, T]. Returns logits float32 [B, T, V]."""
        cos, sin = (table[: input_ids.shape[1]].to(input_ids.device) for table in rotary_tables(self.config))
        x = self.embed_tokens(input_ids)  # [B, T, E]
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.lm_head(self.norm(x))


def load_transformer(config: ModelConfig, tensors: Mapping[str, np.ndarray]) -> Transformer:
    """A Transformer in evaluation mode holding a checkpoint's tensors (names without the `model.` prefix), float32.

    Raises:
        UnsupportedModelError: a tensor is missing, unknown or of another shape than the geometry asks for.
    """
    last_layer = config.num_layers - 1
    if f"layers.{last_layer}.input_layernorm.weight" not in tensors:  # a damaged count would build layers without end
        raise UnsupportedModelError(f"the checkpoint has no layer {last_layer}, its geometry has {config.num_layers}")
    state = {name: torch.tensor(np.asarray(array, np.float32)) for name, array in tensors.items()}
    if config.tie_word_embeddings and "embed_tokens.weight" in state:
        state["lm_head.weight"] = state["embed_tokens.weight"]
    try:
        with torch.device("meta"):
            transformer = Transformer(config)
        transformer.load_state_dict(state, assign=True)
    except RuntimeError as error:
        detail = " ".join(str(error).split())[:400]
        raise UnsupportedModelError(f"the checkpoint's tensors don't fit its geometry: {detail}") from error
    return transformer.eval().requires_grad_(False)
