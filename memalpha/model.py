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
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from memalpha.attention import (
    KV,
    cached_attention,
    causal_attention,
    rope_tables,
    rotate,
    write_slots,
)
from memalpha.dense import Dense
from memalpha.model_config import ACTIVATIONS, Kind, ModelConfig
from memalpha.sharding import CACHE, LOOKUP, ROWS, constrain

Array = jax.Array
Params = Mapping[str, Any]


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
            k, v = write_slots(past_k, k, index, axis=3), write_slots(past_v, v, index, axis=2)
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
