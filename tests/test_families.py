"""Every family of `hub.FAMILIES`: logits of `transformers`, and all that Qwen3 can do."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P
from safetensors.numpy import load_file

from memalpha import footprint, learner, lora, sampler, sharding
from memalpha.hub import FAMILIES, parse_config, read_config
from memalpha.model import Transformer, grow, init_params, logits
from memalpha.model_config import RopeScaling
from memalpha.objective import LossConfig
from memalpha.optimizer import OptimizerConfig, make_optimizer
from memalpha.weights import SINGLE, export, load_params

FIXTURES = Path(__file__).parent / "fixtures"
NAMES = sorted(FAMILIES)
# Published fields and the parameters they should come to: width, layers, heads, key-value heads,
# MLP, vocabulary, tied, and what is particular.
PUBLISHED = {
    "SmolLM2-135M": ("llama", 576, 30, 9, 3, 1536, 49_152, True, {}, 134_515_008),
    "TinyLlama-1.1B": ("llama", 2048, 22, 32, 4, 5632, 32_000, False, {}, 1_100_048_384),
    "Llama-3.2-1B": (
        *("llama", 2048, 16, 32, 8, 8192, 128_256, True),
        {
            "rope_scaling": {
                **{"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0},
                **{"high_freq_factor": 4.0, "original_max_position_embeddings": 8192},
            }
        },
        1_235_814_400,
    ),
    "Qwen2.5-0.5B": (
        *("qwen2", 896, 24, 14, 2, 4864, 151_936, True),
        {"use_sliding_window": False, "sliding_window": 32_768, "max_window_layers": 24},
        494_032_768,
    ),
    "SmolLM3-3B": (
        *("smollm3", 2048, 36, 16, 4, 11_008, 128_256, True),
        {"no_rope_layers": [1, 1, 1, 0] * 9, "use_sliding_window": False, "sliding_window": None},
        3_075_098_624,
    ),
    "gemma-3-270m": (
        *("gemma3_text", 640, 18, 4, 1, 2048, 262_144, True),
        {
            **{"head_dim": 256, "query_pre_attn_scalar": 256, "sliding_window": 512},
            **{"rope_local_base_freq": 10_000.0, "hidden_activation": "gelu_pytorch_tanh"},
            **{"final_logit_softcapping": None, "use_bidirectional_attention": False},
        },
        268_098_176,
    ),
}


def published(name):
    family, width, layers, heads, kv_heads, mlp, vocabulary, tied, more, _ = PUBLISHED[name]
    return {
        **{"model_type": family, "vocab_size": vocabulary, "hidden_size": width},
        **{"num_hidden_layers": layers, "num_attention_heads": heads, "rms_norm_eps": 1e-5},
        **{"num_key_value_heads": kv_heads, "intermediate_size": mlp, "rope_theta": 100_000},
        **{"tie_word_embeddings": tied, "max_position_embeddings": 32_768, "hidden_act": "silu"},
        **more,
    }


@partial(jax.jit, static_argnames=("config", "full"))
def forward(params, tokens, positions, mask, config, cache=None, full=False):
    hidden, cache = Transformer(config).apply(
        {"params": params}, tokens, positions, mask, cache, full=full
    )
    return logits(params, hidden, config), cache


def run(params, tokens, mask, config, cache=None, full=False, start=0):
    positions = start + np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    return forward(params, tokens, positions, mask, config, cache, full)


def load(name, **choices):
    config = read_config(FIXTURES / name, **choices)
    return load_params(FIXTURES / name, config), config, np.load(FIXTURES / name / "expected.npz")


def deeper(name):
    """A config of the family with layers of each kind, more than once."""
    config = read_config(FIXTURES / name)
    changed = {"smollm3": dict(no_rope_layers=(1, 3)), "gemma3_text": dict(window_layers=(0, 2))}
    return replace(config, num_layers=5 if name in changed else 3, **changed.get(name, {}))


def strong_params(config, seed=0):
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(0.2 * rng.standard_normal(x.shape), x.dtype), shapes)


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_transformers(name):
    params, config, golden = load(name)
    tokens, mask = golden["tokens"], golden["mask"]
    assert tokens.shape == (2, 64) and [int(n) for n in mask.sum(axis=1)] == [64, 64 - 17]
    for attention in ("blocks", "xla"):
        ours, _ = run(params, tokens, mask, replace(config, attention=attention))
        assert np.abs(ours - golden["float32"])[mask].max() <= 1e-4
    # With a cache: a part at once, several tokens, and one by one.
    ours, cache = run(params, tokens[:, :40], mask[:, :40], config)
    parts, cache, positions = [ours], grow(cache, 66), np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    for begin, end in ((40, 62), (62, 63), (63, 64)):
        s = slice(begin, end)
        ours, cache = forward(params, tokens[:, s], positions[:, s], mask[:, s], config, cache)
        parts.append(ours)
    ours = np.concatenate(parts, axis=1)
    assert np.abs(ours - golden["float32"])[mask].max() <= 1e-4


@pytest.mark.parametrize(
    ("name", "switches"),
    [
        ("llama", {"rope_scaling": None}),
        ("smollm3", {"no_rope_layers": ()}),
        ("gemma3_text", {"window_layers": ()}),
        ("gemma3_text", {"window_rope_theta": None}),
        ("gemma3_text", {"query_pre_attn_scalar": None}),
        ("gemma3_text", {"activation": "silu"}),
        ("gemma3_text", {"scale_embedding": False}),
        ("gemma3_text", {"norm_plus_one": False}),
        ("gemma3_text", {"post_norms": False}),
    ],
    ids=str,
)
def test_the_golden_models_show_every_switch(name, switches):
    params, config, golden = load(name)
    ours, _ = run(params, golden["tokens"], golden["mask"], replace(config, **switches))
    assert np.abs(ours - golden["float32"])[golden["mask"]].max() > 1e-2


@pytest.mark.parametrize("attention", ["blocks", "xla"])
def test_a_window_counts_tokens_and_not_padding(attention):
    """Padding between a prefix and the rest, as in sampling with a shared prefix."""
    params, config, golden = load("gemma3_text", attention=attention)
    tokens = golden["tokens"]
    _, cache = run(params, tokens[:, :20], np.ones((2, 20), bool), config)
    rest, mask = np.pad(tokens[:, 20:], ((0, 0), (5, 0))), np.arange(49) >= 5
    mask = np.broadcast_to(mask, (2, 49))
    ours, cache = run(params, rest[:, :-1], mask[:, :-1], config, cache, full=True, start=20)
    last, _ = forward(
        params, rest[:, -1:], np.full((2, 1), 63), mask[:, -1:], config, grow(cache, 70)
    )
    ours = np.concatenate([ours[:, 5:], last], axis=1)[0]
    assert np.abs(ours - golden["float32"][0, 20:]).max() <= 1e-4


def test_sampling_with_a_shared_prefix():
    params, config, golden = load("gemma3_text")
    prefix, rest = golden["tokens"][0, :20].tolist(), golden["tokens"][0, 20:]
    prompts = [rest[:7].tolist(), rest[:3].tolist()]
    keys = sampler.row_keys(jax.random.key(0), range(2))

    def sample(prompts, width, *shared):
        tokens, mask = sampler.pad_prompts(prompts, [width])
        limits, stops = np.array([9, 9]), np.array([-1])
        return sampler.generate(
            params, config, tokens, mask, keys, 1.0, 1.0, limits, stops, 9, *shared
        )

    whole = sample([prefix + prompt for prompt in prompts], 30)
    short = sample(prompts, 8, sampler.prefill(params, config, prefix))
    np.testing.assert_array_equal(short.tokens, whole.tokens)
    np.testing.assert_allclose(short.logps, whole.logps, atol=1e-4)


# Layers of two kinds in two ways, biases, scaled RoPE; layers that are all alike are in test_model.
@pytest.mark.parametrize("name", ["gemma3_text", "llama", "qwen2", "smollm3"])
def test_training_with_adapters_remat_and_a_loop_over_layers(name):
    config = deeper(name)
    base, adapters = strong_params(config), lora.LoraConfig(rank=2, alpha=2.0)
    trained = lora.init(base, adapters, jax.random.key(0))
    trained = jax.tree.map(lambda x: x + 0.1, trained)
    tokens = np.random.default_rng(8).integers(0, 53, (2, 19))
    mask = np.arange(19) >= np.array([[0], [3]])
    positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)

    def loss(config, merged, trained):
        whole = (lora.merge if merged else lora.attach)(trained, base, adapters)
        hidden, _ = Transformer(config).apply(
            {"params": whole}, tokens, positions, mask, last=9, keep=False
        )
        return jnp.mean(hidden**2 * np.arange(33))

    looped = replace(config, scan_layers=True, remat="full")
    assert "scan" in str(jax.make_jaxpr(partial(loss, looped, False))(trained))
    plain, other = (
        jax.jit(jax.value_and_grad(partial(loss, *how)))(trained)
        for how in ((config, True), (looped, False))
    )

    def close(a, b):
        assert jnp.abs(a - b).max() <= 1e-4 * jnp.abs(a).max() > 0

    jax.tree.map(close, plain, other)


def test_layers_without_a_rhythm_are_no_loop():
    config = replace(deeper("smollm3"), no_rope_layers=(0,), num_layers=4, scan_layers=True)
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    x = jnp.ones((1, 5), jnp.int32)
    made = jax.make_jaxpr(
        lambda p: Transformer(config).apply({"params": p}, x, x, x > 0, keep=False)
    )
    assert "scan" not in str(made(shapes))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("name", NAMES)
def test_every_array_of_training_has_a_place(name, optimizer):
    config = replace(read_config(FIXTURES / name), value_head=True)
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    built = make_optimizer(OptimizerConfig(1e-3, optimizer=optimizer))
    start = partial(learner.init_state, optimizer=built)
    state = jax.eval_shape(start, shapes)
    specs = sharding.specs(state)
    assert sharding.shardings(state, AbstractMesh((1, 1, 1), sharding.AXES))
    layer = specs.params["layers_0"]
    if config.qkv_bias:
        assert layer["attention"]["k_proj"]["bias"] == P("tensor")
    if config.post_norms:
        assert layer["mlp_post_norm"]["scale"] == layer["attention_post_norm"]["scale"] == P()


@pytest.mark.parametrize("name", NAMES)
def test_export_then_import_is_identical(tmp_path, name):
    params, config, _ = load(name, param_dtype="bfloat16")
    out = export(params, config, tmp_path / "out")
    written, original = (load_file(folder / SINGLE) for folder in (out, FIXTURES / name))
    assert written.keys() == original.keys()
    assert all(written[k].tobytes() == x.tobytes() for k, x in original.items())
    assert read_config(out, param_dtype="bfloat16") == config
    again = load_params(out, config)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), again, params)
    assert json.loads((out / "config.json").read_text())["max_position_embeddings"] == 128


def test_a_model_that_its_family_does_not_know_is_not_written(tmp_path):
    config = replace(read_config(FIXTURES / "llama"), post_norms=True)
    with pytest.raises(ValueError, match="family 'llama' cannot have post_norms True"):
        export(strong_params(config), config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", NAMES)
def test_live_transformers_loads_what_is_exported(tmp_path, name):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    config = deeper(name)
    base, adapters = strong_params(config), lora.LoraConfig(rank=2, alpha=2.0)
    trained = jax.tree.map(lambda x: x + 0.1, lora.init(base, adapters, jax.random.key(0)))
    out = export(lora.merge(trained, base, adapters), config, tmp_path / "out")
    model, info = AutoModelForCausalLM.from_pretrained(
        out, dtype=torch.float32, output_loading_info=True
    )
    assert not any(info.values()), info
    tokens = np.random.default_rng(0).integers(0, 53, (2, 64))
    mask = np.arange(64) >= np.array([[0], [11]])
    positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    with torch.no_grad():
        theirs = model.eval()(
            torch.tensor(tokens),
            attention_mask=torch.tensor(mask.astype(int)),
            position_ids=torch.tensor(positions),
        ).logits.numpy()
    attached = lora.attach(trained, base, adapters)
    for params in (load_params(out, config), attached):
        ours, _ = run(params, tokens, mask, config)
        assert np.abs(ours - theirs)[mask].max() <= 1e-4


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs(name):
    config = parse_config(published(name), "config.json", dtype="bfloat16")
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    assert sum(x.size for x in jax.tree.leaves(shapes)) == PUBLISHED[name][-1]
    assert (config.max_positions, config.dtype) == (32_768, "bfloat16")
    if name == "Llama-3.2-1B":
        assert config.rope_scaling == RopeScaling(32.0, 1.0, 4.0, 8192)
    if name == "SmolLM3-3B":
        assert config.no_rope_layers == tuple(range(3, 36, 4)) and not config.window_layers
    if name == "gemma-3-270m":
        assert config.window_layers == tuple(i for i in range(18) if (i + 1) % 6)
        assert (config.window, config.window_rope_theta) == (512, 1e4)


def test_the_footprint_of_a_family():
    setting = footprint.Setting(
        model=replace(read_config(FIXTURES / "gemma3_text"), num_layers=2, value_head=True),
        loss=LossConfig(algorithm="ppo"),
        lora=lora.LoraConfig(),
        optimizer=make_optimizer(OptimizerConfig(1e-3)),
        mesh=(1, 1, 1),
        gather=True,
        prompt=7,
        response=5,
        rows=6,
        micro_batch=3,
        step_rows=12,
    )
    needs = footprint.measure_footprint(setting)
    params = jax.eval_shape(lambda: init_params(setting.model, jax.random.key(0)))
    assert needs.persistent["parameters"] == 4 * sum(x.size for x in jax.tree.leaves(params))
    assert needs.rollout["prefill and decode"] > 0 and needs.row_bytes > 5 * 53 * 4


@pytest.mark.parametrize(
    ("name", "fields", "said"),
    [
        ("llama", {"model_type": "gemma3"}, "model_type 'gemma3'; only 'qwen2'"),
        ("llama", {"attention_bias": True}, "llama asks for .* lacks: attention_bias True"),
        ("llama", {"mlp_bias": True}, "mlp_bias True"),
        ("llama", {"num_local_experts": 8}, "num_local_experts 8"),
        ("llama", {"quantization_config": {"bits": 4}}, "quantised weights"),
        ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "'yarn'"),
        ("llama", {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "factor"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
        ("llama", {"num_attention_heads": 0}, "num_attention_heads 0"),
        ("llama", {"head_dim": None, "hidden_size": 34}, "34"),
        ("qwen2", {"num_key_value_heads": None}, "qwen2 lacks num_key_value_heads"),
        ("qwen2", {"layer_types": ["full_attention"]}, "layer"),
        ("qwen2", {"layer_types": ["full_attention", "chunked_attention"]}, "chunked_attention"),
        ("smollm3", {"no_rope_layers": None}, "smollm3 lacks no_rope_layers"),
        ("smollm3", {"no_rope_layers": [1, 0]}, "no_rope_layers of 2 layers, not 3"),
        ("gemma3_text", {"final_logit_softcapping": 30.0}, "final_logit_softcapping 30.0"),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping 50.0"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("gemma3_text", {"hidden_activation": "gelu"}, "hidden_activation 'gelu'"),
        ("gemma3_text", {"sliding_window": None}, "lacks sliding_window"),
        ("gemma3_text", {"rope_parameters": None}, "lacks rope_theta"),
    ],
    ids=str,
)
def test_what_is_not_supported_is_named(name, fields, said):
    given = json.loads((FIXTURES / name / "config.json").read_text())
    assert parse_config(given, "config.json") == read_config(FIXTURES / name)
    with pytest.raises(ValueError, match=said) as caught:
        parse_config(given | fields, "there/config.json")
    assert "there/config.json" in str(caught.value)


def test_tensors_of_another_family_are_listed():
    config = replace(read_config(FIXTURES / "qwen3"), qk_norm=False, family="llama")
    with pytest.raises(ValueError, match="left over: model.layers.0.self_attn.k_norm.weight"):
        load_params(FIXTURES / "qwen3", config)
