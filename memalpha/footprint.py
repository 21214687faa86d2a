"""What a config needs on a pod, before there is one: memory of a device and work of a step.

    python -m experiments.plan --config=configs/qwen3_4b.py --devices=32

Rollout and gradient are compiled ahead of time on abstract arrays, for as many virtual CPU devices:
nothing is allocated and no accelerator is needed. What is stored is counted exactly from shapes and
shardings. What is needed in passing is the compiler's figure at two depths, continued to all layers
on a straight line. The CPU compiler computes bfloat16 products in float32, knows no flash attention
and undoes remat; so with remat "full" the gradient is compiled at the smaller depth alone, and a
further layer adds what remat keeps of it, its input.
"""

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding

from memalpha import learner, lora, sharding
from memalpha.batch import Batch
from memalpha.lora import LoraConfig
from memalpha.model import ModelConfig, Params, init_params
from memalpha.sampler import lower

DEPTHS = (2, 3)  # layers that are compiled; the last layer differs, so at least two
# The compiler orders for little memory, as those of accelerators do, and not for idle cores.
OPTIONS = {"xla_cpu_enable_concurrency_optimized_scheduler": False}
USABLE = 0.92  # of a device's memory: the rest is for runtime, fragments and communication
DEVICES = {  # bytes
    "H100 80 GB": 80e9,
    "H200 141 GB": 141e9,
    "TPU v5e 16 GB": 16e9,
    "TPU v6e 32 GB": 32e9,
    "TPU v5p 95 GB": 95e9,
}


@dataclass(frozen=True)
class Setting:
    """What a plan is made for. rows: of a rollout; step_rows: of all micro-batches of a step."""

    model: ModelConfig
    loss: learner.LossConfig
    lora: LoraConfig
    optimizer: optax.GradientTransformation
    mesh: tuple[int, int, int]  # data, fsdp, tensor
    gather: bool  # sample from parameters that are not cut over fsdp
    prompt: int  # tokens
    response: int  # tokens
    rows: int
    micro_batch: int
    step_rows: int


@dataclass(frozen=True)
class Plan:
    """Bytes on one device, by name, and floating point operations of a step on all of them."""

    kept: dict[str, float]  # all the time
    rollout: dict[str, float]  # on top of it, while sampling
    update: dict[str, float]  # on top of it, in the gradient of a micro-batch
    flops: dict[str, float]
    row_bytes: float  # of "update", what one more row of a micro-batch on a device adds at most

    @property
    def peak(self) -> float:
        return sum(self.kept.values()) + max(sum(self.rollout.values()), sum(self.update.values()))


def make_plan(setting: Setting) -> Plan:
    """Compiles, and counts. Needs mesh[0] * mesh[1] * mesh[2] devices, virtual ones do.

    Raises:
        ValueError: the mesh does not divide the devices, an array, the heads or the rows.
    """
    mesh = sharding.make_mesh(*setting.mesh)
    sharding.check_rows(mesh, setting.rows, "rollout")
    sharding.check_rows(mesh, setting.micro_batch, "micro-batch")
    sharding.check_heads(mesh, setting.model.num_kv_heads)
    whole, model = abstract_params(setting.model, mesh), setting.model
    trees = _kept(setting, whole, mesh)
    kept = {name: stored(tree) for name, tree in trees.items()}
    sampled = stored(_gathered(setting, whole, mesh))
    rollout = {
        "gathered parameters": sampled if sampled != stored(whole) else 0.0,
        "cache": cache_bytes(setting, mesh),
        "prefill and decode": _at_depth(partial(_rollout_bytes, setting, mesh), model),
    }
    parts = 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]
    gradients = _gradients(setting, trees)
    activations = _activations(setting, mesh, parts)
    rows = setting.micro_batch // parts
    update = {
        "gradients, two sets": 2.0 * gradients,
        "layers side by side": _looped(whole, trees[_own(setting)]) if model.scan_layers else 0.0,
        f"activations, {rows} rows": rows * activations,
    }
    return Plan(kept, rollout, update, count_flops(setting), activations)


def check_fits(setting: Setting, capacity: float) -> None:
    """Raises ValueError where what a run keeps on a device, and the gradients, exceed its memory
    of so many bytes; says of what, which array is the largest, and what to change.

    Compiles nothing: what fits here may still not fit with activations and a cache (`make_plan`).
    """
    mesh = sharding.make_mesh(*setting.mesh)
    trees = _kept(setting, abstract_params(setting.model, mesh), mesh)
    sizes = {name: stored(tree) for name, tree in trees.items()}
    sizes["gradients, two sets"] = 2.0 * _gradients(setting, trees)
    needed = sum(sizes.values())
    if needed <= capacity:
        return
    arrays = [
        (stored(x), f"{sharding.name_of(path)} {list(x.shape)} of the {name}")
        for name, tree in trees.items()
        for path, x in jax.tree.leaves_with_path(tree)
    ]
    listed = ", ".join(f"{name} {size / 1e9:.1f}" for name, size in sizes.items() if size)
    size, largest = max(arrays)
    raise ValueError(
        f"too little memory: a device has {capacity / 1e9:.1f} GB, and before any rollout the run"
        f" keeps {needed / 1e9:.1f} there ({listed}). The largest array is {largest}:"
        f" {size / 1e9:.1f} GB. Cut over more devices (mesh.fsdp), train adapters alone"
        " (lora.rank=32), keep the weights in 16 bits (model.param_dtype=bfloat16), or take a"
        " smaller model. `python -m experiments.plan` shows what else a run needs"
    )


def abstract_params(model: ModelConfig, mesh: Mesh | None) -> Params:
    """Shapes of the parameters with their shardings."""
    return _on(jax.eval_shape(partial(init_params, model), jax.random.key(0)), mesh)


def stored(tree: Any) -> float:
    """Bytes of a tree on one device."""
    return float(sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(_shards(tree))))


def cache_bytes(setting: Setting, mesh: Mesh | None) -> float:
    """Keys and values of all rows and slots on one device."""
    model, slots = setting.model, setting.prompt + setting.response
    parts = 1 if mesh is None else mesh.size
    heads = model.num_kv_heads * model.head_dim * jnp.dtype(model.dtype).itemsize
    layer = 2 * setting.rows * slots * heads / parts
    return model.num_layers * layer


def count_flops(setting: Setting) -> dict[str, float]:
    """Of matrix products, two a multiplication, at full widths; the step as the learner takes it.

    A forward pass: 2 x kernels x tokens, the head on completions alone, and 4 x heads x h for every
    pair in causal attention. A gradient is three of them, four with remat, and a log-prob one.
    """
    model, p, t = setting.model, setting.prompt, setting.response
    q, kv = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    layer = 2 * model.hidden_size * (q + kv) + 3 * model.hidden_size * model.mlp_size
    body, head = layer * model.num_layers, model.hidden_size * model.vocab_size
    pairs = 4 * q * model.num_layers
    tokens = p + t
    forward = 2 * (body * tokens + head * t) + pairs * tokens**2 / 2
    passes = (4 if model.remat == "full" else 3) + (setting.loss.kl != "none")
    return {"rollout": setting.step_rows * forward, "update": setting.step_rows * passes * forward}


def suggest(plan: Plan, setting: Setting, capacity: float) -> int:
    """The largest micro-batch (a power of two times data x fsdp) that fits; 0: none does."""
    room = USABLE * capacity - sum(plan.kept.values())
    fixed = plan.update["gradients, two sets"] + plan.update["layers side by side"]
    rows = math.floor((room - fixed) / plan.row_bytes)
    if room < sum(plan.rollout.values()) or rows < 1:
        return 0
    parts = setting.mesh[0] * setting.mesh[1]
    size = parts * 2 ** int(math.log2(rows))
    while size > parts and setting.step_rows % size:
        size //= 2
    return min(size, setting.step_rows)


def _at_depth(measure, model: ModelConfig) -> float:
    """`measure` at two depths, continued to that of the model."""
    if model.num_layers <= DEPTHS[1]:
        return measure(model)
    low, high = (measure(replace(model, num_layers=depth)) for depth in DEPTHS)
    return low + (high - low) * (model.num_layers - DEPTHS[0]) / (DEPTHS[1] - DEPTHS[0])


def _activations(setting: Setting, mesh: Mesh | None, parts: int) -> float:
    model, measure = setting.model, partial(_gradient_bytes, setting, mesh, parts)
    if model.remat != "full" or model.num_layers <= DEPTHS[1]:
        return _at_depth(measure, model)
    tokens = setting.prompt + setting.response
    kept = tokens * model.hidden_size * jnp.dtype(model.dtype).itemsize  # a layer's input
    shallow = measure(replace(model, num_layers=DEPTHS[0]))
    return shallow + (model.num_layers - DEPTHS[0]) * kept


def _gradient_bytes(setting: Setting, mesh: Mesh | None, parts: int, model: ModelConfig) -> float:
    """What the gradient of one full-width row a device takes beside its arguments and results."""
    params = abstract_params(model, mesh)
    trained, _ = _trained(replace(setting, model=model), params, mesh)
    loss = partial(learner.loss, model_config=model, config=setting.loss)
    gradient = learner.make_gradient(loss, partial(lora.attach, config=setting.lora))
    frozen = params if setting.lora.rank else None
    count = jax.ShapeDtypeStruct((), jnp.float32)
    with sharding.use(mesh):
        lowered = gradient.lower(trained, frozen, _micro(setting, mesh, parts), count)
    return _temporary(lowered)


def _rollout_bytes(setting: Setting, mesh: Mesh | None, model: ModelConfig) -> float:
    """What sampling takes beside its arguments and one cache of full length."""
    params = _gathered(setting, abstract_params(model, mesh), mesh)
    lowered = lower(params, model, setting.rows, setting.prompt, setting.response)
    return max(0.0, _temporary(lowered) - cache_bytes(replace(setting, model=model), mesh))


def _temporary(lowered) -> float:
    return float(lowered.compile(compiler_options=OPTIONS).memory_analysis().temp_size_in_bytes)


def _micro(setting: Setting, mesh: Mesh | None, rows: int) -> Batch:
    p, t = setting.prompt, setting.response
    fields = {
        "prompt": ((rows, p), jnp.int32),
        "prompt_mask": ((rows, p), bool),
        "completion": ((rows, t), jnp.int32),
        "completion_mask": ((rows, t), bool),
        "sample_logps": ((rows, t), jnp.float32),
        "advantages": ((rows,), jnp.float32),
        "valid": ((rows,), bool),
    }
    if setting.loss.kl != "none":
        fields["ref_logps"] = ((rows, t), jnp.float32)
    if setting.loss.algorithm == "ppo":
        fields |= {
            name: ((rows, t), jnp.float32)
            for name in ("old_logps", "values", "returns", "advantages")
        }
    where = None if mesh is None else NamedSharding(mesh, sharding.ROWS)
    made = {k: jax.ShapeDtypeStruct(*x, sharding=where) for k, x in fields.items()}
    return Batch(**made)


def _kept(setting: Setting, whole: Params, mesh: Mesh | None) -> dict[str, Any]:
    """Shapes of what is there all the time; `whole`: of the model that the run starts from."""
    trained, opt_state = _trained(setting, whole, mesh)
    return {_own(setting): trained, "start and reference": whole, "optimiser": opt_state}


def _own(setting: Setting) -> str:
    return "adapters" if setting.lora.rank else "parameters"


def _looped(whole: Params, trained: Params) -> float:
    """Bytes of the layers' weights and of their gradients, before those are float32, as
    `scan_layers` lays them side by side."""
    return sum(stored({k: v for k, v in p.items() if "layers_" in k}) for p in (whole, trained))


def _gradients(setting: Setting, kept: dict[str, Any]) -> float:
    """Bytes of one set of float32 gradients."""
    trained = kept[_own(setting)]
    return 4.0 * sum(x.size for x in jax.tree.leaves(_shards(trained)))


def _trained(setting: Setting, params: Params, mesh: Mesh | None) -> tuple[Params, Any]:
    """Shapes of what is trained and of its optimiser state."""
    trained = jax.eval_shape(lambda p: lora.init(p, setting.lora, jax.random.key(0)), params)
    opt_state = jax.eval_shape(setting.optimizer.init, trained)
    return _on(trained, mesh), _on(opt_state, mesh)


def _gathered(setting: Setting, params: Params, mesh: Mesh | None) -> Params:
    if mesh is None or not setting.gather:
        return params
    return _with(params, sharding.gathered(params, mesh))


def _on(tree: Any, mesh: Mesh | None) -> Any:
    return tree if mesh is None else _with(tree, sharding.shardings(tree, mesh))


def _with(tree: Any, where: Any) -> Any:
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, where
    )


def _shards(tree: Any) -> Any:
    """The shapes that one device holds."""

    def shard(x):
        shape = x.shape if x.sharding is None else x.sharding.shard_shape(x.shape)
        return jax.ShapeDtypeStruct(shape, x.dtype)

    return jax.tree.map(shard, tree)
