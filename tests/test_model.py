"""The decoder against an independent numpy one, and against itself: cached, padded, chunked."""

import dataclasses
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memalpha.model import (
    ModelConfig,
    Transformer,
    grow,
    head_logps,
    init_params,
    logits,
    values,
)

CONFIG = ModelConfig(
    vocab_size=37,
    hidden_size=24,
    num_layers=2,
    num_heads=6,
    num_kv_heads=2,
    head_dim=8,
    mlp_size=29,
    rope_theta=1e4,
)
TILT = np.arange(24)  # an uneven weight on the width: the norm alone would give no gradient


def strong_params(config, seed=0):
    """Parameters far from small initial values, norm scales included."""
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: jnp.asarray((x.ndim == 1) + 0.2 * rng.standard_normal(x.shape), x.dtype), shapes
    )


@partial(jax.jit, static_argnames=("config", "last"))
def forward(params, tokens, positions, mask, cache, config, last):
    return Transformer(config).apply({"params": params}, tokens, positions, mask, cache, last)


def run(params, tokens, mask=None, config=CONFIG, cache=None, positions=None, last=None):
    tokens = np.asarray(tokens)
    mask = np.ones(tokens.shape, bool) if mask is None else np.asarray(mask)
    if positions is None:
        positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    return forward(params, tokens, positions, mask, cache, config, last)


def numpy_qwen3(params, tokens, config):
    """Qwen3 for one unpadded sequence, head by head and position by position, in float64."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    group = config.num_heads // config.num_kv_heads
    h = config.head_dim

    def norm(x, scale):
        return x / np.sqrt((x**2).mean() + config.rms_eps) * scale

    def rope(x, position):
        out = np.empty_like(x)
        for i in range(h // 2):
            angle = position / config.rope_theta ** (2 * i / h)
            a, b = x[i], x[i + h // 2]
            out[i] = a * np.cos(angle) - b * np.sin(angle)
            out[i + h // 2] = b * np.cos(angle) + a * np.sin(angle)
        return out

    xs = [p["embed"]["embedding"][t].copy() for t in tokens]
    for n in range(config.num_layers):
        w = p[f"layers_{n}"]
        att = w["attention"]
        normed = [norm(x, w["attention_norm"]["scale"]) for x in xs]

        def heads(name, count, normed=normed, att=att):
            return [(x @ att[name]["kernel"]).reshape(count, h) for x in normed]

        q = heads("q_proj", config.num_heads)
        k = heads("k_proj", config.num_kv_heads)
        v = heads("v_proj", config.num_kv_heads)
        for i in range(len(tokens)):
            q[i] = np.stack([rope(norm(x, att["q_norm"]["scale"]), i) for x in q[i]])
            k[i] = np.stack([rope(norm(x, att["k_norm"]["scale"]), i) for x in k[i]])
        for i in range(len(tokens)):
            mixed = []
            for head in range(config.num_heads):
                kv = head // group
                score = np.array([q[i][head] @ k[j][kv] / np.sqrt(h) for j in range(i + 1)])
                weight = np.exp(score - score.max())
                weight /= weight.sum()
                mixed.append(sum(weight[j] * v[j][kv] for j in range(i + 1)))
            xs[i] = xs[i] + np.concatenate(mixed) @ att["o_proj"]["kernel"]
            y = norm(xs[i], w["mlp_norm"]["scale"])
            gate = y @ w["mlp"]["gate_proj"]["kernel"]
            up = y @ w["mlp"]["up_proj"]["kernel"]
            xs[i] = xs[i] + (gate / (1 + np.exp(-gate)) * up) @ w["mlp"]["down_proj"]["kernel"]
    return np.stack([norm(x, p["norm"]["scale"]) for x in xs])


@pytest.mark.parametrize("kv_heads", [1, 2, 6])
def test_matches_an_independent_numpy_qwen3(kv_heads):
    config = dataclasses.replace(CONFIG, num_kv_heads=kv_heads)
    params = strong_params(config)
    tokens = np.random.default_rng(1).integers(0, 37, (2, 11))
    hidden, _ = run(params, tokens, config=config)
    for row in range(2):
        expected = numpy_qwen3(params, tokens[row], config)
        np.testing.assert_allclose(hidden[row], expected, atol=1e-5, rtol=1e-5)


def test_parameter_tree():
    config = dataclasses.replace(CONFIG, tie_embeddings=False, value_head=True)
    params = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    shapes = {
        "/".join(k.key for k in path): leaf.shape
        for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]
    }
    layer = {
        "attention_norm/scale": (24,),
        "attention/q_proj/kernel": (24, 48),
        "attention/k_proj/kernel": (24, 16),
        "attention/v_proj/kernel": (24, 16),
        "attention/o_proj/kernel": (48, 24),
        "attention/q_norm/scale": (8,),
        "attention/k_norm/scale": (8,),
        "mlp_norm/scale": (24,),
        "mlp/gate_proj/kernel": (24, 29),
        "mlp/up_proj/kernel": (24, 29),
        "mlp/down_proj/kernel": (29, 24),
    }
    assert shapes == {f"layers_{i}/{k}": v for i in (0, 1) for k, v in layer.items()} | {
        "embed/embedding": (37, 24),
        "norm/scale": (24,),
        "lm_head/kernel": (24, 37),
        "value_head/kernel": (24, 1),
    }


def test_residual_outputs_start_smaller_with_depth():
    config = dataclasses.replace(CONFIG, hidden_size=256, mlp_size=256, num_layers=8)
    layer = init_params(config, jax.random.key(0))["layers_3"]
    assert np.std(layer["mlp"]["up_proj"]["kernel"]) == pytest.approx(0.02, rel=0.05)
    assert np.std(layer["mlp"]["down_proj"]["kernel"]) == pytest.approx(0.005, rel=0.05)
    assert np.std(layer["attention"]["o_proj"]["kernel"]) == pytest.approx(0.005, rel=0.05)


@pytest.mark.parametrize("attention", ["blocks", "xla"])
@pytest.mark.parametrize("length", [5, 131])  # below one query block; several, the last one ragged
def test_padding_changes_no_hidden_state(attention, length):
    config = dataclasses.replace(CONFIG, attention=attention)
    params = strong_params(config)
    tokens = np.random.default_rng(2).integers(0, 37, (1, length))
    alone, _ = run(params, tokens)
    left, right = 7, 3
    padded = np.pad(tokens, ((0, 0), (left, right)), constant_values=5)
    mask = np.pad(np.ones_like(tokens, bool), ((0, 0), (left, right)))
    hidden, _ = run(params, padded, mask, config=config)
    assert np.isfinite(hidden).all()
    np.testing.assert_allclose(hidden[:, left:-right], alone, atol=2e-5)


def test_later_tokens_change_nothing_before_them():
    params = strong_params(CONFIG)
    tokens = np.random.default_rng(3).integers(0, 37, (1, 150))
    changed = tokens.copy()
    changed[0, 70:] = (changed[0, 70:] + 1) % 37
    a, b = run(params, tokens)[0], run(params, changed)[0]
    np.testing.assert_array_equal(a[:, :70], b[:, :70])
    assert np.abs(a[:, 70:] - b[:, 70:]).max(axis=-1).min() > 1e-3


def test_cached_steps_equal_one_pass():
    params = strong_params(CONFIG)
    tokens = np.random.default_rng(4).integers(0, 37, (3, 13))
    mask = np.ones((3, 13), bool)
    mask[0, :4] = mask[1, :1] = False
    positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    whole, _ = run(params, tokens, mask)
    hidden, cache = run(params, tokens[:, :5], mask[:, :5])
    cache = grow(cache, 17)
    parts = [hidden]
    for begin, end in ((5, 8), (8, 9), (9, 10), (10, 13)):  # several tokens at once, and one by one
        s = slice(begin, end)
        hidden, cache = run(
            params, tokens[:, s], mask[:, s], cache=cache, positions=positions[:, s]
        )
        parts.append(hidden)
    assert int(cache.index) == 13
    joined = np.concatenate(parts, axis=1)
    np.testing.assert_allclose(joined[mask], np.asarray(whole)[mask], atol=2e-5)


def test_last_gives_the_end_of_the_whole():
    params = strong_params(CONFIG)
    tokens = np.random.default_rng(9).integers(0, 37, (2, 90))
    mask = np.arange(90) >= np.array([[0], [31]])
    whole, kept = run(params, tokens, mask)
    for last, attention in ((1, "blocks"), (70, "blocks"), (70, "xla")):
        config = dataclasses.replace(CONFIG, attention=attention)
        hidden, cache = run(params, tokens, mask, config, last=last)
        assert hidden.shape == (2, last, 24)
        np.testing.assert_allclose(hidden[:, -50:], whole[:, -last:][:, -50:], atol=2e-5)
        for row in range(2):  # in the same order, though perhaps not in the same slots
            ours, theirs = (c.k[1][row][..., np.asarray(c.valid[row])] for c in (cache, kept))
            np.testing.assert_allclose(ours, theirs, atol=2e-5)
    past = grow(run(params, tokens[:, :80], mask[:, :80])[1], 90)
    positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    rest, _ = run(params, tokens[:, 80:], mask[:, 80:], CONFIG, past, positions[:, 80:], last=4)
    np.testing.assert_allclose(rest, whole[:, -4:], atol=2e-5)
    with pytest.raises(ValueError, match="last=91"):
        run(params, tokens, last=91)


def test_block_attention_has_the_gradient_of_the_library_one():
    params = strong_params(CONFIG)
    tokens = np.random.default_rng(10).integers(0, 37, (2, 70))
    mask = np.arange(70) >= np.array([[0], [3]])

    def gradient(attention):
        config = dataclasses.replace(CONFIG, attention=attention)

        def loss(p):
            return jnp.mean(run(p, tokens, mask, config)[0] ** 2 * mask[..., None] * TILT)

        return jax.jit(jax.grad(loss))(params)

    a, b = gradient("blocks"), gradient("xla")
    assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(a)) > 1e-2
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-4), a, b)


def test_the_head_in_bfloat16_has_the_gradient_of_float32():
    rng = np.random.default_rng(3)
    hidden = jnp.asarray(rng.normal(size=(2, 9, 24)), jnp.float32)
    targets = rng.integers(0, 37, (2, 9))
    params = strong_params(CONFIG)

    def gradient(dtype):
        config = dataclasses.replace(CONFIG, dtype=dtype)

        def loss(p, h):
            return jnp.sum(head_logps(p, h, targets, config, 1.0, 4)[0])

        return jax.grad(loss, argnums=(0, 1))(params, hidden)

    def close(exact, half):
        assert jnp.linalg.norm(exact - half) <= 0.02 * jnp.linalg.norm(exact)

    jax.tree.map(close, gradient("float32"), gradient("bfloat16"))


def test_grow_refuses_to_shrink():
    _, cache = run(strong_params(CONFIG), np.ones((1, 5), int))
    with pytest.raises(ValueError, match="5 slots"):
        grow(cache, 4)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("chunk", [0, 3, 4, 50])
def test_head_logps_are_the_log_softmax_at_the_target(tied, chunk):
    config = dataclasses.replace(CONFIG, tie_embeddings=tied)
    params = strong_params(config)
    rng = np.random.default_rng(5)
    hidden = jnp.asarray(rng.standard_normal((2, 7, 24)), jnp.float32)
    targets = rng.integers(0, 37, (2, 7))
    head = params["embed"]["embedding"].T if tied else params["lm_head"]["kernel"]
    scores = np.asarray(hidden, np.float64) @ np.asarray(head, np.float64) / 0.7
    full = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
    logps, entropy = head_logps(params, hidden, targets, config, 0.7, chunk)
    expected = np.take_along_axis(full, targets[..., None], -1)[..., 0]
    np.testing.assert_allclose(logps, expected, atol=1e-5)
    np.testing.assert_allclose(entropy, -(np.exp(full) * full).sum(-1), atol=1e-5)


def test_chunked_head_has_the_same_gradient_and_holds_no_whole_logits():
    params = strong_params(CONFIG)
    hidden = jnp.asarray(np.random.default_rng(6).standard_normal((2, 12, 24)), jnp.float32)
    targets = np.random.default_rng(7).integers(0, 37, (2, 12))

    def loss(chunk, params, hidden):
        logps, entropy = head_logps(params, hidden, targets, CONFIG, 1.0, chunk)
        return jnp.sum(logps * jnp.arange(12)) + 0.3 * jnp.sum(entropy)

    whole = jax.jit(jax.grad(partial(loss, 0), (0, 1)))(params, hidden)
    chunked = jax.jit(jax.grad(partial(loss, 5), (0, 1)))(params, hidden)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), whole, chunked)
    program = str(jax.make_jaxpr(jax.grad(partial(loss, 4), (0, 1)))(params, hidden))
    assert "f32[2,4,37]" in program and "f32[2,12,37]" not in program
    assert "f32[3,2,4,37]" not in program  # the chunks of logits are not saved either


@pytest.mark.parametrize("remat", ["full", "dots"])
def test_remat_changes_no_gradient(remat):
    params = strong_params(CONFIG)
    tokens = np.random.default_rng(8).integers(0, 37, (2, 9))

    def gradient(config):
        def loss(p):
            return jnp.mean(run(p, tokens, config=config)[0] ** 2 * TILT)

        return jax.jit(jax.grad(loss))(params)

    a, b = gradient(CONFIG), gradient(dataclasses.replace(CONFIG, remat=remat))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5, rtol=1e-4), a, b)


def test_a_loop_over_the_layers_changes_no_gradient():
    config = dataclasses.replace(CONFIG, num_layers=3, remat="dots")
    params = strong_params(config)
    tokens = np.random.default_rng(8).integers(0, 37, (2, 9))
    positions, mask = np.broadcast_to(np.arange(9), (2, 9)), tokens > 3

    def loss(config, p):
        model = Transformer(config)
        hidden, cache = model.apply({"params": p}, tokens, positions, mask, last=5, keep=False)
        assert cache is None
        return jnp.mean(hidden**2 * TILT)

    loops = [partial(loss, dataclasses.replace(config, scan_layers=on)) for on in (False, True)]
    assert ["scan" in str(jax.make_jaxpr(f)(params)) for f in loops] == [False, True]
    values = [jax.jit(jax.value_and_grad(f))(params) for f in loops]
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5, rtol=1e-4), *values)
    del params["layers_1"]["mlp"]
    with pytest.raises(ValueError, match="scan_layers=False"):
        loops[1](params)


def test_bfloat16_compute_keeps_float32_parameters_and_logits():
    config = dataclasses.replace(CONFIG, dtype="bfloat16")
    fresh = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    assert {x.dtype for x in jax.tree.leaves(fresh)} == {jnp.dtype("float32")}
    params = strong_params(config)
    tokens = np.arange(6)[None]
    hidden, cache = run(params, tokens, config=config)
    assert hidden.dtype == cache.k[0].dtype == jnp.bfloat16
    scores = logits(params, hidden, config)
    assert scores.dtype == jnp.float32
    exact = logits(params, run(params, tokens)[0], CONFIG)
    error = float(jnp.abs(scores - exact).max() / jnp.abs(exact).max())
    assert 1e-5 < error < 0.05  # bfloat16 keeps 8 bits


def test_value_head():
    config = dataclasses.replace(CONFIG, value_head=True)
    params = strong_params(config)
    hidden = np.ones((2, 3, 24), np.float32)
    expected = np.full((2, 3), np.sum(params["value_head"]["kernel"]))
    np.testing.assert_allclose(values(params, hidden), expected, rtol=1e-5)
    with pytest.raises(ValueError, match="value_head=True"):
        values(strong_params(CONFIG), hidden)


@pytest.mark.parametrize(
    "kind, capability, dtype, best",
    [
        ("NVIDIA H200", "9.0", "bfloat16", "cudnn"),
        ("NVIDIA H200", "9.0", "float32", "blocks"),
        ("Tesla T4", "7.5", "bfloat16", "blocks"),
        ("NVIDIA TITAN V", "7.0", "bfloat16", "blocks"),
        ("AMD Instinct MI300X", "gfx942", "bfloat16", "blocks"),
    ],
)
def test_auto_attention_is_flash_where_it_runs(monkeypatch, kind, capability, dtype, best):
    device = SimpleNamespace(platform="gpu", device_kind=kind, compute_capability=capability)
    assert dataclasses.replace(CONFIG, attention="auto").attention == "blocks"  # here
    monkeypatch.setattr(jax, "devices", lambda: [device])
    assert dataclasses.replace(CONFIG, attention="auto", dtype=dtype).attention == best


@pytest.mark.parametrize(
    "change, word",
    [
        ({"num_kv_heads": 4}, "num_kv_heads"),
        ({"head_dim": 7}, "head_dim"),
        ({"remat": "some"}, "remat"),
        ({"attention": "flash"}, "attention"),
        ({"attention": "cudnn", "dtype": "bfloat16"}, "NVIDIA GPU"),
    ],
)
def test_config_errors_name_the_field(change, word):
    with pytest.raises(ValueError, match=word):
        dataclasses.replace(CONFIG, **change)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="one shape"):
        run(strong_params(CONFIG), np.ones((2, 3), int), np.ones((2, 4), bool))


@pytest.mark.parametrize(
    "capability, head_dim, best",
    [("9.0", 256, "cudnn"), ("8.0", 256, "blocks"), ("8.0", 128, "cudnn"), ("9.0", 12, "blocks")],
)
def test_flash_attention_takes_heads_of_its_kernels_alone(monkeypatch, capability, head_dim, best):
    device = SimpleNamespace(platform="gpu", device_kind="NVIDIA X", compute_capability=capability)
    monkeypatch.setattr(jax, "devices", lambda: [device])
    wide = dict(head_dim=head_dim, dtype="bfloat16")
    assert dataclasses.replace(CONFIG, attention="auto", **wide).attention == best
    if best != "cudnn":
        with pytest.raises(ValueError, match=f"head_dim {head_dim}: use 'auto'"):
            dataclasses.replace(CONFIG, attention="cudnn", **wide)
