"""The command of `memalpha.plan`: from a config to a plan, and the plan as tables."""

import math
import os
import sys
from dataclasses import replace
from pathlib import Path

from absl import app, flags
from ml_collections import ConfigDict, config_flags
from rich.table import Table

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file and its arguments.")
COUNT = flags.DEFINE_integer("devices", 0, "Devices of the pod; 0: as many as the mesh says.")


def build_setting(config: ConfigDict, devices: int):
    """The setting of a config. The shape is that of `model.path` where it is a folder, else the
    sizes in `config.model`, with `tokenizer.vocab_size` tokens.

    Raises:
        ValueError: the mesh is not one of that many devices, or a size that the config refuses.
    """
    from experiments.setup import build_lora, build_loss
    from experiments.train import build_optimizer
    from memalpha.plan import Setting
    from memalpha.policy import find_model, model_config

    settings, rl = config.to_dict(), config.rl
    if config.model.path and Path(config.model.path).expanduser().is_dir():
        _, model = find_model(settings)
    else:
        model = model_config(settings, config.tokenizer.vocab_size)
    if model.attention == "cudnn":  # not to be had on the CPU that compiles
        model = replace(model, attention="blocks")
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
    )


def mesh_sizes(config: ConfigDict, devices: int) -> tuple[int, int, int]:
    """data, fsdp, tensor, with a -1 filled in. ValueError where they do not make `devices`."""
    from memalpha.sharding import complete

    given = (config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    devices = devices or math.prod(size for size in given if size != -1)
    sizes = complete(given, devices)
    if math.prod(sizes) != devices or min(sizes) < 1:
        raise ValueError(
            f"--devices={devices}, but config.mesh is {list(given)}: set data x fsdp x tensor to it"
        )
    return sizes


def main(_) -> None:
    import jax

    config = CONFIG.value
    try:
        devices = mesh_sizes(config, COUNT.value)
        count = devices[0] * devices[1] * devices[2]
        jax.config.update("jax_num_cpu_devices", count)
        setting = build_setting(config, count)
        from memalpha.plan import make_plan

        show(config, setting, make_plan(setting))
    except ValueError as error:
        sys.exit(str(error))


def show(config: ConfigDict, setting, plan) -> None:
    from experiments.progress import console
    from memalpha.plan import DEPTHS, DEVICES, USABLE, suggest

    data, fsdp, tensor = setting.mesh
    console.print(
        f"{config.title}\nmesh data={data}, fsdp={fsdp}, tensor={tensor}: {data * fsdp * tensor}"
        f" devices; {setting.rows} rows a rollout, prompts of {setting.prompt} and responses of"
        f" {setting.response} tokens; micro-batch {setting.micro_batch} of {setting.step_rows} rows"
    )
    table = Table("on each device", "GB", title="Memory (GB = 10^9 bytes)")
    for stage in ("kept", "rollout", "update"):
        for name, size in getattr(plan, stage).items():
            table.add_row(f"{stage}: {name}", f"{size / 1e9:.2f}")
    table.add_row("peak", f"{plan.peak / 1e9:.2f}")
    console.print(table)
    if setting.model.num_layers > DEPTHS[1]:
        console.print(
            f"Prefill, decode and activations are estimates: compiled with {DEPTHS[0]} and"
            f" {DEPTHS[1]} layers by the CPU compiler (float32 products, no flash attention) and"
            f" continued to {setting.model.num_layers}. The rest is exact."
        )
    table = Table("device", "fits", "largest micro-batch", title=f"Of which {USABLE:.0%} is usable")
    for name, capacity in DEVICES.items():
        fits = plan.peak <= USABLE * capacity
        size = suggest(plan, setting, capacity)
        table.add_row(name, "yes" if fits else "no", str(size) if size else "none fits")
    console.print(table)
    work = ", ".join(f"{name} {count:.2e}" for name, count in plan.flops.items())
    console.print(f"Floating point operations of a step, all devices, full widths: {work}")


def run() -> None:
    os.environ["JAX_PLATFORMS"] = "cpu"
    flags.mark_flags_as_required(["config"])
    app.run(main)
