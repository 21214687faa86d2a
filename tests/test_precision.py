"""bfloat16 parameters under float32 optimiser arithmetic."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from memalpha import learner
from memalpha.batch import from_tokens, plan_micro_batches
from memalpha.model import ModelConfig, init_params
from memalpha.optimizer import OptimizerConfig, in_float32, make_optimizer

SMALL = ModelConfig(
    vocab_size=31,
    hidden_size=16,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    mlp_size=24,
    dtype="bfloat16",
    param_dtype="bfloat16",
)


def tree(dtype):
    rng = np.random.default_rng(0)
    values = {"w": 0.1 * rng.standard_normal((5, 3)), "scale": 1 + 0.1 * rng.standard_normal(7)}
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16).astype(dtype), values)


def walk(optimizer, params, steps):
    """Parameters and state after so many updates along given gradients."""

    @jax.jit
    def step(number, state, params):
        grads = jax.tree.map(
            lambda p: jnp.cos(number + jnp.arange(p.size, dtype=jnp.float32)).reshape(p.shape),
            params,
        )
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for number in range(steps):
        params, state = step(number, state, params)
    return params, state


def test_small_updates_add_up_and_parameters_are_the_copy_rounded():
    optimizer = make_optimizer(OptimizerConfig(1e-5, weight_decay=0.1, max_grad_norm=0.5))
    exact, _ = walk(optimizer, tree("float32"), 40)
    half, state = walk(optimizer, tree("bfloat16"), 40)
    for name in half:
        # The walk of float32 parameters from the same start, to the bit ...
        np.testing.assert_array_equal(state.exact[name], exact[name])
        # ... and what the model sees is its rounding.
        assert half[name].dtype == jnp.bfloat16
        np.testing.assert_array_equal(half[name], exact[name].astype(jnp.bfloat16))
    # Not so without the copy: near 1 every one of the same updates is lost.
    lost, _ = walk(optax.adamw(1e-5, mask={"w": True, "scale": False}), tree("bfloat16"), 40)
    np.testing.assert_array_equal(lost["scale"], tree("bfloat16")["scale"])
    assert (exact["scale"] != tree("float32")["scale"]).all()


def test_large_moves_are_exact_too():
    optimizer = in_float32(optax.sgd(100.0))
    half, state = walk(optimizer, tree("bfloat16"), 3)
    for name in half:
        np.testing.assert_array_equal(half[name], state.exact[name].astype(jnp.bfloat16))


def test_float32_parameters_get_no_copy():
    inner = optax.adam(1e-3)
    params = tree("float32")
    state = in_float32(inner).init(params)
    assert jax.tree.structure(state) == jax.tree.structure(inner.init(params))
    assert jax.tree.structure(walk(in_float32(inner), params, 1)[1]) == jax.tree.structure(state)


def test_all_of_the_state_is_float32():
    state = in_float32(optax.adam(1e-3)).init(tree("bfloat16"))
    floats = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert len(floats) == 6 and {x.dtype for x in floats} == {jnp.dtype("float32")}


def test_a_bfloat16_model_learns_in_one_program():
    batch = from_tokens([[3, 4], [5], [6, 7, 8], [9]], [[1, 2], [2, 3, 4], [5], [6, 7]])
    optimizer = make_optimizer(OptimizerConfig(3e-3, weight_decay=0.0))
    update = learner.make_supervised_update(SMALL, optimizer)
    plan = plan_micro_batches(batch, 2)
    params = init_params(SMALL, jax.random.key(0))
    state = learner.init_state(params, optimizer)
    kinds = jax.tree.map(lambda x: x.dtype, state)
    curve = []
    for _ in range(30):
        state, metrics = update(state, batch, plan)
        curve.append(float(metrics["loss"]))
    assert curve[-1] < 0.7 * curve[0]
    assert metrics["grad_norm"].dtype == jnp.float32
    assert jax.tree.map(lambda x: x.dtype, state) == kinds  # so nothing is compiled twice
