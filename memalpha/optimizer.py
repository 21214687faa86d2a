"""Optimisers and schedules; they compute in float32 whatever the precision of the parameters."""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from memalpha.model import Params
from memalpha.sharding import name_of

MUON_RMS = 0.2  # root mean square of Muon's updates at learning rate 1, as large as AdamW's
SCHEDULES = ("constant", "cosine", "stable_decay")
OPTIMIZERS = ("adamw", "muon")


@dataclass(frozen=True)
class OptimizerConfig:
    """Everything that shapes an optimiser and its schedule (`make_optimizer`, `make_schedule`).

    optimizer: "adamw"; or "muon": the matrices of the layers by Muon (Jordan et al. 2024, "Muon"),
      its updates scaled to the size of AdamW's (arXiv:2502.16982, section 2.2), and all else by
      AdamW with Nesterov's momentum and without weight decay.
    schedule: after a linear warm-up to `learning_rate`, "constant"; "cosine" to 0 over what is left
      of `total_steps`; or "stable_decay": constant, then a straight line to 0 over the last
      `decay_share` of `total_steps`.
    max_grad_norm: the global norm that gradients are clipped to; None: no clipping.
    b2: decay of the squared gradients' mean.
    """

    learning_rate: float
    warmup_steps: int = 0  # updates
    total_steps: int = 0  # updates
    schedule: str = "constant"
    decay_share: float = 0.25
    optimizer: str = "adamw"
    weight_decay: float = 0.01
    max_grad_norm: float | None = 1.0
    b2: float = 0.999

    def __post_init__(self):
        for name, allowed in (("schedule", SCHEDULES), ("optimizer", OPTIMIZERS)):
            if getattr(self, name) not in allowed:
                choices = ", ".join(map(repr, allowed[:-1])) + f" or {allowed[-1]!r}"
                raise ValueError(f"{name} {getattr(self, name)!r}: choose {choices}")


def make_schedule(config: OptimizerConfig) -> optax.Schedule:
    """The learning rate of each update: a function of the number of updates before it.

    The first update already moves: update i (from 1) of the warm-up has i / warmup_steps of it.
    """

    def rate(count):
        warm = jnp.minimum(1.0, (count + 1) / max(config.warmup_steps, 1))
        if config.schedule == "constant":
            return config.learning_rate * warm
        if config.schedule == "stable_decay":
            left = 1 - count / config.total_steps
            return config.learning_rate * warm * jnp.clip(left / config.decay_share, 0.0, 1.0)
        after_warmup = max(config.total_steps - config.warmup_steps, 1)
        progress = jnp.clip((count - config.warmup_steps) / after_warmup, 0.0, 1.0)
        return config.learning_rate * warm * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))

    return rate


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """The optimiser after clipping the global gradient norm; only matrices decay, not norm scales.

    All of it in float32: parameters of lower precision get a float32 copy in the state.
    """
    rate = make_schedule(config)
    if config.optimizer == "adamw":
        matrices = partial(jax.tree.map, lambda x: x.ndim > 1)
        steps = optax.adamw(rate, b2=config.b2, weight_decay=config.weight_decay, mask=matrices)
    else:
        steps = optax.contrib.muon(
            rate,
            weight_decay=config.weight_decay,
            adam_b2=config.b2,
            muon_weight_dimension_numbers=_muon_matrices,
            consistent_rms=MUON_RMS,
        )
    if config.max_grad_norm:
        steps = optax.chain(optax.clip_by_global_norm(config.max_grad_norm), steps)
    return in_float32(steps)


def _muon_matrices(params: Params):
    """The parameters that Muon moves: the kernels of the layers; no biases, embedding or heads."""

    def dimensions(path, x):
        is_kernel = "_proj/" in name_of(path) and x.ndim > 1
        return optax.contrib.MuonDimensionNumbers() if is_kernel else None

    return jax.tree.map_with_path(dimensions, params)


class Float32State(NamedTuple):
    """State of `in_float32` where some parameters are of lower precision."""

    exact: Params  # a float32 copy of the parameters: what the optimiser moves
    inner: optax.OptState


def in_float32(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """`inner` on a float32 copy of the parameters; the parameters are that copy, rounded.

    bfloat16 has 8 significant bits: an update below 1/512 of a weight is rounded away, and at the
    learning rates of reinforcement learning nearly all are. In the copy they add up. Moments are
    float32 too. Parameters that are all float32 get no copy, and the state is that of `inner`.
    """

    def init(params: Params) -> optax.OptState:
        if _all_float32(params):
            return inner.init(params)
        exact = jax.tree.map(lambda p: jnp.array(p, jnp.float32), params)  # never the same buffer
        return Float32State(exact, inner.init(exact))

    def update(grads: Params, state: optax.OptState, params: Params):
        if not isinstance(state, Float32State):
            return inner.update(grads, state, params)
        grads = optax.tree.cast(grads, jnp.float32)
        updates, inner_state = inner.update(grads, state.inner, state.exact)
        exact = optax.apply_updates(state.exact, updates)
        # The update is round(exact) - params. Both have few significant bits, so the difference
        # is exact in float32, and params + update is round(exact) to the bit.
        moves = jax.tree.map(
            lambda e, p: e.astype(p.dtype).astype(jnp.float32) - p.astype(jnp.float32),
            exact,
            params,
        )
        return moves, Float32State(exact, inner_state)

    return optax.GradientTransformation(init, update)


def _all_float32(params: Params) -> bool:
    return all(p.dtype == jnp.float32 for p in jax.tree.leaves(params))
