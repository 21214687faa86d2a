"""How arrays are sharded over many devices: a mesh, and rules as data; XLA (GSPMD) does the rest.

Mesh axes: `data` (replicas), `fsdp` (parameters and optimiser state sharded, and gathered layer by
layer) and `tensor` (heads, MLP columns and vocabulary sharded). Rows of a batch are sharded over
data x fsdp.

No mesh is passed around: it is that of the parameters (`mesh_of`), under which a jitted function
is called (`use`). Inside, `constrain` and `constrain_tree` say how results are sharded; without a
mesh they are no-ops. Several processes run the same program on the same host data.
"""

import math
import os
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

P = PartitionSpec
Tree = Any
Rules = Sequence[tuple[str, PartitionSpec]]

AXES = ("data", "fsdp", "tensor")
ROWS = P(("data", "fsdp"))  # [B, ...] and [R, ...]
CACHE = P(("data", "fsdp"), "tensor")  # [B, K, ...] keys and values
LOOKUP = P("tensor")  # [V, D] embedding at a look-up: D is replicated so that XLA gathers the table
WHOLE = P()

# The first expression that matches the path of an array counts; it is the same for gradients and
# optimiser state, whose paths end like those of the parameters. A layer that reads the residual
# stream is sharded by columns, one that writes to it by rows, so that the two communicate once.
RULES: Rules = (
    (r"embed/embedding$", P("tensor", "fsdp")),
    (r"lm_head/kernel$", P("fsdp", "tensor")),
    (r"(q|k|v|gate|up)_proj/kernel$", P("fsdp", "tensor")),
    (r"(o|down)_proj/kernel$", P("tensor", "fsdp")),
    (r"(q|k|v|gate|up)_proj/lora_a$", P("fsdp", None)),
    (r"(q|k|v|gate|up)_proj/lora_b$", P(None, "tensor")),
    (r"(o|down)_proj/lora_a$", P("tensor", None)),
    (r"(o|down)_proj/lora_b$", P(None, "fsdp")),
    (r"(q|k|v)_proj/bias$", P("tensor")),
    (r"norm/scale$", WHOLE),
    (r"value_head/kernel$", WHOLE),
    (r"ns_coeffs$", WHOLE),  # of Muon's state
)


def make_mesh(
    data: int = 1, fsdp: int = 1, tensor: int = 1, devices: Sequence[jax.Device] | None = None
) -> Mesh | None:
    """The mesh of a config; None for 1, 1, 1: one device. One axis may be -1: the devices that the
    other axes leave.

    devices: those of all processes when None.

    Raises:
        ValueError: the axes do not multiply to the number of devices.
    """
    sizes = dict(zip(AXES, (data, fsdp, tensor), strict=True))
    text = ", ".join(f"{name}={size}" for name, size in sizes.items())
    if (data, fsdp, tensor) == (1, 1, 1):
        return None
    devices = jax.devices() if devices is None else devices
    given = tuple(sizes.values())
    if given.count(-1) > 1 or any(size < 1 and size != -1 for size in given):
        raise ValueError(f"mesh {text}: give sizes of at least 1, and -1 for at most one axis")
    sizes = complete(given, len(devices))
    if len(devices) == 1 and -1 in given and math.prod(sizes) == 1:
        return None
    if math.prod(sizes) != len(devices):
        raise ValueError(
            f"mesh {text} does not divide the {len(devices)} devices: choose"
            f" data x fsdp x tensor = {len(devices)}, or -1 for one axis"
        )
    kinds = (AxisType.Auto,) * len(AXES)
    return jax.make_mesh(sizes, AXES, kinds, devices=devices)


def complete(sizes: Sequence[int], devices: int) -> tuple[int, ...]:
    """The sizes with a -1 replaced by the devices that the others leave, rounded down."""
    known = math.prod(size for size in sizes if size != -1)
    return tuple(devices // known if size == -1 else size for size in sizes)


def spec_of(path: str, rules: Rules = RULES) -> PartitionSpec:
    """The rule for "layers_0/mlp/up_proj/kernel". ValueError where there is none."""
    for pattern, spec in rules:
        if re.search(pattern, path):
            return spec
    raise ValueError(f"no sharding rule for {path!r}: add (expression, PartitionSpec) to RULES")


def specs(tree: Tree, rules: Rules = RULES) -> Tree:
    """Specs of parameters, or of what holds such trees: gradients, optimiser state, TrainState.

    Scalars (steps, counts) are replicated.
    """
    return jax.tree.map_with_path(
        lambda path, x: spec_of(name_of(path), rules) if x.ndim else WHOLE, tree
    )


def shardings(tree: Tree, mesh: Mesh, rules: Rules = RULES) -> Tree:
    """NamedShardings of such a tree of arrays or shapes (`jax.eval_shape`).

    Raises:
        ValueError: an axis of the mesh does not divide a dimension; names every such array.
    """
    tree_specs = specs(tree, rules)
    wrong = []

    def check(path, x, spec):
        for axis, names in enumerate(spec):
            parts = _parts(mesh, names)
            if x.shape[axis] % parts:
                wrong.append(f"{name_of(path)} {x.shape}: axis {axis} into {parts} ({names})")

    jax.tree.map_with_path(check, tree, tree_specs)
    if wrong:
        more = f"\n  and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        raise ValueError(
            f"mesh {_text(mesh)} does not divide these arrays; choose a size of that axis that"
            " does:\n  " + "\n  ".join(wrong[:8]) + more
        )
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), tree_specs)


def cache_shardings(cache: Tree, mesh: Mesh) -> Tree:
    """NamedShardings of a `model.Cache` of arrays or shapes: rows, and heads over `tensor`."""
    spec = {4: CACHE, 2: ROWS, 0: WHOLE}  # by rank: keys and values, mask of the slots, index
    return jax.tree.map(lambda x: NamedSharding(mesh, spec[x.ndim]), cache)


def row_parts(mesh: Mesh | None) -> int:
    """data x fsdp: how many shards the rows of a batch have."""
    return 1 if mesh is None else _parts(mesh, ROWS[0])


def check_rows(mesh: Mesh | None, rows: int, what: str) -> None:
    """Raises ValueError where data x fsdp does not divide the rows of `what`."""
    parts = row_parts(mesh)
    if rows % parts:
        raise ValueError(
            f"{what}: {rows} rows are sharded over data x fsdp = {parts} of the mesh {_text(mesh)};"
            f" choose a multiple of {parts}, or a smaller mesh"
        )


def check_heads(mesh: Mesh | None, kv_heads: int) -> None:
    """Raises ValueError where `tensor` does not divide the key-value heads of a model."""
    if mesh is not None and kv_heads % mesh.shape["tensor"]:
        raise ValueError(
            f"mesh {_text(mesh)}: the cache holds {kv_heads} key-value heads, which"
            f" tensor={mesh.shape['tensor']} does not divide; choose a tensor that does"
        )


def mesh_of(tree: Tree) -> Mesh | None:
    """The mesh that the arrays of a tree (or their shapes) are sharded over; None on one device."""
    sharding = getattr(jax.tree.leaves(tree)[0], "sharding", None)
    if isinstance(sharding, NamedSharding) and sharding.mesh.size > 1:
        return sharding.mesh
    return None


def use(mesh: Mesh | None) -> AbstractContextManager:
    """The context in which a function is jitted and called for a mesh; empty without one."""
    return nullcontext() if mesh is None else jax.set_mesh(mesh)


def constrain(x: jax.Array, spec: PartitionSpec) -> jax.Array:
    """Inside jit: x sharded as `spec` over the mesh in use; x itself without a mesh."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, spec)


def constrain_tree(tree: Tree, spec: PartitionSpec | None = None) -> Tree:
    """Inside jit: all arrays of a tree sharded as `spec`, or by the rules when None."""
    if jax.sharding.get_abstract_mesh().empty:
        return tree
    tree_specs = specs(tree) if spec is None else jax.tree.map(lambda x: spec, tree)
    return jax.tree.map(constrain, tree, tree_specs)


def place(tree: Tree, mesh: Mesh | None, spec: PartitionSpec) -> Tree:
    """Host arrays (or keys), the same in every process, as arrays on the mesh; each device gets its
    own shard. Without a mesh the tree itself.

    Raises:
        ValueError: the mesh does not divide the rows.
    """
    return tree if mesh is None else jax.tree.map(lambda x: _put(x, mesh, spec), tree)


def shard(tree: Tree, mesh: Mesh | None) -> Tree:
    """Parameters sharded by the rules, from the host or from one device; those that are on the mesh
    already stay as they are. Without a mesh the tree itself."""
    if mesh is None:
        return tree

    def move(x, where: NamedSharding):
        if isinstance(x, jax.Array) and len(x.sharding.device_set) > 1:
            return x
        return _put(x, mesh, where.spec)

    return jax.tree.map(move, tree, shardings(tree, mesh))


def gather(params: Tree) -> Tree:
    """A copy for sampling, sharded over `tensor` alone: parameters that are sharded over fsdp would
    be gathered again for every token. Without a mesh, or with fsdp=1, the tree itself."""
    mesh = mesh_of(params)
    if mesh is None or mesh.shape["fsdp"] == 1:
        return params
    return jax.jit(lambda x: x, out_shardings=gathered(params, mesh))(params)


def gathered(params: Tree, mesh: Mesh) -> Tree:
    """The shardings that `gather` gives."""

    def without_fsdp(where: NamedSharding) -> NamedSharding:
        return NamedSharding(mesh, P(*(None if name == "fsdp" else name for name in where.spec)))

    return jax.tree.map(without_fsdp, shardings(params, mesh))


def device_memory(device: jax.Device) -> float:
    """Bytes that a device has in all. On CPU the devices share the memory of the machine; infinite
    where the system does not tell."""
    stats = device.memory_stats() or {}
    return float(stats.get("bytes_limit", machine_memory() / jax.local_device_count()))


def machine_memory() -> float:
    """Bytes; infinite where the system does not tell."""
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return math.inf
    return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def _put(x, mesh: Mesh, spec: PartitionSpec) -> jax.Array:
    if hasattr(x, "dtype") and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        data = _put(jax.random.key_data(x), mesh, spec)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
    x = np.asarray(x)
    if spec == ROWS:
        check_rows(mesh, x.shape[0], "batch")
    return jax.make_array_from_callback(x.shape, NamedSharding(mesh, spec), lambda index: x[index])


def _parts(mesh: Mesh, names: str | tuple[str, ...] | None) -> int:
    names = (names,) if isinstance(names, str) else names or ()
    return math.prod(mesh.shape[name] for name in names)


def _text(mesh: Mesh) -> str:
    return ", ".join(f"{name}={size}" for name, size in mesh.shape.items())


def name_of(path) -> str:
    """The path of a leaf, as jax gives it, as text: "layers_0/mlp/up_proj/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")
