"""Writing to a cache of keys and values, and what XLA makes of it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from memalpha.attention import cached_attention, write_slots
from memalpha.model import ModelConfig

SLOTS, WIDTH = 53, 8


@pytest.mark.parametrize("axis", [2, 3])
@pytest.mark.parametrize(("rows", "heads"), [(1, 3), (2, 3)])
@pytest.mark.parametrize(("slots", "count"), [(1, 1), (2, 1), (7, 1), (7, 3)])
def test_only_the_slots_of_new_tokens_are_written(rows, heads, slots, count, axis):
    def array(tokens, first):
        shape = [rows, heads, WIDTH, WIDTH]
        shape[axis] = tokens
        return first + np.arange(np.prod(shape), dtype=np.float32).reshape(shape)

    old, new = array(slots, 0), array(count, 1000)
    for index in range(slots - count + 1):
        after = write_slots(jnp.asarray(old), jnp.asarray(new), jnp.int32(index), axis)
        expected = np.moveaxis(old.copy(), axis, 0)
        expected[index : index + count] = np.moveaxis(new, axis, 0)
        np.testing.assert_array_equal(after, np.moveaxis(expected, 0, axis))


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="what XLA does on a CPU")
@pytest.mark.parametrize(("rows", "heads"), [(1, 3), (3, 1), (2, 3)])
def test_a_loop_over_single_tokens_never_copies_the_cache(rows, heads):
    config = ModelConfig(11, 24, 1, 2 * heads, heads, WIDTH, 13)

    def step(state):
        index, x, k, v = state
        q = jnp.concatenate([x, x], axis=1)
        k = write_slots(k, x.swapaxes(2, 3), index, axis=3)
        v = write_slots(v, x, index, axis=2)
        x = cached_attention(q, k, v, jnp.ones((rows, SLOTS), bool), index, config)[:, :heads]
        return index + 1, x, k, v

    @partial(jax.jit, donate_argnums=0)
    def loop(state):
        return lax.while_loop(lambda state: state[0] < SLOTS, step, state)

    shapes = [(), (rows, heads, 1, WIDTH), (rows, heads, WIDTH, SLOTS)]
    shapes.append((rows, heads, SLOTS, WIDTH))
    state = [jax.ShapeDtypeStruct(s, jnp.float32 if s else jnp.int32) for s in shapes]
    program = loop.lower(tuple(state)).compile().as_text()
    for shape in shapes[2:]:
        name = f"f32[{','.join(map(str, shape))}]"
        lines = [line for line in program.splitlines() if name in line]
        assert any("dynamic-update-slice(" in line for line in lines)
        assert not [line for line in lines if " copy(" in line]
