"""What a run, or a call of a model, costs in seconds, before there is a device: its work over
measured rates.

Prefill and update are bound by matrix products, decoding by reading weights, keys and values once a
token. Both are computed for the full widths, prompts and responses as long as they may be: an upper
estimate, without compilation, host work, readers and communication between devices.
"""

from dataclasses import dataclass

import jax.numpy as jnp

from memalpha.footprint import Footprint, Setting, count_kernels, forward_flops
from memalpha.model_config import ModelConfig

# What is reached of the figures below, measured on an H200 (docs/benchmarks.md) and taken for the
# others too; `python -m benchmarks.accelerator` measures both.
MATRIX_SHARE, BANDWIDTH_SHARE = 0.45, 0.54


@dataclass(frozen=True)
class Rates:
    """The makers' figures for one device: bfloat16 operations and bytes a second."""

    flops: float
    bandwidth: float


DEVICES = {
    "H100 80 GB": Rates(989e12, 3.35e12),
    "H200 141 GB": Rates(989e12, 4.8e12),
    "TPU v5e 16 GB": Rates(197e12, 0.82e12),
    "TPU v6e 32 GB": Rates(918e12, 1.64e12),
    "TPU v5p 95 GB": Rates(459e12, 2.77e12),
}


def step_seconds(
    setting: Setting, footprint: Footprint, weights: float, chunks: int, rates: Rates
) -> dict[str, float]:
    """Seconds of each stage of a training step on the devices of `setting.mesh`.

    Args:
        weights: bytes of the parameters that one device samples from.
        chunks: of an episode; they are read one after the other.
        rates: of one device.
    """
    data, fsdp, tensor = setting.mesh
    flops = data * fsdp * tensor * rates.flops * MATRIX_SHARE
    # `setting.rows` episodes at a time. The cache holds the prompt and on average half a response.
    rounds = setting.step_rows / chunks / setting.rows
    tokens = rounds * chunks * setting.response
    read = weights + footprint.rollout["cache"] * (1 - setting.response / 2 / _slots(setting))
    return {
        "prefill": footprint.flops["rollout"] * setting.prompt / _slots(setting) / flops,
        "decode": tokens * read / (rates.bandwidth * BANDWIDTH_SHARE),
        "update": footprint.flops["update"] / flops,
    }


def call_seconds(
    model: ModelConfig, prompt: float, reply: float, rates: Rates, at_once: int
) -> float:
    """Seconds of a device for one call of a model, of which `at_once` are decoded together.

    prompt, reply: tokens. The prompt is bound by matrix products. Each token of the reply reads the
    weights, shared by the calls of the batch, and the keys and values of its own call.
    """
    size, heads = jnp.dtype(model.dtype).itemsize, model.num_kv_heads * model.head_dim
    weights = sum(count_kernels(model)) * size / at_once
    cache = 2 * model.num_layers * heads * size * (prompt + reply / 2)
    products = forward_flops(model, prompt, reply) / (rates.flops * MATRIX_SHARE)
    return products + reply * (weights + cache) / (rates.bandwidth * BANDWIDTH_SHARE)


def _slots(setting: Setting) -> int:
    return setting.prompt + setting.response
