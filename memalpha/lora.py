"""Low-rank adapters (LoRA, arXiv:2106.09685): a kernel W [in, out] becomes W + scale A B.

A [in, rank] is initialised at random and B [rank, out] with zeros, so that training starts from the
unchanged model; scale = alpha / rank. Adapters are a separate tree in float32 with the paths of
their kernels. Only they are trained: the base model is an argument without gradients and without
optimiser state.
"""

import re
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from memalpha.dense import LORA, merge_kernel
from memalpha.model import Params

Array = jax.Array


@dataclass(frozen=True)
class LoraConfig:
    """rank 0: no adapters, the whole model is trained.

    layers: a regular expression that is searched for in the path of each kernel, such as
      "layers_0/attention/q_proj"; kernels that match get an adapter. Embedding and heads never do.
    """

    rank: int = 0
    alpha: float = 32.0
    layers: str = "_proj"

    def __post_init__(self):
        if self.rank < 0 or not self.alpha > 0:
            raise ValueError(
                f"LoraConfig: rank {self.rank}, alpha {self.alpha}: give rank >= 0 and alpha > 0"
            )
        try:
            re.compile(self.layers)
        except re.error as error:
            raise ValueError(
                f"LoraConfig: layers {self.layers!r} is no expression: {error}"
            ) from None


def init(params: Params, config: LoraConfig, key: Array) -> Params:
    """The parameters to train, as new arrays: adapters, which are no-ops at first, and the value
    head if there is one; with rank 0 the whole model.

    Raises:
        ValueError: no kernel matches `config.layers`.
    """
    if not config.rank:
        return jax.tree.map(jnp.copy, params)
    flat = flatten_dict(params)
    kernels = {path[:-1]: x for path, x in flat.items() if _is_layer(path)}
    chosen = {p: x.shape for p, x in kernels.items() if re.search(config.layers, "/".join(p))}
    if not chosen:
        names = sorted({"/".join(path[1:]) for path in kernels})
        raise ValueError(
            f"LoraConfig: layers {config.layers!r} matches no kernel; they are layers_0 and so on,"
            f" each with {', '.join(names)}"
        )
    adapters = {path: jnp.copy(x) for path, x in flat.items() if path[0] == "value_head"}
    for number, (path, (rows, columns)) in enumerate(sorted(chosen.items())):
        noise = jax.random.normal(jax.random.fold_in(key, number), (rows, config.rank))
        adapters[*path, "lora_a"] = noise * rows**-0.5
        adapters[*path, "lora_b"] = jnp.zeros((config.rank, columns))
    return unflatten_dict(adapters)


def attach(adapters: Params, params: Params, config: LoraConfig) -> Params:
    """Base parameters and adapters in one tree; `Transformer` merges them layer by layer.

    Differentiable in the adapters. With rank 0 `adapters` is the whole model and is returned.
    """
    if not config.rank:
        return adapters
    scaled = {
        path: x * (config.alpha / config.rank) if path[-1] == "lora_b" else x
        for path, x in flatten_dict(adapters).items()
    }
    return unflatten_dict(flatten_dict(params) | scaled)


def merge(adapters: Params, params: Params, config: LoraConfig) -> Params:
    """The equivalent model without adapters, up to rounding: W + scale A B, added in float32 and
    cast to the dtype of W. Use it for export and for sampling at full speed."""
    flat = flatten_dict(attach(adapters, params, config))
    for path in [path[:-1] for path in flat if path[-1] == "lora_a"]:
        a, b = (flat.pop((*path, name)) for name in LORA)
        flat[*path, "kernel"] = merge_kernel(flat[*path, "kernel"], a, b)
    return unflatten_dict(flat)


def _is_layer(path: tuple[str, ...]) -> bool:
    return path[0].startswith("layers_") and path[-1] == "kernel"
