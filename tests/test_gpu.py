"""What only an NVIDIA GPU can show; skipped elsewhere.

JAX_PLATFORMS=cuda JAX_DISABLE_MOST_OPTIMIZATIONS=0 python -m pytest tests/test_gpu.py
"""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memalpha import sampler
from memalpha.model import ModelConfig, Transformer, init_params
from memalpha.model_config import best_attention

pytestmark = pytest.mark.skipif(
    best_attention("bfloat16") != "cudnn", reason="no NVIDIA GPU with flash attention"
)
EXACT = ModelConfig(97, 256, 3, 4, 2, 64, 512)  # float32, "blocks"
BLOCKS = replace(EXACT, dtype="bfloat16")
FLASH = replace(BLOCKS, attention="auto")
PRECISE = jax.default_matmul_precision("highest")  # float32 products, not TF32


@pytest.fixture(scope="module")
def params():
    fresh = init_params(EXACT, jax.random.key(0))
    return jax.tree.map(lambda x: x * 3 if x.ndim > 1 else x, fresh)


def padded(length: int, padding: int):
    """Tokens, positions and mask of three rows, padded at either side by up to `padding`."""
    rng = np.random.default_rng(length)
    tokens = rng.integers(0, 97, (3, length + padding))
    left = np.array([0, padding // 2, padding])[:, None]
    slots = np.arange(length + padding)
    mask = (slots >= left) & (slots < left + length)
    return tokens, np.maximum(np.cumsum(mask, axis=1) - 1, 0), mask


def distance(a, b) -> float:
    """Between two trees of arrays, as a share of the length of b."""
    flat = [
        np.concatenate([np.ravel(x).astype(np.float64) for x in jax.tree.leaves(t)]) for t in (a, b)
    ]
    return float(np.linalg.norm(flat[0] - flat[1]) / np.linalg.norm(flat[1]))


@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize("length, padding", [(128, 0), (131, 0), (130, 13), (77, 6)])
def test_flash_attention_is_as_near_to_float32_as_the_blocks(params, length, padding, scan_layers):
    inputs = padded(length, padding)

    def loss(config, params):
        model = Transformer(replace(config, scan_layers=scan_layers))
        hidden, _ = model.apply({"params": params}, *inputs, keep=False)
        hidden = jnp.where(inputs[2][..., None], hidden.astype(jnp.float32), 0.0)
        return jnp.sum(hidden**2 * jnp.arange(256)), hidden

    def both(config):
        return jax.jit(jax.grad(partial(loss, config), has_aux=True))(params)

    with PRECISE:
        exact = both(EXACT)
    blocks, flash = both(BLOCKS), both(FLASH)
    for i, name in enumerate(("gradient", "hidden states")):
        errors = distance(flash[i], exact[i]), distance(blocks[i], exact[i])
        print(f"{length} + {padding}, {name}: flash {errors[0]:.4f}, blocks {errors[1]:.4f}")
        assert 0 < errors[0] < 1.5 * errors[1] < 0.1


@pytest.mark.parametrize("length", [63, 64])
def test_a_shared_prefix_gives_the_samples_of_whole_prompts(params, length):
    rng = np.random.default_rng(0)
    prefix = rng.integers(1, 97, length).tolist()
    prompts = [rng.integers(1, 97, n).tolist() for n in (5, 9, 2)]
    keys = sampler.row_keys(jax.random.key(7), range(3))
    limits = np.array([1, 1, 1], np.int32)

    def first(config, prompts, width, *shared):
        tokens, mask = sampler.pad_prompts(prompts, [width], 3)
        samples = sampler.generate(
            params, config, tokens, mask, keys, 0.0, 1.0, limits, np.array([-1]), 1, *shared
        )
        return jax.device_get((samples.tokens[:, 0], samples.logps[:, 0]))

    whole = [prefix + prompt for prompt in prompts]
    with PRECISE:
        tokens, exact = first(EXACT, whole, 80)
    for flash_tokens, logps in (
        first(FLASH, whole, 80),
        first(FLASH, prompts, 9, sampler.prefill(params, FLASH, prefix)),
    ):
        np.testing.assert_array_equal(flash_tokens, tokens)
        np.testing.assert_allclose(logps, exact, atol=0.05)
