"""Run by test_sharding in processes of their own: sampling, scoring and learning on a mesh against
one device. Prints "same" for each mesh.

    python tests/sharded_run.py DEVICES PROCESSES PROCESS PORT MESH...      MESH such as 2,2,2
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np

from memalpha import learner, lora, sampler, sharding
from memalpha.batch import from_tokens, plan_micro_batches
from memalpha.drafts import make_drafts
from memalpha.model import ModelConfig, Transformer, init_params
from memalpha.objective import LossConfig
from memalpha.optimizer import OptimizerConfig, make_optimizer

MODEL = ModelConfig(
    vocab_size=16,
    hidden_size=8,
    num_layers=1,
    num_heads=4,
    num_kv_heads=2,
    head_dim=4,
    mlp_size=24,
)
ADAPTERS = lora.LoraConfig(rank=2)
LOSS = LossConfig(entropy_coef=0.01, kl="k3", kl_coef=0.1)
R, P, T = 16, 4, 8
LENGTHS = [(1, 8), (4, 2), (4, 7), (4, 5)] * 4  # micro-batches of 8 rows have one shape


def batch():
    rng = np.random.default_rng(0)
    rows = from_tokens(
        [rng.integers(0, 16, p).tolist() for p, _ in LENGTHS],
        [rng.integers(0, 16, t).tolist() for _, t in LENGTHS],
    )
    advantages = rng.normal(size=R).astype(np.float32)
    return rows.with_targets(advantages=advantages).with_rows(valid=np.arange(R) != 5)


def run(params, adapters: lora.LoraConfig) -> tuple[dict, learner.TrainState]:
    """Everything a training step does, on whatever `params` stand on."""
    rows, mesh = batch(), sharding.mesh_of(params)
    plan, prompts = plan_micro_batches(rows, 8), (rows.tokens.prompt, rows.tokens.prompt_mask)
    limits, keys = np.arange(R) % 6, sampler.row_keys(jax.random.key(3), range(R))
    sampled = sampler.generate(
        sharding.gather(params), MODEL, *prompts, keys, 1.0, 1.0, limits, [3],
        5,
    )  # fmt: skip
    prefix = sampler.prefill(sharding.gather(params), MODEL, [5, 4, 3])
    prefixed = sampler.generate(
        sharding.gather(params), MODEL, *prompts, keys, 1.0, 1.0, limits, [3],
        5, prefix, make_drafts(2, [5, 4, 3]),
    )  # fmt: skip
    scores, _ = learner.make_token_logps(MODEL, LOSS)(params, rows, plan)
    rows = rows.with_targets(ref_logps=scores - 0.1)
    optimizer = make_optimizer(OptimizerConfig(1e-3))
    trained = sharding.shard(lora.init(params, adapters, jax.random.key(1)), mesh)
    state = learner.init_state(trained, optimizer)

    def attach(part, whole):
        return lora.attach(part, whole, adapters)

    update = learner.make_update(MODEL, LOSS, optimizer, attach)
    state, metrics = update(state, rows, plan, params)
    moments = {i: x for i, x in enumerate(jax.tree.leaves(state.opt_state)) if x.ndim}
    scores = scores * rows.tokens.completion_mask
    results = dict(sampled=sampled, prefixed=prefixed, scores=scores, metrics=metrics)
    return results | dict(gradient=moments, params=state.params), state


def fetch(tree):
    """On the host, whole."""
    mesh = sharding.mesh_of(tree["params"])
    if mesh is not None:
        whole = jax.sharding.NamedSharding(mesh, sharding.WHOLE)
        places = jax.tree.map(lambda x: whole if isinstance(x, jax.Array) else None, tree)
        arrays = {k: x for k, x in tree.items() if k != "scores"}
        places = {k: x for k, x in places.items() if k != "scores"}
        tree = jax.jit(lambda x: x, out_shardings=places)(arrays) | {"scores": tree["scores"]}
    return jax.device_get(tree)


def cut(x) -> int:
    """Into how many different parts an array is cut."""
    return len({str(index) for index in x.sharding.devices_indices_map(x.shape).values()})


def check_cut(params, state, mesh) -> None:
    """Nothing large stands whole on a device, the cache of a prefill least of all."""
    data, fsdp, tensor = mesh.shape.values()
    for tree in (params, state.params, state.opt_state):
        for path, x in jax.tree_util.tree_leaves_with_path(tree):
            name = jax.tree_util.keystr(path)
            if "kernel" in name or "embedding" in name:
                assert cut(x) == fsdp * tensor, (name, x.sharding)
    tokens = sharding.place(np.ones((R, P), np.int32), mesh, sharding.ROWS)
    with sharding.use(mesh):
        apply = jax.jit(lambda p, x: Transformer(MODEL).apply({"params": p}, x, x, x > 0)[1])
        cache = apply(params, tokens)
    wanted = sharding.cache_shardings(cache, mesh)
    for x, where in zip(cache.k + cache.v, wanted.k + wanted.v, strict=True):
        assert x.sharding.is_equivalent_to(where, x.ndim), x.sharding
    assert cut(cache.k[0]) == data * fsdp * tensor


def main() -> None:
    devices, processes, process, port = map(int, sys.argv[1:5])
    jax.config.update("jax_num_cpu_devices", devices)
    if processes > 1:
        jax.distributed.initialize(f"localhost:{port}", processes, process)
    init = jax.jit(lambda key: init_params(MODEL, key))
    params = jax.device_get(init(jax.random.key(0)))
    params = jax.tree.map(lambda x: 8 * x if x.ndim > 1 else x, params)  # far from uniform
    wanted = {}
    for text in sys.argv[5:]:
        *sizes, rank = map(int, text.split(","))
        adapters = lora.LoraConfig(rank=rank)
        if rank not in wanted:
            wanted[rank] = fetch(run(jax.tree.map(jnp.asarray, params), adapters)[0])
        mesh = sharding.make_mesh(*sizes)
        sharded = sharding.shard(params, mesh)
        got, state = run(sharded, adapters)
        if not rank:
            check_cut(sharded, state, mesh)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=2e-4),
            fetch(got),
            wanted[rank],
        )
        print("same", text, flush=True)


if __name__ == "__main__":
    main()
