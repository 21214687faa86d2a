"""Optimisers that reckon in float32 whatever the precision of the parameters."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from memalpha.model import Params


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
