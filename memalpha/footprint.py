"""What a config needs on a pod, before there is one: memory of a device and work of a step.

    python -m experiments.plan --config=configs/qwen3_4b.py --devices=32

Rollout and gradient are compiled ahead of time on abstract arrays, for as many virtual CPU devices:
nothing is allocated and no accelerator is needed. Persistent memory (parameters, optimiser state)
is counted exactly from shapes and shardings. Transient memory (activations, caches) is measured by
the compiler at two depths and extrapolated linearly to all layers. The CPU compiler computes
bfloat16 products in float32, has no flash attention and undoes remat; so with remat "full" the
gradient is compiled at the smaller depth alone, and each further layer adds what remat saves of it,
its input.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding

from memalpha import learner, lora, objective, sharding
from memalpha.batch import Batch, Rows, Targets, Tokens
from memalpha.lora import LoraConfig
from memalpha.model import ModelConfig, Params, init_params
from memalpha.sampler import lower

DEPTHS = (2, 3)  # layers of the compiled models; the last layer differs, so at least two
# Schedule for little memory, as the compilers of accelerators do, and not for parallel CPU cores.
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
    """What a footprint is computed for. rows: of a rollout; step_rows: of all micro-batches of a
    step."""

    model: ModelConfig
    loss: objective.LossConfig
    lora: LoraConfig
    optimizer: optax.GradientTransformation
    mesh: tuple[int, int, int]  # data, fsdp, tensor
    gather: bool  # sample from parameters that are not sharded over fsdp
    prompt: int  # tokens
    response: int  # tokens
    rows: int
    micro_batch: int
    step_rows: int
    draft_tokens: int = 0


@dataclass(frozen=True)
class Footprint:
    """Bytes on one device, by name, and floating point operations of a step on all of them."""

    persistent: dict[str, float]  # all the time
    rollout: dict[str, float]  # in addition, while sampling
    update: dict[str, float]  # in addition, in the gradient of a micro-batch
    flops: dict[str, float]
    row_bytes: float  # of "update", what one more row of a micro-batch on a device adds at most

    @property
    def peak(self) -> float:
        return sum(self.persistent.values()) + max(
            sum(self.rollout.values()), sum(self.update.values())
        )


def measure_footprint(setting: Setting) -> Footprint:
    """Compiles, and counts. Needs mesh[0] * mesh[1] * mesh[2] devices, which may be virtual.

    Raises:
        ValueError: the mesh does not divide the devices, an array, the heads or the rows.
    """
    mesh = sharding.make_mesh(*setting.mesh)
    sharding.check_rows(mesh, setting.rows, "rollout")
    sharding.check_rows(mesh, setting.micro_batch, "micro-batch")
    sharding.check_heads(mesh, setting.model.num_kv_heads)
    whole, model = abstract_params(setting.model, mesh), setting.model
    trees = _persistent(setting, whole, mesh)
    persistent = {name: stored(tree) for name, tree in trees.items()}
    sampled = sampled_bytes(setting)
    rollout = {
        "gathered parameters": sampled if sampled != stored(whole) else 0.0,
        "cache": cache_bytes(setting, mesh),
        "prefill and decode": extrapolate(partial(_rollout_bytes, setting, mesh), model),
    }
    parts = 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]
    gradients = _gradients(setting, trees)
    activations = _activations(setting, mesh, parts)
    rows = setting.micro_batch // parts
    update = {
        "gradients, two sets": 2.0 * gradients,
        "stacked layers": stacked_bytes(whole, trees[_own(setting)]) if model.scan_layers else 0.0,
        f"activations, {rows} rows": rows * activations,
    }
    return Footprint(persistent, rollout, update, count_flops(setting), activations)


def sampled_bytes(setting: Setting) -> float:
    """Bytes of the parameters that one device samples from, gathered over fsdp or not."""
    mesh = sharding.make_mesh(*setting.mesh)
    return stored(_gathered(setting, abstract_params(setting.model, mesh), mesh))


def check_fits(setting: Setting, capacity: float) -> None:
    """Raises ValueError where persistent memory and gradients exceed the `capacity` of a device in
    bytes; names the parts, the largest array, and what to change.

    Compiles nothing: what fits here may still not fit with activations and a cache
    (`measure_footprint`).
    """
    mesh = sharding.make_mesh(*setting.mesh)
    trees = _persistent(setting, abstract_params(setting.model, mesh), mesh)
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
        f" {size / 1e9:.1f} GB. Shard over more devices (mesh.fsdp), train adapters alone"
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
    """Bytes of the keys and values of all rows and slots on one device."""
    model, slots = setting.model, setting.prompt + setting.response
    parts = 1 if mesh is None else mesh.size
    heads = model.num_kv_heads * model.head_dim * jnp.dtype(model.dtype).itemsize
    layer = 2 * setting.rows * slots * heads / parts
    return model.num_layers * layer


def count_flops(setting: Setting) -> dict[str, float]:
    """Floating point operations of the matrix products of a step, all rows at full width.

    A product of two numbers and its addition count as 2. A forward pass takes 2 x kernels x tokens,
    with the head on completions alone, and 4 x heads x head_dim for every pair of tokens in causal
    attention. A gradient takes three forward passes, four with remat; log-probs take one.
    """
    model = setting.model
    forward = forward_flops(model, setting.prompt, setting.response)
    passes = (4 if model.remat == "full" else 3) + (setting.loss.kl != "none")
    return {"rollout": setting.step_rows * forward, "update": setting.step_rows * passes * forward}


def forward_flops(model: ModelConfig, prompt: float, response: float) -> float:
    """Operations of one forward pass over one row of so many tokens; see `count_flops`."""
    body, head = count_kernels(model)
    tokens, pairs = prompt + response, 4 * model.num_heads * model.head_dim * model.num_layers
    return 2 * (body * tokens + head * response) + pairs * tokens**2 / 2


def count_kernels(model: ModelConfig) -> tuple[int, int]:
    """Numbers in the matrices of all layers, and in that of the head."""
    q, kv = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    layer = 2 * model.hidden_size * (q + kv) + 3 * model.hidden_size * model.mlp_size
    return layer * model.num_layers, model.hidden_size * model.vocab_size


def suggest_micro_batch(footprint: Footprint, setting: Setting, capacity: float) -> int:
    """The largest micro-batch (a power of two times data x fsdp) that fits; 0: none does."""
    room, update = USABLE * capacity - sum(footprint.persistent.values()), footprint.update
    fixed = update["gradients, two sets"] + update["stacked layers"]
    rows = math.floor((room - fixed) / footprint.row_bytes)
    if room < sum(footprint.rollout.values()) or rows < 1:
        return 0
    parts = setting.mesh[0] * setting.mesh[1]
    size = parts * 2 ** int(math.log2(rows))
    while size > parts and setting.step_rows % size:
        size //= 2
    return min(size, setting.step_rows)


def extrapolate(measure: Callable[[ModelConfig], float], model: ModelConfig) -> float:
    """`measure` at two depths, extrapolated linearly to that of the model."""
    if model.num_layers <= DEPTHS[1]:
        return measure(model)
    low, high = (measure(replace(model, num_layers=depth)) for depth in DEPTHS)
    return low + (high - low) * (model.num_layers - DEPTHS[0]) / (DEPTHS[1] - DEPTHS[0])


def _activations(setting: Setting, mesh: Mesh | None, parts: int) -> float:
    """Transient bytes of the gradient for each row on a device."""
    model, measure = setting.model, partial(_gradient_bytes, setting, mesh, parts)
    if model.remat != "full" or model.num_layers <= DEPTHS[1]:
        return extrapolate(measure, model)
    tokens = setting.prompt + setting.response
    saved = tokens * model.hidden_size * jnp.dtype(model.dtype).itemsize  # a layer's input
    shallow = measure(replace(model, num_layers=DEPTHS[0]))
    return shallow + (model.num_layers - DEPTHS[0]) * saved


def _gradient_bytes(setting: Setting, mesh: Mesh | None, parts: int, model: ModelConfig) -> float:
    """Transient bytes of the gradient of one full-width row on each device, without arguments and
    results."""
    params = abstract_params(model, mesh)
    trained, _ = _trained(replace(setting, model=model), params, mesh)
    loss = partial(objective.loss, model_config=model, config=setting.loss)
    gradient = learner.make_gradient(loss, partial(lora.attach, config=setting.lora))
    frozen = params if setting.lora.rank else None
    count = jax.ShapeDtypeStruct((), jnp.float32)
    with sharding.use(mesh):
        lowered = gradient.lower(trained, frozen, _micro(setting, mesh, parts), count)
    return _transient(lowered)


def _rollout_bytes(setting: Setting, mesh: Mesh | None, model: ModelConfig) -> float:
    """Transient bytes of sampling, without arguments and one cache of full length."""
    params = _gathered(setting, abstract_params(model, mesh), mesh)
    sizes = (setting.rows, setting.prompt, setting.response, setting.draft_tokens)
    lowered = lower(params, model, *sizes)
    return max(0.0, _transient(lowered) - cache_bytes(replace(setting, model=model), mesh))


def _transient(lowered) -> float:
    return float(lowered.compile(compiler_options=OPTIONS).memory_analysis().temp_size_in_bytes)


def _micro(setting: Setting, mesh: Mesh | None, rows: int) -> Batch:
    """The shapes of a micro-batch as the update sees it."""
    p, t = setting.prompt, setting.response
    where = None if mesh is None else NamedSharding(mesh, sharding.ROWS)

    def shape(*axes: int, dtype=jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows, *axes), dtype, sharding=where)

    tokens = Tokens(
        prompt=shape(p, dtype=jnp.int32),
        prompt_mask=shape(p, dtype=bool),
        completion=shape(t, dtype=jnp.int32),
        completion_mask=shape(t, dtype=bool),
    )
    targets = Targets(sample_logps=shape(t), advantages=shape())
    if setting.loss.kl != "none":
        targets = targets.replace(ref_logps=shape(t))
    if setting.loss.algorithm == "ppo":
        names = ("old_logps", "values", "returns", "advantages")
        targets = targets.replace(**{name: shape(t) for name in names})
    return Batch(tokens, targets, Rows(valid=shape(dtype=bool)))


def _persistent(setting: Setting, whole: Params, mesh: Mesh | None) -> dict[str, Any]:
    """Shapes of what stays on a device; `whole`: of the model that the run starts from."""
    trained, opt_state = _trained(setting, whole, mesh)
    return {_own(setting): trained, "start and reference": whole, "optimiser": opt_state}


def _own(setting: Setting) -> str:
    return "adapters" if setting.lora.rank else "parameters"


def stacked_bytes(whole: Params, trained: Params) -> float:
    """Bytes of the layers' weights and of their gradients in the dtype of the parameters:
    `scan_layers` stacks a second copy of both."""
    return sum(stored({k: v for k, v in p.items() if "layers_" in k}) for p in (whole, trained))


def _gradients(setting: Setting, persistent: dict[str, Any]) -> float:
    """Bytes of one set of float32 gradients."""
    trained = persistent[_own(setting)]
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


def _with(tree: Any, tree_shardings: Any) -> Any:
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, tree_shardings
    )


def _shards(tree: Any) -> Any:
    """The shapes that one device holds."""

    def shard(x):
        shape = x.shape if x.sharding is None else x.sharding.shard_shape(x.shape)
        return jax.ShapeDtypeStruct(shape, x.dtype)

    return jax.tree.map(shard, tree)
