"""The device memory that a config needs: input of the plan command, and a check before a run."""

import math

import jax
from ml_collections import ConfigDict

from experiments.lib.objects import (
    build_lora,
    build_loss,
    build_optimizer,
    find_model,
    model_config,
)
from memalpha.footprint import Setting, check_fits
from memalpha.models import MODELS
from memalpha.paths import user_path
from memalpha.sharding import complete, device_memory

OUT_OF_MEMORY = """

The device has too little memory for what it was doing. Lower config.rl.micro_batch,
config.rl.head_chunk or config.rl.rollout_rows, set config.model.remat=full, or shard over
more devices. What takes how much: python -m experiments.plan --config=..."""


def advice(error: Exception) -> str:
    """Advice for an error that says that a device is out of memory; "" for other errors."""
    return OUT_OF_MEMORY if "RESOURCE_EXHAUSTED" in str(error) else ""


def check_memory(config: ConfigDict) -> None:
    """Raises ValueError, which names what is too large, if the persistent arrays of a run do not
    fit the devices of this machine. On CPU all devices share the memory of the machine."""
    capacity = device_memory(jax.local_devices()[0])
    some_left = -1 in (config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    check_fits(build_setting(config, jax.device_count() if some_left else 0), capacity)


def build_setting(config: ConfigDict, devices: int) -> Setting:
    """The setting of a config for the plan command. The shape of the model is read from
    `config.model.path` if that is on this machine; else it is the sizes in `config.model` with
    `config.tokenizer.vocab_size` tokens.

    Raises:
        ValueError: the mesh does not have `devices` devices, or a size is invalid.
    """
    rl, start = config.rl, config.model.path
    if start and (start in MODELS or user_path(start).exists()):
        _, model = find_model(config)
    else:
        model = model_config(config, config.tokenizer.vocab_size)
    step_rows = rl.instances * rl.rollouts * config.data.chunks
    return Setting(
        model=model,
        loss=build_loss(config),
        lora=build_lora(config),
        optimizer=build_optimizer(config),
        mesh=mesh_sizes(config, devices),
        gather=config.mesh.gather,
        prompt=config.prompt.tokens,
        response=config.prompt.response_tokens,
        rows=rl.rollout_rows or rl.instances * rl.rollouts,
        micro_batch=rl.micro_batch or step_rows,
        step_rows=step_rows,
        draft_tokens=rl.draft_tokens,
    )


def mesh_sizes(config: ConfigDict, devices: int) -> tuple[int, int, int]:
    """(data, fsdp, tensor) with a -1 resolved; ValueError if their product is not `devices`."""
    given = (config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    devices = devices or math.prod(size for size in given if size != -1)
    sizes = complete(given, devices)
    if math.prod(sizes) != devices or min(sizes) < 1:
        raise ValueError(
            f"--devices={devices}, but config.mesh is {list(given)}: set data x fsdp x tensor to it"
        )
    return sizes
