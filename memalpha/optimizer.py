"""Optimisers and schedules; they compute in float32 whatever the precision of the parameters."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from memalpha.model import Params
from memalpha.sharding import name_of

MUON_RMS = 0.2  # of an update at learning rate 1, as AdamW's


def make_schedule(
    learning_rate: float,
    warmup_steps: int,
    total_steps: int,
    schedule: str = "constant",
    decay_share: float = 0.25,
) -> optax.Schedule:
    """Linear warm-up to `learning_rate`, then constant; or a cosine to 0 over what is left of
    `total_steps`; or "stable_decay": constant, and a straight line to 0 over their last
    `decay_share`.

    The first update already moves: update i (from 1) of the warm-up has i / warmup_steps of it.

    Raises:
        ValueError: unknown schedule.
    """
    if schedule not in ("constant", "cosine", "stable_decay"):
        raise ValueError(f"schedule {schedule!r}: choose 'constant', 'cosine' or 'stable_decay'")

    def rate(count):
        warm = jnp.minimum(1.0, (count + 1) / max(warmup_steps, 1))
        if schedule == "constant":
            return learning_rate * warm
        if schedule == "stable_decay":
            left = 1 - count / total_steps
            return learning_rate * warm * jnp.clip(left / decay_share, 0.0, 1.0)
        done = jnp.clip((count - warmup_steps) / max(total_steps - warmup_steps, 1), 0.0, 1.0)
        return learning_rate * warm * 0.5 * (1.0 + jnp.cos(jnp.pi * done))

    return rate


def make_optimizer(
    learning_rate: float,
    warmup_steps: int = 0,
    total_steps: int = 0,
    schedule: str = "constant",
    weight_decay: float = 0.01,
    max_grad_norm: float | None = 1.0,
    b1: float = 0.9,
    b2: float = 0.999,
    optimizer: str = "adamw",
    decay_share: float = 0.25,
) -> optax.GradientTransformation:
    """The optimiser after clipping the global gradient norm; only matrices decay, not norm scales.

    optimizer: "adamw"; or "muon": the matrices of the layers by Muon (Jordan et al. 2024, "Muon"),
    its updates scaled to the size of AdamW's (arXiv:2502.16982, section 2.2), and all else, which
    then does not decay, by AdamW with Nesterov's momentum.
    `schedule`, `decay_share`: see `make_schedule`.
    All of it in float32: parameters of lower precision get a float32 copy in the state.

    Raises:
        ValueError: unknown optimizer, or as `make_schedule`.
    """
    rate = make_schedule(learning_rate, warmup_steps, total_steps, schedule, decay_share)
    if optimizer == "adamw":
        matrices = partial(jax.tree.map, lambda x: x.ndim > 1)
        steps = optax.adamw(rate, b1=b1, b2=b2, weight_decay=weight_decay, mask=matrices)
    elif optimizer == "muon":
        steps = optax.contrib.muon(
            rate,
            weight_decay=weight_decay,
            adam_b1=b1,
            adam_b2=b2,
            muon_weight_dimension_numbers=_muon_matrices,
            consistent_rms=MUON_RMS,
        )
    else:
        raise ValueError(f"optimizer {optimizer!r}: choose 'adamw' or 'muon'")
    if max_grad_norm:
        steps = optax.chain(optax.clip_by_global_norm(max_grad_norm), steps)
    return in_float32(steps)


def _muon_matrices(params: Params):
    """What Muon is for: the kernels of the layers, and neither embedding nor heads."""
    return jax.tree.map_with_path(
        lambda path, x: optax.contrib.MuonDimensionNumbers() if "_proj/" in name_of(path) else None,
        params,
    )


class Float32State(NamedTuple):
    """State of `in_float32` where some parameters are of lower precision."""

    exact: Params  # a float32 copy of the parameters: what the optimiser moves
    inner: optax.OptState


def in_float32(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """`inner` on a float32 copy of the parameters; they themselves follow, rounded.

    bfloat16 has 8 significant bits: an update below 1/512 of a weight is rounded away, and at the
    learning rates of reinforcement nearly all are. The copy keeps them until they add up. Moments
    are float32 too. Parameters that are all float32 get no copy and the state of `inner`.
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
        # From the rounded to the rounded: their difference is exact, so the sum is too.
        moves = jax.tree.map(
            lambda e, p: e.astype(p.dtype).astype(jnp.float32) - p.astype(jnp.float32),
            exact,
            params,
        )
        return moves, Float32State(exact, inner_state)

    return optax.GradientTransformation(init, update)


def _all_float32(params: Params) -> bool:
    return all(p.dtype == jnp.float32 for p in jax.tree.leaves(params))
