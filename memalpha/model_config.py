"""Shape and arithmetic of a model, and in what its layers differ."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax

ATTENTIONS = ("blocks", "xla", "cudnn")  # and "auto": see `best_attention`
REMATS = ("none", "full", "dots")
ACTIVATIONS = {"silu": jax.nn.silu, "gelu_tanh": partial(jax.nn.gelu, approximate=True)}


class RopeScaling(NamedTuple):
    """Slower rotation for a longer context, by wavelength ("llama3"; see `attention`).

    original: positions that the model was first trained for.
    """

    factor: float
    low: float
    high: float
    original: int


class Rope(NamedTuple):
    """A rotary embedding: base and scaling of its frequencies."""

    theta: float
    scaling: RopeScaling | None = None


class Kind(NamedTuple):
    """In what layers differ. rope None: no rotary embedding; window 0: all tokens are seen."""

    rope: Rope | None
    window: int


@dataclass(frozen=True)
class ModelConfig:
    """Shape and arithmetic of a model. Hashable: a static argument of every jitted function.

    dtype: activations and matrix products; norms, softmax and logits are float32 at any setting.
    remat: what the backward pass computes again: "none", "full" (all of a layer) or "dots"
      (all but matrix products with no batch axis).
    scan_layers: in training, all layers but the last as one loop: it compiles in the time of a
      layer, and needs room for a copy of their weights and of its gradient.
    attention: "blocks" (einsum over causal query blocks), or an implementation of
      `jax.nn.dot_product_attention`: "xla", "cudnn" (flash, bfloat16 on NVIDIA GPUs). "auto"
      becomes the best there is here.
    family, max_positions: what files say of the model (`hub`); no arithmetic depends on them.
    qk_norm: RMSNorm on the heads of queries and keys. qkv_bias: on their projections, and values'.
    post_norms: RMSNorm on the output of attention and MLP too. norm_plus_one: norms multiply by
      1 + scale. scale_embedding: by the root of the width. activation: of `ACTIVATIONS`.
    query_pre_attn_scalar: scores are divided by its root; None: head_dim.
    rope_scaling: of all layers but those with a base of their own.
    no_rope_layers: numbers of the layers without rotary embedding.
    window_layers: numbers of the layers in which a query sees `window` tokens, itself among them;
      their rotary base is `window_rope_theta`, None: rope_theta.

    Raises ValueError, which names the field and what to choose.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_size: int
    rope_theta: float = 1e6
    rms_eps: float = 1e-6
    tie_embeddings: bool = True
    dtype: str = "float32"
    param_dtype: str = "float32"
    value_head: bool = False
    remat: str = "none"
    scan_layers: bool = False
    attention: str = "blocks"
    family: str = "qwen3"
    max_positions: int = 40_960
    qk_norm: bool = True
    qkv_bias: bool = False
    post_norms: bool = False
    norm_plus_one: bool = False
    scale_embedding: bool = False
    activation: str = "silu"
    query_pre_attn_scalar: int | None = None
    rope_scaling: RopeScaling | None = None
    no_rope_layers: tuple[int, ...] = ()
    window: int = 0
    window_layers: tuple[int, ...] = ()
    window_rope_theta: float | None = None

    def __post_init__(self):
        if self.rope_scaling is not None:  # from JSON it is a plain tuple
            object.__setattr__(self, "rope_scaling", RopeScaling(*self.rope_scaling))
        # The device is asked only where it matters: asking starts the backend, and a config can be
        # built before several processes or virtual devices are set up.
        if self.attention == "auto":
            object.__setattr__(self, "attention", best_attention(self.dtype, self.head_dim))
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"ModelConfig: num_heads {self.num_heads} is not a multiple of num_kv_heads "
                f"{self.num_kv_heads}; choose num_kv_heads that divides it"
            )
        if self.head_dim % 2:
            raise ValueError(f"ModelConfig: head_dim {self.head_dim} is odd; RoPE needs it even")
        choices = {"remat": REMATS, "attention": ATTENTIONS, "activation": tuple(ACTIVATIONS)}
        for field, allowed in choices.items():
            if getattr(self, field) not in allowed:
                given = getattr(self, field)
                raise ValueError(f"ModelConfig: {field} {given!r}; use one of {allowed}")
        if self.window_layers and self.window < 1:
            raise ValueError(
                f"ModelConfig: window {self.window}, but window_layers {self.window_layers}; give a"
                " window of at least 1 token"
            )
        if self.attention == "cudnn" and best_attention(self.dtype, self.head_dim) != "cudnn":
            raise ValueError(
                f"ModelConfig: attention 'cudnn' needs an NVIDIA GPU of Ampere or later, dtype"
                f" bfloat16, and heads of a multiple of 8, to 128 (256 from Hopper on); here is"
                f" {jax.devices()[0].device_kind}, dtype {self.dtype} and head_dim {self.head_dim}:"
                " use 'auto' or 'blocks'"
            )

    def kind(self, layer: int) -> Kind:
        """In what the layer of this number may differ from others."""
        windowed = layer in self.window_layers
        rope = Rope(self.rope_theta, self.rope_scaling)
        if windowed and self.window_rope_theta is not None:
            rope = Rope(self.window_rope_theta)
        return Kind(None if layer in self.no_rope_layers else rope, self.window if windowed else 0)


def best_attention(dtype: str, head_dim: int = 64) -> str:
    """Flash attention ("cudnn") where it runs: NVIDIA GPUs of compute capability 8 or more, with
    floats of 16 bits and heads that its kernels take. Elsewhere "blocks"."""
    device = jax.devices()[0]
    nvidia = device.platform == "gpu" and device.device_kind.startswith("NVIDIA")
    if not nvidia or dtype not in ("bfloat16", "float16") or head_dim % 8:
        return "blocks"
    capability = float(device.compute_capability)
    widest = 256 if capability >= 9 else 128 if capability >= 8 else 0
    return "cudnn" if head_dim <= widest else "blocks"
