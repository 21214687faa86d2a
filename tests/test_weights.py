"""Weights in and out: golden logits of `transformers`, round trips, and files that do not fit."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import huggingface_hub.constants
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from configs import tiny
from experiments.lib.checks import check
from experiments.lib.objects import build_model
from memalpha import lora, weights
from memalpha.hub import find_folder, read_config
from memalpha.model import Transformer, init_params, logits
from memalpha.tokenizer import load_tokenizer
from memalpha.weights import export, load_params

FIXTURES = Path(__file__).parent / "fixtures"
GOLDEN = [FIXTURES / "qwen3_tied", FIXTURES / "qwen3_untied"]
TIED, UNTIED = GOLDEN
# The published shapes, and the parameters that they should come to.
PUBLISHED = {
    "0.6B": (1024, 28, 16, 3072, True, 596_049_920),
    "4B": (2560, 36, 32, 9728, True, 4_022_468_096),
    "8B": (4096, 36, 32, 12288, False, 8_190_735_360),
    "32B": (5120, 64, 64, 25600, False, 32_762_123_264),
}
ROPE = "rope_parameters"


def published(name):
    """config.json in the spelling of the published files."""
    width, layers, heads, mlp, tied, _ = PUBLISHED[name]
    return {
        **{"model_type": "qwen3", "vocab_size": 151_936, "hidden_size": width},
        **{"num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": 8},
        **{"head_dim": 128, "intermediate_size": mlp, "rms_norm_eps": 1e-6, "rope_theta": 1000000},
        **{"rope_scaling": None, "tie_word_embeddings": tied, "hidden_act": "silu"},
        **{"use_sliding_window": False, "sliding_window": None, "max_window_layers": layers},
        **{"attention_bias": False, "torch_dtype": "bfloat16", "transformers_version": "4.51.0"},
    }


@partial(jax.jit, static_argnames="config")
def apply(params, tokens, mask, config):
    positions = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
    hidden, _ = Transformer(config).apply({"params": params}, tokens, positions, mask)
    return logits(params, hidden, config)


def our_logits(folder, tokens, mask, **choices):
    config = read_config(folder, **choices)
    params = load_params(folder, config)
    return np.asarray(apply(params, jnp.asarray(tokens), jnp.asarray(mask), config))


def kl(p_logits, q_logits):
    p, q = jax.nn.log_softmax(p_logits), jax.nn.log_softmax(q_logits)
    return jnp.sum(jnp.exp(p) * (p - q), axis=-1)


def copied(folder, tmp_path):
    target = tmp_path / "model"
    shutil.copytree(folder, target)
    return target


def edit(folder, **fields):
    path = folder / "config.json"
    config = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({k: v for k, v in config.items() if v != "remove"}))


def rewrite(folder, change):
    """The tensors of a folder, changed, in one file."""
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
        path.unlink()
    (folder / weights.INDEX).unlink(missing_ok=True)
    change(tensors)
    save_file(tensors, folder / weights.SINGLE)


def same(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.mark.parametrize("folder", GOLDEN, ids=lambda f: f.name)
@pytest.mark.parametrize("attention", ["blocks", "xla"])
def test_logits_are_those_of_transformers(folder, attention):
    golden = np.load(folder / "expected.npz")
    tokens, mask = golden["tokens"], golden["mask"]
    ours = our_logits(folder, tokens, mask, attention=attention)
    assert np.abs(ours - golden["float32"])[mask].max() <= 1e-4
    half = {"dtype": "bfloat16", "param_dtype": "bfloat16"}
    ours = our_logits(folder, tokens, mask, attention=attention, **half)
    for reference in ("float32", "bfloat16"):
        assert kl(golden[reference], ours)[mask].max() <= 0.015


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_parameters_have_the_dtype_of_the_config(dtype):
    params = load_params(TIED, read_config(TIED, param_dtype=dtype))
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype(dtype)}
    exact = load_params(TIED, read_config(TIED))
    same(params, jax.tree.map(lambda x: x.astype(dtype), exact))


def test_a_critic_starts_at_zero():
    params = load_params(TIED, read_config(TIED, value_head=True))
    assert params["value_head"]["kernel"].shape == (32, 1)
    assert not params["value_head"]["kernel"].any()


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs(tmp_path, name):
    (tmp_path / "config.json").write_text(json.dumps(published(name)))
    config = read_config(tmp_path, dtype="bfloat16", remat="full")
    assert (config.rope_theta, config.dtype, config.remat) == (1e6, "bfloat16", "full")
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    assert sum(x.size for x in jax.tree.leaves(shapes)) == PUBLISHED[name][-1]


def test_both_spellings_of_rope_are_read(tmp_path):
    folder = copied(UNTIED, tmp_path)
    edit(folder, **{ROPE: "remove"}, rope_theta=1e4, rope_scaling=None)
    assert read_config(folder) == read_config(UNTIED)
    assert read_config(folder).rope_theta == 1e4


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"model_type": "mistral"}, "model_type 'mistral'; only 'qwen2', 'qwen3'"),
        ({"model_type": "qwen3_moe"}, "model_type 'qwen3_moe'"),
        ({"attention_bias": True}, "lacks: attention_bias"),
        ({"hidden_act": "gelu"}, "lacks: hidden_act 'gelu'"),
        (
            {ROPE: {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e6}},
            "rope scaling 'linear'",
        ),
        (
            {ROPE: "remove", "rope_theta": 1e6, "rope_scaling": {"type": "linear", "factor": 2.0}},
            "rope scaling 'linear'",
        ),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding-window attention"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantised weights"),
        ({ROPE: "remove", "head_dim": "remove"}, "lacks head_dim, rope_theta"),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"num_key_value_heads": 3}, "num_kv_heads 3"),
    ],
)
def test_configs_that_cannot_be_loaded(tmp_path, fields, said):
    folder = copied(TIED, tmp_path)
    edit(folder, **fields)
    with pytest.raises(ValueError, match=said):
        read_config(folder)


def test_no_model_folder(tmp_path):
    with pytest.raises(ValueError, match="is no model folder"):
        read_config(tmp_path)
    for text in ('{"model_type": ', "[]", "null"):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match="is no model folder"):
            read_config(tmp_path)


def test_a_hub_id_without_network(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for name in ("nobody/nothing-4B", "nobody/nothing-4B@main", "not/there/at/all"):
        with pytest.raises(ValueError, match=f"model '{name}': no such folder, and the hub"):
            find_folder(name)
    assert find_folder(str(TIED)) == TIED


def test_a_hub_id_may_name_a_revision(monkeypatch):
    calls = []
    monkeypatch.setattr(
        "memalpha.hub.snapshot_download",
        lambda name, revision, allow_patterns: calls.append((name, revision)) or str(TIED),
    )
    assert find_folder("nobody/nothing-4B@v2") == find_folder("nobody/nothing-4B") == TIED
    assert calls == [("nobody/nothing-4B", "v2"), ("nobody/nothing-4B", None)]


def test_all_that_does_not_fit_is_listed_at_once(tmp_path):
    folder = copied(UNTIED, tmp_path)

    def change(tensors):
        tensors["model.layers.1.mlp.gate.weight"] = tensors.pop("model.layers.1.mlp.up_proj.weight")
        del tensors["lm_head.weight"]
        tensors["model.norm.weight"] = np.ones(7, np.float32)
        name = "model.layers.0.self_attn.q_proj.weight"
        tensors[name] = tensors[name].astype(np.int8)

    rewrite(folder, change)
    with pytest.raises(ValueError) as caught:
        load_params(folder, read_config(folder))
    text = str(caught.value)
    assert str(folder) in text
    assert "missing: lm_head.weight, model.layers.1.mlp.up_proj.weight\n" in text
    assert "left over: model.layers.1.mlp.gate.weight\n" in text
    assert "model.norm.weight [7] F32, expected [24]" in text
    assert "model.layers.0.self_attn.q_proj.weight [72, 24] I8, expected [72, 24]" in text


def test_a_config_with_fewer_layers_leaves_tensors_over(tmp_path):
    folder = copied(TIED, tmp_path)
    edit(folder, num_hidden_layers=1, layer_types=["full_attention"])
    with pytest.raises(ValueError, match="missing: none\n  left over: model.layers.1.input_lay"):
        load_params(folder, read_config(folder))


def test_a_tied_model_stored_with_its_embedding_twice(tmp_path):
    folder = copied(TIED, tmp_path)
    twice = lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].copy()})
    rewrite(folder, twice)
    same(load_params(folder, read_config(folder)), load_params(TIED, read_config(TIED)))
    rewrite(folder, lambda tensors: tensors["lm_head.weight"].__setitem__((60, 31), 9.0))
    with pytest.raises(ValueError, match="lm_head.weight differs from the embedding"):
        load_params(folder, read_config(folder))
    edit(folder, tie_word_embeddings=False)
    assert load_params(folder, read_config(folder))["lm_head"]["kernel"][31, 60] == 9.0


@pytest.mark.parametrize("size", [0, 5, 3000, -1])
def test_a_file_that_was_cut_off(tmp_path, size):
    folder = copied(TIED, tmp_path)
    path = folder / weights.SINGLE
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"model\.safetensors \(\d+ bytes\) is damaged or cut off"):
        load_params(folder, read_config(folder))


def test_files_that_are_not_there(tmp_path):
    folder = copied(UNTIED, tmp_path)
    config = read_config(folder)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ValueError, match="lacks model-00002-of-00003.safetensors: download"):
        load_params(folder, config)
    for text in ("{}", "[]", '{"weight_map": {"lm_head.weight": 3}}'):
        (folder / weights.INDEX).write_text(text)
        with pytest.raises(ValueError, match="is no index of weights"):
            load_params(folder, config)
    (folder / weights.INDEX).unlink()
    with pytest.raises(ValueError, match="lacks model.safetensors"):
        load_params(folder, config)


@pytest.mark.parametrize("folder", GOLDEN, ids=lambda f: f.name)
@pytest.mark.parametrize("limit", [5 * 10**9, 9000])
def test_export_then_import_is_identical(tmp_path, folder, limit):
    kind = "bfloat16" if folder == UNTIED else "float32"  # that of the files
    config = read_config(folder, param_dtype=kind)
    params = load_params(folder, config)
    out = export(params, config, tmp_path / "a" / "out", max_shard_bytes=limit)
    assert len(list(out.glob("*.safetensors"))) == (1 if limit > 10**9 else pytest.approx(9, abs=5))
    assert (out / weights.INDEX).exists() == (limit == 9000)
    assert read_config(out, param_dtype=kind) == config
    same(load_params(out, config), params)
    written, original = ({}, {})
    for tensors, where in ((written, out), (original, folder)):
        for path in where.glob("*.safetensors"):
            tensors |= load_file(path)
    same(written, original)  # names and bytes
    assert [p.name for p in out.parent.iterdir()] == ["out"]  # nothing left aside


def test_export_casts_and_leaves_the_critic_out(tmp_path):
    config = read_config(TIED, value_head=True)
    out = export(load_params(TIED, config), config, tmp_path / "out", dtype="bfloat16")
    tensors = load_file(out / weights.SINGLE)
    assert {x.dtype for x in tensors.values()} == {jnp.dtype("bfloat16")}
    assert not any("value" in name for name in tensors)
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_export_with_a_tokenizer(tmp_path, micro):
    params = init_params(micro.model, jax.random.key(0))
    out = export(params, micro.model, tmp_path / "out", micro.tokenizer)
    tokenizer = load_tokenizer(str(out))
    text = "On 2024-01-05 Ann met Bob.\n<tool_call>\n naïve 東京 12345"
    assert tokenizer.encode(text) == micro.tokenizer.encode(text)
    assert tokenizer.eos_token_id == micro.tokenizer.eos_token_id
    assert json.loads((out / "config.json").read_text())["eos_token_id"] == tokenizer.eos_token_id


def test_exports_that_are_refused(tmp_path, micro):
    config = read_config(TIED)
    params = load_params(TIED, config)
    export(params, config, tmp_path / "out")
    with pytest.raises(ValueError, match="out exists already"):
        export(params, config, tmp_path / "out")
    with pytest.raises(ValueError, match="tokens, the model 61"):
        export(params, config, tmp_path / "new", micro.tokenizer)
    untied = replace(config, tie_embeddings=False)
    with pytest.raises(ValueError, match=r"lm_head/kernel absent, expected \(32, 61\)"):
        export(params, untied, tmp_path / "new")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_an_export_that_fails_half_way_leaves_no_folder(tmp_path, monkeypatch):
    config = read_config(TIED)
    params = load_params(TIED, config)
    calls = []

    def full(tensors, path, metadata):
        calls.append(path)
        if len(calls) == 3:
            raise OSError("No space left on device")
        save_file(tensors, path, metadata)

    with monkeypatch.context() as patch:
        patch.setattr(weights, "save_file", full)
        with pytest.raises(OSError, match="No space"):
            export(params, config, tmp_path / "out", max_shard_bytes=9000)
    assert not (tmp_path / "out").exists()
    same(load_params(export(params, config, tmp_path / "out"), config), params)


SHARDED = """
import sys, numpy as np, jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from safetensors.numpy import load_file
from memalpha import weights
from memalpha.hub import read_config

folder, out = sys.argv[1:]
mesh = Mesh(np.array(jax.devices()).reshape(2, 2), ("fsdp", "tensor"))
seen = []
def sharding(path):
    seen.append(path)
    spec = P("fsdp", "tensor") if path.endswith("kernel") else P(None, "fsdp")
    return NamedSharding(mesh, P() if path.endswith("scale") else spec)

read = []
class Slice:
    def __init__(self, inner): self.inner = inner
    def __getattr__(self, name): return getattr(self.inner, name)
    def __getitem__(self, index):
        piece = self.inner[index]
        read.append(piece.size)
        return piece

open_files = weights._open
weights._open = lambda *a: {k: Slice(v) for k, v in open_files(*a).items()}
config = read_config(folder)
params = weights.load_params(folder, config, sharding)
plain = weights.load_params(folder, config)
for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(plain), strict=True):
    assert np.array_equal(a, b)
kernel = params["layers_0"]["mlp"]["up_proj"]["kernel"]
assert {s.data.shape for s in kernel.addressable_shards} == {(16, 20)}
assert "layers_0/mlp/up_proj/kernel" in seen and len(seen) == len(jax.tree.leaves(params))
assert 16 * 20 in read  # a quarter of the matrix at a time
weights.export(params, config, out)
ours, theirs = load_file(out + "/model.safetensors"), load_file(folder + "/model.safetensors")
assert ours.keys() == theirs.keys() and all(np.array_equal(ours[k], theirs[k]) for k in ours)
print("four devices")
"""


def test_every_device_gets_its_own_slice(tmp_path):
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "PYTHONPATH": "."}
    result = subprocess.run(
        [sys.executable, "-c", SHARDED, str(TIED), str(tmp_path / "out")],
        cwd=FIXTURES.parent.parent,
        env=os.environ | flags,
        capture_output=True,
        text=True,
    )
    assert result.stdout == "four devices\n", result.stderr[-3000:]


@pytest.mark.parametrize("tied", [True, False])
def test_live_transformers(tmp_path, tied):
    """Both ways against an installed torch: random weights in, and our weights out."""
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(3)
    sizes = dict(vocab_size=71, hidden_size=20, intermediate_size=28, num_hidden_layers=3)
    heads = dict(num_attention_heads=6, num_key_value_heads=2, head_dim=10)
    kwargs = sizes | heads | dict(tie_word_embeddings=tied, initializer_range=0.2)
    theirs = Qwen3ForCausalLM(Qwen3Config(**kwargs)).eval()
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="10KB")
    tokens = np.random.default_rng(0).integers(0, 71, (2, 19))
    mask = np.ones(tokens.shape, bool)

    def their_logits(model):
        with torch.no_grad():
            return model(torch.tensor(tokens)).logits.numpy()

    ours = our_logits(tmp_path / "theirs", tokens, mask)
    assert np.abs(ours - their_logits(theirs)).max() <= 1e-4
    config = read_config(tmp_path / "theirs")
    base, adapters = load_params(tmp_path / "theirs", config), lora.LoraConfig(rank=4)
    trained = jax.tree.map(lambda x: x + 0.3, lora.init(base, adapters, jax.random.key(0)))
    merged = lora.merge(trained, base, adapters)
    out = export(merged, config, tmp_path / "ours", max_shard_bytes=10_000)
    model, info = AutoModelForCausalLM.from_pretrained(
        out, dtype=torch.float32, output_loading_info=True
    )
    assert not any(info.values()), info
    difference = their_logits(model.eval()) - our_logits(out, tokens, mask)
    assert np.abs(difference).max() <= 1e-4
    with_adapters = their_logits(model) - apply(
        lora.attach(trained, base, adapters), jnp.asarray(tokens), jnp.asarray(mask), config
    )
    assert np.abs(with_adapters).max() <= 1e-4  # unmerged
    assert np.abs(their_logits(model) - their_logits(theirs)).max() > 0.1  # it is another model


def test_a_tokenizer_of_another_model_is_refused(micro, tmp_path):
    small = replace(micro.model, vocab_size=50)
    start = export(init_params(small, jax.random.key(0)), small, tmp_path / "m")
    config = tiny.get_config(f"model.path={start}")
    check(config)
    with pytest.raises(ValueError, match="tokens, but the model in .* only 50"):
        build_model(config, len(micro.tokenizer))


@pytest.mark.parametrize("path, said", [("nobody/nothing", "no such folder"), (".", "config.json")])
def test_a_model_that_is_not_there_is_an_error_before_any_work(monkeypatch, path, said):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=said):
        check(tiny.get_config(f"model.path={path}"))
