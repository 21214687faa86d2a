"""Low-rank adapters: nothing at first, the same model merged or not, and nothing else moves."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jax.flatten_util import ravel_pytree

from configs import tiny
from experiments.export import export_adapters
from experiments.lib.checks import check
from experiments.lib.objects import build_model, build_tokenizer, open_stage, policy_spec
from experiments.lib.warm_start import warm_start
from experiments.train import train
from memalpha import learner, lora, objective
from memalpha.batch import from_tokens, plan_micro_batches
from memalpha.checkpoint import open_checkpoints, restore, save
from memalpha.hub import read_config
from memalpha.lora import LoraConfig
from memalpha.model import ModelConfig, Transformer, init_params
from memalpha.objective import LossConfig
from memalpha.optimizer import OptimizerConfig, make_optimizer
from memalpha.policy import load_policy
from memalpha.policy_spec import write_spec
from memalpha.weights import export, load_params

MODEL = ModelConfig(
    vocab_size=37,
    hidden_size=24,
    num_layers=1,
    num_heads=6,
    num_kv_heads=2,
    head_dim=8,
    mlp_size=29,
)
LORA = LoraConfig(rank=3, alpha=5.0)
BATCH = from_tokens([[3, 4], [5], [6, 7, 8], [9]], [[1, 2], [2, 3, 4], [5], [6, 7]])


@pytest.fixture(scope="module")
def params():
    return jax.jit(init_params, static_argnums=0)(MODEL, jax.random.key(0))


def strong(adapters, seed=1):
    """Adapters in the middle of training: B is no longer zero."""
    flat, unravel = ravel_pytree(adapters)
    return unravel(0.3 * jax.random.normal(jax.random.key(seed), flat.shape))


@partial(jax.jit, static_argnames="model")
def hidden(params, model=MODEL):
    tokens = jnp.arange(22).reshape(2, 11)
    positions = jnp.broadcast_to(jnp.arange(11), (2, 11))
    return Transformer(model).apply({"params": params}, tokens, positions, tokens >= 0)[0]


def paths(tree):
    return {"/".join(k.key for k in path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)}


def test_fresh_adapters_change_nothing(params):
    adapters = lora.init(params, LORA, jax.random.key(1))
    whole = lora.attach(adapters, params, LORA)
    np.testing.assert_array_equal(hidden(whole), hidden(params))
    merged = lora.merge(adapters, params, LORA)
    assert jax.tree.structure(merged) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, merged, params)
    a = adapters["layers_0"]["mlp"]["down_proj"]["lora_a"]
    assert a.shape == (29, 3) and a.std() == pytest.approx(29**-0.5, rel=0.3)


def test_rank_zero_is_the_whole_model_in_new_arrays(params):
    off = LoraConfig()
    trained = lora.init(params, off, jax.random.key(1))
    jax.tree.map(np.testing.assert_array_equal, trained, params)
    assert not set(map(id, jax.tree.leaves(trained))) & set(map(id, jax.tree.leaves(params)))
    assert lora.attach(trained, None, off) is trained
    jax.tree.map(np.testing.assert_array_equal, lora.merge(trained, None, off), params)


def test_one_adapted_layer_by_hand(params):
    config = LoraConfig(rank=1, alpha=0.5, layers="layers_0/mlp/up_proj$")
    adapters = lora.init(params, config, jax.random.key(1))
    assert paths(adapters) == {"layers_0/mlp/up_proj/lora_a", "layers_0/mlp/up_proj/lora_b"}
    adapters = strong(adapters)
    layer = adapters["layers_0"]["mlp"]["up_proj"]
    kernel = np.asarray(params["layers_0"]["mlp"]["up_proj"]["kernel"])
    update = np.outer(layer["lora_a"][:, 0], layer["lora_b"][0])
    merged = lora.merge(adapters, params, config)
    got = merged["layers_0"]["mlp"].pop("up_proj")["kernel"]
    np.testing.assert_allclose(got, kernel + 0.5 * update, rtol=1e-6)
    plain = jax.tree.map(lambda x: x, params)
    del plain["layers_0"]["mlp"]["up_proj"]
    jax.tree.map(np.testing.assert_array_equal, merged, plain)


@pytest.mark.parametrize(
    "dtype, atol, layers",
    [("float32", 1e-6, "_proj"), ("bfloat16", 0.0, "attention/[qv]_proj")],
)
def test_merged_is_attached(params, dtype, atol, layers):
    config = LoraConfig(rank=3, alpha=5.0, layers=layers)
    model = replace(MODEL, dtype=dtype, param_dtype=dtype, remat="full")
    base = jax.tree.map(lambda x: x.astype(dtype), params)
    adapters = strong(lora.init(base, config, jax.random.key(1)))
    attached = hidden(lora.attach(adapters, base, config), model)
    merged = lora.merge(adapters, base, config)
    assert jax.tree.map(lambda x: x.dtype, merged) == jax.tree.map(lambda x: x.dtype, base)
    difference = jnp.abs(hidden(merged, model) - attached).astype(jnp.float32)
    assert difference.max() <= atol
    assert jnp.abs(hidden(base, model) - attached).max() > 0.5  # the adapters do something


@pytest.mark.parametrize("switches", [{}, {"scan_layers": True, "remat": "full", "qkv_bias": True}])
def test_gradients_are_those_of_the_merged_model(switches):
    model = replace(MODEL, **switches)
    params = init_params(model, jax.random.key(0))
    adapters = strong(lora.init(params, LORA, jax.random.key(1)))

    def loss(assemble, adapters):
        parts, count = objective.supervised_loss(
            assemble(adapters, params, LORA), BATCH, model, first_weight=3.0
        )
        return parts["sum"]["loss"] / count

    grads = jax.jit(jax.grad(partial(loss, lora.attach)))(adapters)
    expected = jax.jit(jax.grad(partial(loss, lora.merge)))(adapters)
    assert paths(grads) == paths(adapters)
    jax.tree.map(partial(np.testing.assert_allclose, atol=2e-5, rtol=1e-3), grads, expected)
    assert all(jnp.abs(g).max() > 1e-4 for g in jax.tree.leaves(grads))


def test_training_moves_adapters_alone_and_saves_them(params, tmp_path):
    optimizer = make_optimizer(OptimizerConfig(2e-2, weight_decay=0.0))
    attach, config = partial(lora.attach, config=LORA), LossConfig(aggregation="token")
    update = learner.make_update(MODEL, config, optimizer, attach)
    token_logps = learner.make_token_logps(MODEL, config)
    # With an advantage of 1 everywhere, on-policy steps are those of the cross-entropy.
    batch, plan = BATCH.with_targets(advantages=np.ones(4)), plan_micro_batches(BATCH, 2)
    # A fresh embedding is too small a head for logits to go anywhere while it is frozen.
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    half["embed"] = {"embedding": 20 * half["embed"]["embedding"]}
    state = learner.init_state(lora.init(half, LORA, jax.random.key(1)), optimizer)
    size = sum(x.size for x in jax.tree.leaves(state.params))
    assert sum(x.size for x in jax.tree.leaves(state.opt_state)) == 2 * size + 2  # and two counts
    before = jax.tree.map(np.array, half)

    def mean_logp():
        logps, _ = token_logps(attach(state.params, half), BATCH)
        return logps[BATCH.tokens.completion_mask].mean()

    first = mean_logp()
    for _ in range(25):
        state, _ = update(state, batch, plan, half)
    assert mean_logp() > 0.5 * first
    jax.tree.map(np.testing.assert_array_equal, half, before)
    with open_checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 25, state)
        fresh = learner.init_state(lora.init(half, LORA, jax.random.key(2)), optimizer)
        step, restored = restore(checkpoints, fresh)
    assert step == 25
    jax.tree.map(np.testing.assert_array_equal, restored, state)


def test_a_critic_is_trained_whole(params):
    base = params | {"value_head": {"kernel": jnp.ones((24, 1))}}
    adapters = lora.init(base, LORA, jax.random.key(1))
    assert "value_head/kernel" in paths(adapters)
    adapters["value_head"]["kernel"] = jnp.full((24, 1), 7.0)
    assert (lora.merge(adapters, base, LORA)["value_head"]["kernel"] == 7).all()


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"rank": -1}, "rank >= 0"),
        ({"rank": 2, "alpha": 0.0}, "alpha > 0"),
        ({"rank": 2, "layers": "("}, "is no expression"),
    ],
)
def test_configs_that_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        LoraConfig(**fields)


def test_an_expression_that_matches_nothing_names_the_kernels(params):
    with pytest.raises(ValueError, match="attention/k_proj, .*, mlp/up_proj"):
        lora.init(params, LoraConfig(rank=2, layers="query"), jax.random.key(0))


def test_adapters_are_not_for_a_model_from_scratch():
    with pytest.raises(ValueError, match="config.lora.rank=4 without config.model.path"):
        check(tiny.get_config("lora.rank=4"))


def test_from_a_folder_to_adapters_to_a_folder(micro, tmp_path):
    """The loop on a model folder: base in bfloat16, adapters trained, loaded again, exported."""
    fresh = jax.jit(init_params, static_argnums=0)(micro.model, jax.random.key(0))
    folder = export(fresh, micro.model, tmp_path / "start", micro.tokenizer)
    config = tiny.get_config(
        f"model.path={folder},model.param_dtype=bfloat16,lora.rank=2,warm_start.steps=0,"
        "rl.steps=2,rl.instances=1,rl.rollouts=2,rl.micro_batch=0,rl.entropy_coef=0.1,"
        "rl.learning_rate=0.1,data.chunks=1,eval.every=3,eval.instances=2,"
        "prompt.tokens=320,prompt.response_tokens=16"
    )
    config.data.sources = ("synthetic_facts",)
    check(config)
    tokenizer = build_tokenizer(config, tmp_path)
    assert tokenizer.encode("Ann met Bob") == micro.tokenizer.encode("Ann met Bob")
    model, base = build_model(config, len(tokenizer))
    assert model == replace(micro.model, param_dtype="bfloat16")
    env = micro.env.replace(response_tokens=16)
    start = warm_start(config, tmp_path, env, model, base)
    trained = train(config, tmp_path, env, model, base, start)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), trained, base)
    assert moved["layers_0"]["mlp"]["up_proj"]["kernel"] and not moved["embed"]["embedding"]
    write_spec(tmp_path, policy_spec(config, model))
    jax.tree.map(np.testing.assert_array_equal, load_policy(tmp_path).params, trained)
    out = export(trained, model, tmp_path / "out", tokenizer)
    loaded = load_params(out, read_config(out, param_dtype="bfloat16"))
    jax.tree.map(np.testing.assert_array_equal, loaded, trained)


def test_adapters_learn_from_the_teacher_and_reinforcement_goes_on_from_there(micro, tmp_path):
    base = jax.jit(init_params, static_argnums=0)(micro.model, jax.random.key(0))
    folder = export(base, micro.model, tmp_path / "start", micro.tokenizer)
    config = tiny.get_config(
        f"model.path={folder},lora.rank=2,warm_start.teacher=careful,warm_start.steps=3,"
        "warm_start.copy_steps=0,warm_start.quote_steps=0,warm_start.rows=4,"
        "warm_start.micro_batch=0,warm_start.optimizer=adamw,warm_start.warmup_steps=1,"
        "rl.steps=1,rl.instances=1,rl.rollouts=2,rl.micro_batch=0,eval.every=2,"
        "prompt.tokens=320,prompt.response_tokens=128"
    )
    check(config)
    env = micro.env
    first = jax.tree.map(np.array, base)
    start = warm_start(config, tmp_path, env, micro.model, base)
    jax.tree.map(np.testing.assert_array_equal, base, first)
    assert paths(start) == paths(lora.init(base, lora.LoraConfig(2), jax.random.key(0)))
    assert all(np.any(x) for path, x in flatten_dict(start).items() if path[-1] == "lora_b")
    again = warm_start(config, tmp_path, env, micro.model, base)  # from its last checkpoint
    jax.tree.map(np.testing.assert_array_equal, again, start)
    trained = train(config, tmp_path, env, micro.model, base, start)
    write_spec(tmp_path, policy_spec(config, micro.model))
    of_stage = load_policy(tmp_path, "warm_start").params
    merged = lora.merge(start, base, lora.LoraConfig(2))
    jax.tree.map(np.testing.assert_array_equal, of_stage, merged)
    jax.tree.map(np.testing.assert_array_equal, load_policy(tmp_path).params, trained)
    out = export_adapters(str(tmp_path), str(tmp_path / "adapters"), "warm_start")
    close = partial(np.testing.assert_allclose, atol=1e-3)
    jax.tree.map(close, load_policy(out).params, merged)
    on = tiny.get_config(f"model.path={folder},lora.rank=2,lora.path={out},warm_start.steps=0")
    jax.tree.map(close, warm_start(on, tmp_path / "on", env, micro.model, base), start)
    jax.tree.map(close, open_stage(on, tmp_path / "on", "warm_start", env).params, merged)
    for wrong, said in (
        ("lora.rank=3", "has LoraConfig.*says"),
        (f"lora.path={folder}", "is no f"),
    ):
        on = tiny.get_config(f"lora.rank=2,lora.path={out},warm_start.steps=0,{wrong}")
        with pytest.raises(ValueError, match=said):
            warm_start(on, tmp_path / "on", env, micro.model, base)
