"""What a run costs in seconds, before there is a device: the work of a step over measured rates.

Prefill and update are bound by matrix products, decoding by reading weights, keys and values once a
token. Both are computed for the full widths, prompts and responses as long as they may be: an upper
estimate, without compilation, host work, readers and communication between devices.
"""

from dataclasses import dataclass

from memalpha.footprint import Footprint, Setting

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


def _slots(setting: Setting) -> int:
    return setting.prompt + setting.response
