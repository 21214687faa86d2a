"""Log-probs and updates of a batch, in micro-batches: jitted, the state donated.

Axes: R rows, P prompt, T completion, M rows of a micro-batch.

GRPO, PPO and the warm start share one update and differ in their loss (`objective`). Its count is
taken over the whole batch before the first micro-batch, so that the gradient is the same however
the batch is cut.
The micro-batches of a step are planned once (`batch.plan_micro_batches`) for its log-probs and its
updates, and run one after the other from Python.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from memalpha.batch import (
    Batch,
    MicroBatch,
    lean,
    plan_micro_batches,
    row_mask,
    take_micro_batch,
    token_mask,
)
from memalpha.model import ModelConfig, Params
from memalpha.objective import (
    LossConfig,
    Parts,
    aggregate,
    explained_variance,
    forward,
    loss,
    supervised_loss,
    supervised_weights,
)
from memalpha.sharding import (
    ROWS,
    WHOLE,
    constrain_tree,
    mesh_of,
    place,
    shardings,
    use,
)

Plan = Sequence[MicroBatch]
Metrics = dict[str, jax.Array]
Update = Callable[..., tuple["TrainState", Metrics]]
Attach = Callable[[Params, Params], Params]  # (trained, frozen) -> the whole model


@struct.dataclass
class TrainState:
    """Parameters (the critic among them), optimiser state, and the number of applied updates."""

    params: Params
    opt_state: optax.OptState
    step: jax.Array  # [] int32


def init_state(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """A state at step 0. `update` donates it: copy `params` first if something else needs them.

    On the mesh of `params`, if they are on one.
    """
    mesh, init = mesh_of(params), optimizer.init
    if mesh is not None:
        init = jax.jit(init, out_shardings=shardings(jax.eval_shape(init, params), mesh))
    step = place(jnp.int32(0), mesh, WHOLE)
    state = TrainState(params=params, opt_state=init(params), step=step)
    if mesh is not None:
        return state
    # Committed to its device, as the state is after an update on a model from disk, and as a
    # checkpoint is: programs are compiled once, and not again for the second step.
    leaf = jax.tree.leaves(params)[0]
    concrete = isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer)
    return jax.device_put(state, leaf.sharding) if concrete else state


def _micro_batches(batch: Batch, plan: Plan | None) -> Iterator[tuple[np.ndarray, Batch]]:
    """(row numbers, micro-batch) as planned, cut on the host; one of all rows when None."""
    batch = jax.tree.map(np.asarray, batch)
    for micro in plan_micro_batches(batch, None) if plan is None else plan:
        yield micro.rows, take_micro_batch(batch, micro)


def make_token_logps(
    model_config: ModelConfig, config: LossConfig
) -> Callable[..., tuple[np.ndarray, np.ndarray | None]]:
    """Build `token_logps(params, batch, plan=None) -> (logps [R, T], values [R, T] or None)`.

    For old and reference log-probs, at the temperature of the loss: jitted, as numpy. Values under
    a zero mask mean nothing. `plan`: of `batch.plan_micro_batches`; None: all rows at once.
    """

    @jax.jit
    def score(params: Params, batch: Batch):
        logps, _, v = forward(params, batch, model_config, config.temperature, config.head_chunk)
        return constrain_tree((logps, v), WHOLE)  # fetched by every process

    def token_logps(params: Params, batch: Batch, plan: Plan | None = None):
        shape, mesh = batch.tokens.completion.shape, mesh_of(params)
        inputs = Batch(batch.tokens)  # all that the model reads; a new field would recompile
        with use(mesh):
            parts = [
                (rows, score(params, place(micro, mesh, ROWS)))
                for rows, micro in _micro_batches(inputs, plan)
            ]
        whole = [np.zeros(shape, np.float32), np.zeros(shape, np.float32)]
        for rows, part in parts:
            for array, piece in zip(whole, jax.device_get(part), strict=True):
                if piece is not None:
                    array[rows, : piece.shape[1]] = piece
        return whole[0], whole[1] if model_config.value_head else None

    return token_logps


def make_update(
    model_config: ModelConfig,
    config: LossConfig,
    optimizer: optax.GradientTransformation,
    attach: Attach | None = None,
) -> Update:
    """Build `update(state, batch, plan=None, frozen=None) -> (state, metrics)`: one optimiser step,
    jitted, state donated.

    `plan`: the micro-batches (`batch.plan_micro_batches`); None: all rows at once. The step is the
    same. `attach`: where only a part of the model is trained, `attach(state.params, frozen)` is all
    of it (`lora.attach`).
    Where loss or gradient is not finite the state is kept and `metrics["nonfinite"]` is 1: the loop
    should stop and name the step. A batch without a valid token changes nothing either.
    Metrics are float32 scalars; means are over valid tokens. `kl` to the reference and `approx_kl`
    to the old policy are k3 estimates.
    """

    def count(batch: Batch) -> jax.Array:
        return aggregate(jnp.zeros(batch.tokens.completion.shape), token_mask(batch), config)[1]

    def extra(batch: Batch) -> Metrics:
        if config.algorithm != "ppo":
            return {}
        return {"explained_variance": explained_variance(batch)}

    fn = partial(loss, model_config=model_config, config=config)
    return _make_update(fn, count, extra, optimizer, attach)


def make_supervised_update(
    model_config: ModelConfig,
    optimizer: optax.GradientTransformation,
    attach: Attach | None = None,
    first_weight: float = 1.0,
) -> Update:
    """As `make_update`, for cross-entropy on the completions (warm start), averaged over tokens, of
    which the first of each completion counts `first_weight` times."""

    def count(batch: Batch) -> jax.Array:
        return supervised_weights(batch, first_weight).sum()

    fn = partial(supervised_loss, model_config=model_config, first_weight=first_weight)
    return _make_update(fn, count, lambda batch: {}, optimizer, attach)


def _make_update(
    loss_fn: Callable[[Params, Batch], tuple[Parts, jax.Array]],
    count_fn: Callable[[Batch], jax.Array],
    extra_fn: Callable[[Batch], Metrics],
    optimizer: optax.GradientTransformation,
    attach: Attach | None,
) -> Update:
    gradient = make_gradient(loss_fn, attach)

    @jax.jit
    def totals(batch: Batch):
        tokens = jnp.sum(token_mask(batch), dtype=jnp.float32)
        rows = jnp.sum(row_mask(batch), dtype=jnp.float32)
        return count_fn(batch), {"tokens": tokens, "rows": rows} | extra_fn(batch)

    @partial(jax.jit, donate_argnums=0)
    def finish(state: TrainState, grads: Params, parts: Parts, count: jax.Array, extra: Metrics):
        metrics = {k: x / jnp.maximum(count, 1.0) for k, x in parts["sum"].items()}
        metrics |= {k: x / jnp.maximum(extra["tokens"], 1.0) for k, x in parts["token"].items()}
        metrics |= parts["max"] | parts["total"] | extra
        state, norms = apply_gradients(
            state, grads, optimizer, metrics["loss"], extra["tokens"] > 0
        )
        return constrain_tree(state), metrics | norms

    def update(
        state: TrainState, batch: Batch, plan: Plan | None = None, frozen: Params | None = None
    ) -> tuple[TrainState, Metrics]:
        batch, mesh = lean(batch), mesh_of(state.params)
        count, extra = place(totals(batch), mesh, WHOLE)

        def gradients(micro: Batch) -> tuple[Params, Parts]:
            return gradient(state.params, frozen, place(micro, mesh, ROWS), count)

        with use(mesh):
            grads, parts = accumulate(gradients, batch, plan)
            return finish(state, grads, parts, count, extra)

    return update


def make_gradient(
    loss_fn: Callable[[Params, Batch], tuple[Parts, jax.Array]],
    attach: Attach | None = None,
):
    """Build `gradient(params, frozen, micro, count) -> (float32 gradients, parts)`, jitted: what
    one micro-batch adds to a batch of that count."""

    def scaled(params: Params, frozen: Params | None, micro: Batch, count: jax.Array):
        parts, _ = loss_fn(attach(params, frozen) if attach else params, micro)
        return parts["sum"]["loss"] / jnp.maximum(count, 1.0), parts

    @jax.jit
    def gradient(params: Params, frozen: Params | None, micro: Batch, count: jax.Array):
        grads, parts = jax.grad(scaled, has_aux=True)(params, frozen, micro, count)
        return constrain_tree(optax.tree.cast(grads, jnp.float32)), parts

    return gradient


def accumulate(
    grad_fn: Callable[[Batch], tuple[Params, Parts]], batch: Batch, plan: Plan | None
) -> tuple[Params, Parts]:
    """Float32 gradients and parts of a whole batch, added up over its micro-batches."""
    total = None
    for _, micro in _micro_batches(batch, plan):
        new = grad_fn(micro)
        total = new if total is None else _add(total, new)
    return total


@partial(jax.jit, donate_argnums=0)
def _add(total: tuple[Params, Parts], new: tuple[Params, Parts]) -> tuple[Params, Parts]:
    grads = jax.tree.map(jnp.add, total[0], new[0])
    parts = {
        k: jax.tree.map(jnp.maximum if k == "max" else jnp.add, total[1][k], part)
        for k, part in new[1].items()
    }
    return grads, parts


def apply_gradients(
    state: TrainState,
    grads: Params,
    optimizer: optax.GradientTransformation,
    loss_value: jax.Array,
    enabled: jax.Array,
) -> tuple[TrainState, Metrics]:
    """One optimiser step, unless the loss or the gradient is not finite or `enabled` [] is False.

    `grads` are float32 whatever the parameters are (see `optimizer.in_float32`).
    """
    grad_norm = optax.tree.norm(grads)
    finite = jnp.isfinite(loss_value) & jnp.isfinite(grad_norm)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    stepped = TrainState(optax.apply_updates(state.params, updates), opt_state, state.step + 1)
    step_taken = finite & enabled
    state = jax.tree.map(partial(jnp.where, step_taken), stepped, state)
    metrics = {
        "grad_norm": grad_norm,
        "update_norm": jnp.where(step_taken, optax.tree.norm(updates), 0.0),
        "nonfinite": 1.0 - finite.astype(jnp.float32),
    }
    return state, metrics
