"""A dense decoder in Flax linen, of any size, with an explicit key-value cache.

RMSNorm, grouped-query attention with rotary embeddings, a gated MLP. As it stands it is Qwen3
(technical report, arXiv:2505.09388, section 2), with RMSNorm on every query and key head and no
biases; fields of `ModelConfig` switch to what other families do, and `hub.FAMILIES` says which
switches make which family. The module ends at the final norm; the head is a function, so that each
caller pays for logits only where it uses them.

Axes: B batch, S tokens given, N cache slots, D width, H query heads, K key-value heads,
      G = H / K, h head width, V vocabulary, T completion tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from memalpha.sharding import CACHE, LOOKUP, ROWS, constrain

Array = jax.Array
Params = Mapping[str, Any]
KV = tuple[Array, Array]

ATTENTIONS = ("blocks", "xla", "cudnn")  # and "auto": see `best_attention`
REMATS = ("none", "full", "dots")
ACTIVATIONS = {"silu": jax.nn.silu, "gelu_tanh": partial(jax.nn.gelu, approximate=True)}
LORA = ("lora_a", "lora_b")
MASKED = -1e30  # finite, so that a row with no valid key averages instead of giving NaN
MIN_BLOCK = 64  # query positions; smaller causal blocks cost more in launches than they save
MAX_BLOCKS = 8  # causal query blocks are unrolled: bounds the size of the program


class RopeScaling(NamedTuple):
    """Slower rotation for a longer context, by wavelength ("llama3"; see `_frequencies`).

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


@struct.dataclass
class Cache:
    """Keys and values of the tokens seen so far; all rows share the write index.

    k: one [B, K, h, N] array per layer (as the score product reads it: several times faster on CPU
    than [N, h]); v: one [B, K, N, h] array per layer; valid: [B, N] bool, False for padding and
    unwritten slots; index: [] int32, the next slot to write.
    """

    k: tuple[Array, ...]
    v: tuple[Array, ...]
    valid: Array
    index: Array


def grow(cache: Cache, slots: int) -> Cache:
    """The same cache with room for `slots` tokens in all (static)."""
    extra = slots - cache.valid.shape[1]
    if extra < 0:
        raise ValueError(f"grow: cache has {cache.valid.shape[1]} slots already, asked for {slots}")
    none, more = (0, 0), (0, extra)
    return cache.replace(
        k=tuple(jnp.pad(k, (none, none, none, more)) for k in cache.k),
        v=tuple(jnp.pad(v, (none, none, more, none)) for v in cache.v),
        valid=jnp.pad(cache.valid, (none, more)),
    )


def rope_tables(positions: Array, head_dim: int, rope: Rope) -> tuple[Array, Array]:
    """Cosine and sine of the rotary angles, [B, S, 1, h/2] float32 each, from positions [B, S]."""
    frequency = _frequencies(head_dim, rope)
    angle = positions.astype(jnp.float32)[:, :, None, None] * frequency
    return jnp.cos(angle), jnp.sin(angle)


def _frequencies(head_dim: int, rope: Rope) -> Array:
    """[h/2] float32. Scaled, waves that turn fewer than `low` times in the original context are
    `factor` times slower, those that turn more than `high` times stay, and between the two the
    frequencies are mixed in proportion (Llama 3 report, arXiv:2407.21783, and its released code).
    """
    half = head_dim // 2
    frequency = rope.theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    if rope.scaling is None:
        return frequency
    factor, low, high, original = rope.scaling
    turns = original * frequency / (2 * math.pi)
    unscaled = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
    return frequency * (unscaled + (1 - unscaled) / factor)


def rotate(x: Array, cos: Array, sin: Array) -> Array:
    """Rotary embedding of x [B, S, heads, h]; the two halves of a head form the pairs, as in the
    hub's files of all families."""
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def causal_attention(
    q: Array, k: Array, v: Array, valid: Array, config: ModelConfig, window: int = 0
) -> Array:
    """Attention within one block of tokens: every query sees the valid keys up to its own slot, of
    them the last `window` (0: all).

    q [B,H,T,h] of the last T tokens, k [B,K,h,S], v [B,K,S,h], valid [B,S] -> [B,H,T,h]. Query
    block i is multiplied only with the keys before its end, which saves nearly half of the square.
    """
    t, s = q.shape[2], v.shape[2]
    if config.attention != "blocks":
        # No mask but the causal one, with or without a window, which flash kernels need not read:
        # `Transformer` has moved padding to the end. They align a shorter query with the first
        # key, and take an even number of tokens: hence the zeros.
        q, k, v = q.swapaxes(1, 2), k.transpose(0, 3, 1, 2), v.swapaxes(1, 2)
        q = jnp.pad(q, ((0, 0), (s - t, 0), (0, 0), (0, 0)))
        q, k, v = (jnp.pad(x, ((0, 0), (0, s % 2), (0, 0), (0, 0))) for x in (q, k, v))
        out = jax.nn.dot_product_attention(
            q,
            k,
            v,
            scale=config.query_pre_attn_scalar and config.query_pre_attn_scalar**-0.5,
            is_causal=True,
            local_window_size=(window - 1, 0) if window else None,
            implementation=config.attention,
        )
        return out[:, s - t : s].swapaxes(1, 2)
    block = MIN_BLOCK * math.ceil(t / (MIN_BLOCK * MAX_BLOCKS))
    out = []
    for start in range(0, t, block):
        end = min(start + block, t)
        keys = s - t + end
        causal = jnp.arange(keys) <= jnp.arange(s - t + start, keys)[:, None]
        mask = valid[:, None, None, None, :keys] & causal
        if window:
            mask = mask & _within(valid[:, :keys], keys - (end - start), end - start, window)
        out.append(_attend(q[:, :, start:end], k[..., :keys], v[:, :, :keys], mask, config))
    return jnp.concatenate(out, axis=2)


def cached_attention(
    q: Array, k: Array, v: Array, valid: Array, index: Array, config: ModelConfig, window: int = 0
) -> Array:
    """Attention of new tokens over a cache: q [B,H,S,h] at slots index + [0..S) -> [B,H,S,h]; each
    sees the last `window` tokens (0: all)."""
    mask = valid[:, None, None, None, :]
    s = q.shape[2]
    if s > 1:  # a single new token sits in the last written slot: nothing lies after it
        mask = mask & (jnp.arange(v.shape[2]) <= index + jnp.arange(s)[:, None])
    if window:
        mask = mask & _within(valid, index, s, window)
    return _attend(q, k, v, mask, config)


def _within(valid: Array, start: int | Array, count: int, window: int) -> Array:
    """Whether keys lie in the window of the queries at slots start + [0..count): valid [B,N] ->
    [B,1,1,count,N] bool. Counted in tokens, not in slots: padding may stand between."""
    number = jnp.cumsum(valid, axis=1)
    queries = lax.dynamic_slice_in_dim(number, start, count, axis=1)
    return (queries[:, :, None] - number[:, None, :] < window)[:, None, None]


def _attend(q: Array, k: Array, v: Array, mask: Array, config: ModelConfig) -> Array:
    """q [B,H,S,h], k [B,K,h,N], v [B,K,N,h], mask broadcastable to [B,K,G,S,N] -> [B,H,S,h]."""
    b, heads, s, h = q.shape
    q = (q * (config.query_pre_attn_scalar or h) ** -0.5).reshape(b, k.shape[1], -1, s, h)
    scores = jnp.einsum("bkgsh,bkhn->bkgsn", q, k, preferred_element_type=jnp.float32)
    scores = jnp.where(mask, scores, MASKED)
    weights = jnp.exp(scores - lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)))
    out = jnp.einsum(
        "bkgsn,bknh->bkgsh", weights.astype(v.dtype), v, preferred_element_type=jnp.float32
    )
    # Divided after the product: a pass over [S, h] in place of one over [S, N].
    out = out / jnp.sum(weights, axis=-1, keepdims=True)
    return out.astype(v.dtype).reshape(b, heads, s, h)


class RMSNorm(nn.Module):
    """x / rms(x) * scale over the last axis, computed in float32."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c = self.config
        init = nn.initializers.zeros if c.norm_plus_one else nn.initializers.ones
        scale = self.param("scale", init, x.shape[-1:], c.param_dtype)
        if c.norm_plus_one:
            scale = 1.0 + scale.astype(jnp.float32)
        x32 = x.astype(jnp.float32)
        inverse = lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + c.rms_eps)
        return (x32 * inverse * scale).astype(c.dtype)


class Dense(nn.Dense):
    """A linear layer, and a low-rank update beside it where the parameters hold one (`lora`)."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = super().__call__(x)
        if self.has_variable("params", "lora_a"):
            a, b = (self.get_variable("params", name).astype(self.dtype) for name in LORA)
            y = y + (x.astype(self.dtype) @ a) @ b
        return y


def _dense(
    config: ModelConfig, features: int, name: str, residual: bool = False, bias: bool = False
) -> Dense:
    """A linear layer; those that write to the residual stream start smaller with depth (GPT-2)."""
    std = 0.02 / math.sqrt(2 * config.num_layers) if residual else 0.02
    return Dense(
        features,
        use_bias=bias,
        dtype=config.dtype,
        param_dtype=config.param_dtype,
        kernel_init=nn.initializers.normal(std),
        name=name,
    )


class Attention(nn.Module):
    config: ModelConfig
    window: int

    @nn.compact
    def __call__(self, x: Array, rope, valid: Array, past, last: int) -> tuple[Array, KV]:
        """x [B,S,D] -> output [B,last,D] of the last tokens, and keys and values of all.

        rope: cosines and sines (`rope_tables`), or None: no rotary embedding.
        past: None; or (k, v, index) of the cache to write to and attend over; or (k, v, None) of a
        full one, which these tokens prolong.
        """
        c = self.config
        b, s, _ = x.shape
        heads = (b, -1, c.num_heads, c.head_dim)
        kv_heads = (b, -1, c.num_kv_heads, c.head_dim)
        dense = partial(_dense, c, bias=c.qkv_bias)
        q = dense(c.num_heads * c.head_dim, "q_proj")(x[:, s - last :]).reshape(heads)
        k = dense(c.num_kv_heads * c.head_dim, "k_proj")(x).reshape(kv_heads)
        v = dense(c.num_kv_heads * c.head_dim, "v_proj")(x).reshape(kv_heads)
        q, k = self._place(q, "q_norm", rope, s - last), self._place(k, "k_norm", rope)
        q, k, v = q.swapaxes(1, 2), k.transpose(0, 2, 3, 1), v.swapaxes(1, 2)
        if past is None:
            out = causal_attention(q, k, v, valid, c, self.window)
        elif past[2] is None:
            k, v = jnp.concatenate([past[0], k], axis=3), jnp.concatenate([past[1], v], axis=2)
            out = causal_attention(q, k, v, valid, c, self.window)
        else:
            past_k, past_v, index = past
            k = lax.dynamic_update_slice(past_k, k, (0, 0, 0, index))
            v = lax.dynamic_update_slice(past_v, v, (0, 0, index, 0))
            out = cached_attention(q, k, v, valid, index + s - last, c, self.window)
        k, v = constrain(k, CACHE), constrain(v, CACHE)
        out = out.swapaxes(1, 2).reshape(b, last, -1)
        return _dense(c, c.hidden_size, "o_proj", residual=True)(out), (k, v)

    def _place(self, heads: Array, norm: str, rope, start: int = 0) -> Array:
        """Queries or keys [B,S,heads,h] of the tokens from `start` on, normed and rotated as far as
        the model does."""
        heads = RMSNorm(self.config, name=norm)(heads) if self.config.qk_norm else heads
        return heads if rope is None else rotate(heads, *(r[:, start:] for r in rope))


class MLP(nn.Module):
    config: ModelConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c = self.config
        gate = _dense(c, c.mlp_size, "gate_proj")(x)
        up = _dense(c, c.mlp_size, "up_proj")(x)
        gated = ACTIVATIONS[c.activation](gate) * up
        return _dense(c, c.hidden_size, "down_proj", residual=True)(gated)


class Layer(nn.Module):
    config: ModelConfig
    last: int  # the tokens whose output is wanted; all give keys and values
    window: int = 0

    @nn.compact
    def __call__(self, x: Array, rope, valid: Array, past=None) -> tuple[Array, KV]:
        c = self.config
        normed = RMSNorm(c, name="attention_norm")(x)
        attention = Attention(c, self.window, name="attention")
        out, kv = attention(normed, rope, valid, past, self.last)
        if c.post_norms:
            out = RMSNorm(c, name="attention_post_norm")(out)
        x = x[:, x.shape[1] - self.last :] + out
        out = MLP(c, name="mlp")(RMSNorm(c, name="mlp_norm")(x))
        if c.post_norms:
            out = RMSNorm(c, name="mlp_post_norm")(out)
        return constrain(x + out, ROWS), kv


class Weight(nn.Module):
    """A matrix without a use of its own: the heads, which functions below apply."""

    config: ModelConfig
    shape: tuple[int, int]

    @nn.compact
    def __call__(self) -> Array:
        init = nn.initializers.normal(0.02)
        return self.param("kernel", init, self.shape, self.config.param_dtype)


class Transformer(nn.Module):
    """`Transformer(config).apply({"params": params}, tokens, positions, mask, cache)`."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        tokens: Array,
        positions: Array,
        mask: Array,
        cache: Cache | None = None,
        last: int | None = None,
        full: bool = False,
        keep: bool = True,
    ) -> tuple[Array, Cache | None]:
        """Hidden states after the final norm, and the cache that holds these tokens too.

        tokens, positions [B, S] int32; mask [B, S] bool, True for real tokens. Padding may stand
        anywhere: order is the order of slots, and no token attends to a padding slot. What the
        model gives at a padding position has no meaning.
        cache: None starts one with exactly S slots (a training step does not read it, so it costs
        nothing under jit); else the tokens are written at `cache.index`, and the caller makes sure
        with `grow` that they fit.
        full: the cache has no free slot, and is prolonged by S (static). The tokens are then
        attended to in causal blocks, as without a cache.
        last: give hidden states of the last so many tokens only (static; None: of all S). The last
        layer then works for these alone: a third of the cost in a model of three layers.
        keep: False where no cache is wanted: in training.
        Returns hidden [B, last, D] in the compute dtype, and the Cache or None.
        """
        c = self.config
        if tokens.ndim != 2 or not tokens.shape == positions.shape == mask.shape:
            raise ValueError(
                "Transformer: tokens, positions and mask must have one shape [B, S]; got "
                f"{tokens.shape}, {positions.shape}, {mask.shape}"
            )
        last = tokens.shape[1] if last is None else last
        if not 0 < last <= tokens.shape[1]:
            raise ValueError(f"Transformer: last={last}, but there are {tokens.shape[1]} tokens")
        packed = c.attention != "blocks" and (cache is None or full)
        if packed:  # padding behind the tokens, where causal attention does not see it
            order = jnp.argsort(~mask, axis=1, stable=True)
            tokens, positions, mask = (
                jnp.take_along_axis(x, order, axis=1) for x in (tokens, positions, mask)
            )
            back = jnp.argsort(order, axis=1)[:, -last:, None]
            last = tokens.shape[1]  # those that are wanted no longer stand together
        embed = nn.Embed(
            c.vocab_size,
            c.hidden_size,
            dtype=c.dtype,
            param_dtype=c.param_dtype,
            embedding_init=nn.initializers.normal(0.02),
            name="embed",
        )
        table = constrain(embed.embedding.astype(c.dtype), LOOKUP)
        x = constrain(jnp.take(table, tokens, axis=0), ROWS)
        if c.scale_embedding:
            x = x * jnp.asarray(c.hidden_size**0.5, c.dtype)
        kinds = [c.kind(i) for i in range(c.num_layers)]
        distinct = dict.fromkeys(kind.rope for kind in kinds if kind.rope)
        ropes = {rope: rope_tables(positions, c.head_dim, rope) for rope in distinct}
        index = jnp.int32(0) if cache is None else cache.index
        if cache is None:
            valid = mask
        elif full:
            valid = jnp.concatenate([cache.valid, mask], axis=1)
        else:
            valid = lax.dynamic_update_slice(cache.valid, mask, (0, index))
        layer = Layer if cache is not None else _remat_layer(c)
        looped = 0
        if c.scan_layers and not keep:
            body = kinds[: _period(kinds[:-1])]
            looped = len(kinds[:-1]) // max(len(body), 1) * len(body)
            x = self._loop(layer, body, looped, x, ropes, valid) if looped else x
        kv = []
        for i in range(looped, c.num_layers):
            past = None if cache is None else (cache.k[i], cache.v[i], None if full else index)
            outputs = last if i == c.num_layers - 1 else x.shape[1]
            block = layer(c, outputs, kinds[i].window, name=f"layers_{i}")
            x, pair = block(x, ropes.get(kinds[i].rope), valid, past)
            kv.append(pair)
        if not c.tie_embeddings:
            Weight(c, (c.hidden_size, c.vocab_size), name="lm_head")()
        if c.value_head:
            Weight(c, (c.hidden_size, 1), name="value_head")()
        if packed:
            x = jnp.take_along_axis(x, back, axis=1)
        hidden = RMSNorm(c, name="norm")(x)
        if not keep:
            return hidden, None
        k, v = zip(*kv, strict=True)
        return hidden, Cache(k=k, v=v, valid=valid, index=index + tokens.shape[1])

    def _loop(
        self, layer: type[Layer], kinds: Sequence[Kind], count: int, x: Array, ropes, valid: Array
    ) -> Array:
        """The first `count` layers, which have the same parameters and repeat these kinds: one
        body, with a layer of each kind, for all."""
        layers = [self.variables["params"][f"layers_{i}"] for i in range(count)]
        if len(set(map(jax.tree.structure, layers))) > 1:
            raise ValueError("Transformer: some layers have adapters; set scan_layers=False")
        stacked = [
            jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers[i :: len(kinds)])
            for i in range(len(kinds))
        ]

        def step(x, weights):
            for kind, own in zip(kinds, weights, strict=True):
                body = layer(self.config, x.shape[1], kind.window, parent=None)
                x = body.apply({"params": own}, x, ropes.get(kind.rope), valid)[0]
            return x, None

        return lax.scan(step, x, stacked)[0]


def _period(kinds: Sequence[Kind]) -> int:
    """After how many layers the kinds repeat; 0: never."""
    lengths = range(1, max(len(kinds) // 2, 1) + 1)
    return next((n for n in lengths if kinds[n:] == kinds[:-n]), 0)


def _remat_layer(config: ModelConfig):
    if config.remat == "none":
        return Layer
    policy = None
    if config.remat == "dots":
        policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    return nn.remat(Layer, policy=policy)


def init_params(config: ModelConfig, key: Array) -> Params:
    """Fresh parameters: normal(0.02), smaller by sqrt(2 layers) where a layer writes its output."""
    tokens = jnp.zeros((1, 1), jnp.int32)
    return Transformer(config).init(key, tokens, tokens, jnp.ones((1, 1), bool))["params"]


def logits(params: Params, hidden: Array, config: ModelConfig) -> Array:
    """Next-token logits [..., V] float32 from hidden [..., D]."""
    hidden = hidden.astype(config.dtype)
    if config.tie_embeddings:
        head, spec = params["embed"]["embedding"], "...d,vd->...v"
    else:
        head, spec = params["lm_head"]["kernel"], "...d,dv->...v"
    return _product(hidden, head.astype(config.dtype), spec)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _product(x: Array, y: Array, spec: str) -> Array:
    """An einsum that gives float32 and is differentiated in the dtype of x and y.

    By itself the backward pass would multiply float32 cotangents as large as the logits: a quarter
    of a training step on a GPU whose matrix units are made for bfloat16.
    """
    return jnp.einsum(spec, x, y, preferred_element_type=jnp.float32)


def _product_forward(x, y, spec):
    return _product(x, y, spec), (x, y)


def _product_backward(spec, inputs, cotangent):
    _, pull = jax.vjp(partial(jnp.einsum, spec), *inputs)
    return pull(cotangent.astype(inputs[0].dtype))


_product.defvjp(_product_forward, _product_backward)


def values(params: Params, hidden: Array) -> Array:
    """Value estimates [...] float32 from hidden [..., D]; needs config.value_head."""
    if "value_head" not in params:
        raise ValueError("values: params have no value_head; set ModelConfig(value_head=True)")
    kernel = params["value_head"]["kernel"].astype(jnp.float32)
    return (hidden.astype(jnp.float32) @ kernel)[..., 0]


def head_logps(
    params: Params,
    hidden: Array,
    targets: Array,
    config: ModelConfig,
    temperature: float | Array = 1.0,
    chunk: int = 0,
) -> tuple[Array, Array]:
    """Log-probabilities of targets and the entropy, both [B, T] float32, at a temperature.

    hidden [B, T, D] are the states that predict targets [B, T]. The head is applied to `chunk`
    positions of every row at a time, and again in the backward pass, so that at most
    [B, chunk, V] logits stand at once; 0 means all T at once, kept for the backward pass.
    temperature > 0; 0 (greedy) stands for the raw distribution, as in the sampler.
    """
    b, t, d = hidden.shape
    scale = inverse_temperature(temperature)

    def score(block):
        h, y = block
        scaled = logits(params, h, config) * scale
        lse = jax.nn.logsumexp(scaled, axis=-1)
        target = jnp.take_along_axis(scaled, y[..., None], axis=-1)[..., 0]
        entropy = lse - jnp.sum(jnp.exp(scaled - lse[..., None]) * scaled, axis=-1)
        return target - lse, entropy

    if not 0 < chunk < t:
        return score((hidden, targets))
    count = math.ceil(t / chunk)
    pad = count * chunk - t
    h = jnp.pad(hidden, ((0, 0), (0, pad), (0, 0))).reshape(b, count, chunk, d).swapaxes(0, 1)
    y = jnp.pad(targets, ((0, 0), (0, pad))).reshape(b, count, chunk).swapaxes(0, 1)
    logps, entropy = lax.map(jax.checkpoint(score), (h, y))
    return tuple(x.swapaxes(0, 1).reshape(b, -1)[:, :t] for x in (logps, entropy))


def inverse_temperature(temperature: float | Array) -> Array:
    """1 / temperature; 1 at temperature 0, as greedy log-probs are of the raw distribution."""
    temperature = jnp.asarray(temperature, jnp.float32)
    return jnp.where(temperature > 0, 1.0 / jnp.where(temperature > 0, temperature, 1.0), 1.0)
