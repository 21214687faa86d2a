"""The mesh: rules by hand, errors before any work, and one device against many."""

import os
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from configs import tiny
from experiments.lib.checks import check
from memalpha import learner, lora, sharding
from memalpha.model import Cache, ModelConfig, init_params
from memalpha.optimizer import OptimizerConfig, make_optimizer

MODEL = ModelConfig(
    vocab_size=48,
    hidden_size=16,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=6,
    mlp_size=20,
    tie_embeddings=False,
    value_head=True,
)
SHAPES = jax.eval_shape(partial(init_params, MODEL), jax.random.key(0))
BY_HAND = {
    "embed/embedding": P("tensor", "fsdp"),
    "lm_head/kernel": P("fsdp", "tensor"),
    "layers_1/attention/k_proj/kernel": P("fsdp", "tensor"),
    "layers_0/attention/o_proj/kernel": P("tensor", "fsdp"),
    "layers_0/mlp/gate_proj/kernel": P("fsdp", "tensor"),
    "layers_1/mlp/down_proj/kernel": P("tensor", "fsdp"),
    "layers_1/attention/q_norm/scale": P(),
    "norm/scale": P(),
    "value_head/kernel": P(),
}


def mesh(data, fsdp, tensor):
    return AbstractMesh((data, fsdp, tensor), sharding.AXES)


def leaf(tree, path):
    for name in path.split("/"):
        tree = tree[name]
    return tree


def test_rules_by_hand():
    tree = sharding.specs(SHAPES)
    for path, spec in BY_HAND.items():
        assert sharding.spec_of(path) == leaf(tree, path) == spec
    with pytest.raises(ValueError, match="no sharding rule for 'layers_0/router/kernel'"):
        sharding.spec_of("layers_0/router/kernel")


def test_optimiser_state_is_cut_like_the_parameters_and_counts_are_whole():
    optimizer = make_optimizer(OptimizerConfig(1e-3))
    bfloat = jax.eval_shape(lambda p: jax.tree.map(lambda x: x.astype(jnp.bfloat16), p), SHAPES)
    state = jax.eval_shape(lambda p: learner.init_state(p, optimizer), bfloat)
    leaves = jax.tree_util.tree_leaves_with_path(sharding.specs(state))
    names = [(sharding.name_of(path), s) for path, s in leaves]
    for wanted, spec in BY_HAND.items():  # parameters, float32 copy, two moments
        assert [s for name, s in names if name.endswith("/" + wanted)] == [spec] * 4
    assert all(s == P() for name, s in names if name.endswith(("count", "step")))


def test_the_state_of_muon_is_cut_like_the_parameters():
    optimizer = make_optimizer(OptimizerConfig(1e-3, optimizer="muon"))
    state = jax.eval_shape(lambda p: learner.init_state(p, optimizer), SHAPES)
    cut = [s for s in jax.tree.leaves(sharding.specs(state).opt_state) if s != P()]
    # One momentum of seven kernels of two layers, and two moments of embedding and head.
    assert len(cut) == 7 * 2 + 2 * 2
    assert sharding.shardings(state, mesh(1, 1, 2))


def test_adapters_are_cut_like_the_kernels_they_belong_to():
    adapters = jax.eval_shape(
        lambda p: lora.init(p, lora.LoraConfig(rank=3), jax.random.key(0)), SHAPES
    )
    tree = sharding.specs(adapters)
    up, down = (leaf(tree, f"layers_0/mlp/{name}") for name in ("up_proj", "down_proj"))
    assert (up["lora_a"], up["lora_b"]) == (P("fsdp", None), P(None, "tensor"))
    assert (down["lora_a"], down["lora_b"]) == (P("tensor", None), P(None, "fsdp"))


def test_shards_multiply_to_the_whole():
    where = sharding.shardings(SHAPES, mesh(3, 4, 2))
    shard = jax.tree.map(lambda x, s: s.shard_shape(x.shape), SHAPES, where)
    assert leaf(shard, "layers_0/mlp/up_proj/kernel") == (16 // 4, 20 // 2)
    assert leaf(shard, "layers_0/attention/o_proj/kernel") == (24 // 2, 16 // 4)
    gathered = leaf(sharding.gathered(SHAPES, mesh(3, 4, 2)), "layers_0/mlp/up_proj/kernel")
    assert gathered.shard_shape((16, 20)) == (16, 10)
    k, v = jnp.zeros((12, 2, 6, 5)), jnp.zeros((12, 2, 5, 6))
    cache = Cache(k=(k,), v=(v,), valid=jnp.zeros((12, 5), bool), index=jnp.int32(0))
    cut = jax.tree.map(
        lambda x, s: s.shard_shape(x.shape),
        cache,
        sharding.cache_shardings(cache, mesh(3, 4, 2)),
    )
    assert (cut.k, cut.v) == (((1, 1, 6, 5),), ((1, 1, 5, 6),))
    assert (cut.valid, cut.index) == ((1, 5), ())


def test_what_a_mesh_does_not_divide_is_named():
    with pytest.raises(
        ValueError, match=r"(?s)fsdp=3.*up_proj/kernel \(16, 20\): axis 0 into 3.*8 more"
    ):
        sharding.shardings(SHAPES, mesh(1, 3, 1))
    with pytest.raises(ValueError, match="2 key-value heads, which tensor=4 does not divide"):
        sharding.check_heads(mesh(1, 1, 4), 2)
    with pytest.raises(ValueError, match="rollouts: 12 rows .* data x fsdp = 8"):
        sharding.check_rows(mesh(2, 4, 3), 12, "rollouts")
    sharding.check_rows(mesh(2, 4, 3), 16, "rollouts")


@pytest.mark.parametrize(
    "sizes, message",
    [
        ((2, 3, 1), "does not divide the 4 devices"),
        ((1, 2, 1), "does not divide the 4 devices"),
        ((3, -1, 1), "does not divide the 4 devices"),
        ((-1, -1, 1), "at most one"),
        ((0, 4, 1), "at least 1"),
    ],
)
def test_a_mesh_has_all_devices(sizes, message):
    with pytest.raises(ValueError, match=message):
        sharding.make_mesh(*sizes, devices=jax.devices() * 4)


def test_configs_are_checked_before_any_work():
    check(tiny.get_config())
    with pytest.raises(ValueError, match="mesh data=3, fsdp=1, tensor=1 does not divide the 1 dev"):
        check(tiny.get_config("mesh.data=3"))


def test_without_a_mesh_nothing_is_done():
    assert sharding.make_mesh() is None and sharding.mesh_of({"x": jnp.ones(3)}) is None
    tree = {"norm": {"scale": np.ones(3)}}
    assert sharding.place(tree, None, sharding.ROWS) is tree
    assert sharding.shard(tree, None) is tree and sharding.gather(tree) is tree
    text = str(jax.make_jaxpr(lambda x: sharding.constrain(x, sharding.ROWS))(jnp.ones(3)))
    assert "sharding" not in text


def start(*arguments) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "tests/sharded_run.py", *map(str, arguments)],
        cwd=Path(__file__).parent.parent,
        env=os.environ | {"PYTHONPATH": ".", "TF_CPP_MIN_LOG_LEVEL": "3"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen, meshes: list[str]) -> None:
    out, err = process.communicate()
    same = [line for line in out.splitlines() if line.startswith("same")]
    assert same == [f"same {text}" for text in meshes], err[-3000:]


def test_eight_devices_do_what_one_does():
    """Sampled tokens, log-probs, loss, gradient (in the moments), new parameters; the last number
    is the rank of adapters."""
    meshes = ["2,2,2,0", "2,4,1,2"]
    finish(start(8, 1, 0, 0, *meshes), meshes)


def test_two_processes_of_four_devices_do_what_one_device_does():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    both = [start(4, 2, number, port, "2,2,2,0") for number in range(2)]
    for process in both:
        finish(process, ["2,2,2,0"])
