"""Plan a run: the memory per device and the work per step that a config needs.

    python -m experiments.plan --config=configs/qwen3_4b.py --devices=32

Prints tables from `memalpha.footprint`; runs on CPU, without the devices that are planned for.
"""

import math
import os
import sys

from absl import app, flags
from ml_collections import ConfigDict, config_flags
from rich.table import Table

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file and its arguments.")
COUNT = flags.DEFINE_integer("devices", 0, "Devices of the pod; 0: as many as the mesh says.")


def main(_) -> None:
    import jax

    from experiments.lib.needs import build_setting, mesh_sizes

    config = CONFIG.value
    try:
        devices = mesh_sizes(config, COUNT.value)
        count = devices[0] * devices[1] * devices[2]
        jax.config.update("jax_num_cpu_devices", count)
        setting = build_setting(config, count)
        from memalpha.footprint import measure_footprint

        show(config, setting, measure_footprint(setting))
    except ValueError as error:
        sys.exit(str(error))


def show(config: ConfigDict, setting, footprint) -> None:
    from experiments.lib.progress import console
    from memalpha.footprint import DEPTHS, DEVICES, USABLE, suggest_micro_batch

    data, fsdp, tensor = setting.mesh
    console.print(
        f"{config.title}\nmesh data={data}, fsdp={fsdp}, tensor={tensor}: {data * fsdp * tensor}"
        f" devices; {setting.rows} rows a rollout, prompts of {setting.prompt} and responses of"
        f" {setting.response} tokens; micro-batch {setting.micro_batch} of {setting.step_rows} rows"
    )
    table = Table("on each device", "GB", title="Memory (GB = 10^9 bytes)")
    for stage in ("persistent", "rollout", "update"):
        for name, size in getattr(footprint, stage).items():
            table.add_row(f"{stage}: {name}", f"{size / 1e9:.2f}")
    table.add_row("peak", f"{footprint.peak / 1e9:.2f}")
    console.print(table)
    if setting.model.num_layers > DEPTHS[1]:
        console.print(
            f"Prefill, decode and activations are estimates: compiled with {DEPTHS[0]} and"
            f" {DEPTHS[1]} layers by the CPU compiler (float32 products, no flash attention) and"
            f" extrapolated to {setting.model.num_layers}. The rest is exact."
        )
    table = Table("device", "fits", "largest micro-batch", title=f"Of which {USABLE:.0%} is usable")
    for name, capacity in DEVICES.items():
        fits = footprint.peak <= USABLE * capacity
        size = suggest_micro_batch(footprint, setting, capacity)
        table.add_row(name, "yes" if fits else "no", str(size) if size else "none fits")
    console.print(table)
    show_cost(config, setting, footprint)
    work = ", ".join(f"{name} {count:.2e}" for name, count in footprint.flops.items())
    console.print(f"Floating point operations of a step, all devices, full widths: {work}")


def show_cost(config: ConfigDict, setting, footprint) -> None:
    from experiments.lib.progress import console
    from memalpha import cost
    from memalpha.footprint import sampled_bytes

    steps, chunks = config.rl.steps, config.data.chunks
    devices, weights = math.prod(setting.mesh), sampled_bytes(setting)
    table = Table(
        "device", "prefill", "decode", "update", "step", f"{steps} steps", "device hours",
        title="Seconds of a training step, hours of the run: upper estimates",
    )  # fmt: skip
    for name, rates in cost.DEVICES.items():
        stages = cost.step_seconds(setting, footprint, weights, chunks, rates)
        step = sum(stages.values())
        hours = step * steps / 3600
        cells = [f"{seconds:.3g}" for seconds in (*stages.values(), step)]
        table.add_row(name, *cells, f"{hours:.3g} h", f"{hours * devices:.3g}")
    console.print(table)
    episodes = setting.step_rows // chunks
    calls = episodes * config.data.max_questions
    memory = config.memory
    tokens = memory.core_tokens + 2 * config.reward.top_k * memory.entry_tokens
    reader = {"offline": "offline rules, seconds on the host"}.get(
        config.reader.engine,
        f"{calls:,} calls of the model, evidence of at most {tokens:,} tokens each",
    )
    console.print(
        f"Not in these seconds: compilation, the host, and the reader of {calls:,} questions a step"
        f" ({reader}). Rates: the makers' figures, of which {cost.MATRIX_SHARE:.0%} of the"
        f" operations and {cost.BANDWIDTH_SHARE:.0%} of the bandwidth were measured on an H200;"
        " python -m benchmarks.accelerator measures both"
    )


def run() -> None:
    os.environ["JAX_PLATFORMS"] = "cpu"
    flags.mark_flags_as_required(["config"])
    app.run(main)


if __name__ == "__main__":
    run()
