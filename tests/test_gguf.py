"""GGUF files: config and tensors in the hub's terms, each type, and files that are refused."""

from functools import partial

import gguf
import jax
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from gguf_files import (
    K_BLOCKS,
    QUANTISED,
    SIZES,
    TOKENIZER,
    interleave,
    llama,
    llama_tensors,
    random_blocks,
    write,
)
from safetensors.numpy import load_file

from memalpha.gguf import Tensor, is_gguf, read_config, read_tensors
from memalpha.gguf_file import SUPPORTED, read_header
from memalpha.hub import parse_config
from memalpha.hub import read_config as hub_config
from memalpha.model import init_params
from memalpha.weights import export, load_params

FEW = {f"x{i}.weight": np.zeros(1) for i in range(62)}
FEW |= {"token_embd.weight": np.zeros((11, 32)), "output.weight": np.zeros((11, 32))}


def config(path, architecture, fields=(), tensors=FEW):
    return read_config(write(path, architecture, SIZES | dict(fields), tensors))


def test_the_fields_of_a_llama(tmp_path):
    path = llama(tmp_path / "m.gguf", {"attention.layer_norm_rms_epsilon": 1e-5})
    assert read_config(path) == {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 261,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "rope_scaling": None,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "hidden_act": "silu",
        "use_sliding_window": False,
        "sliding_window": None,
    }


def test_fields_that_other_architectures_have(tmp_path):
    other = config(tmp_path / "q.gguf", "qwen3", {"attention.key_length": 16})
    assert (other["model_type"], other["head_dim"]) == ("qwen3", 16)
    assert other["tie_word_embeddings"] is False
    other = config(tmp_path / "s.gguf", "smollm3", {"block_count": 5})
    assert (other["model_type"], other["no_rope_layers"]) == ("smollm3", [1, 1, 1, 0, 1])
    fields = {"attention.key_length": 24, "attention.sliding_window": 512, "block_count": 26}
    other = config(tmp_path / "g.gguf", "gemma3", fields)
    assert other["model_type"] == "gemma3_text" and "hidden_act" not in other
    assert (other["query_pre_attn_scalar"], other["sliding_window"]) == (24, 512)
    assert (other["rope_theta"], other["rope_local_base_freq"]) == (1e6, 1e4)
    other = config(tmp_path / "h.gguf", "gemma3", fields | {"block_count": 62})
    assert other["query_pre_attn_scalar"] == 32 // 4


def llama3_factors(factor, half=8, theta=5e5):
    """As the conversion works them out, wave by wave."""
    factors = []
    for i in range(half):
        wavelength = 2 * np.pi * theta ** (i / half)
        if wavelength < 8192 / 4:
            factors.append(1.0)
        elif wavelength > 8192:
            factors.append(factor)
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors)


def test_the_scaling_of_llama_3_comes_from_its_tensor(tmp_path):
    fields = {"rope.freq_base": 5e5, "attention.key_length": 16}
    factors = {"rope_freqs.weight": llama3_factors(32.0)}
    got = config(tmp_path / "m.gguf", "llama", fields, FEW | factors)
    assert got["rope_scaling"] == {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    factors["rope_freqs.weight"][3] *= 1.5
    with pytest.raises(ValueError, match="rope_freqs.weight is not the scaling of Llama 3"):
        config(tmp_path / "n.gguf", "llama", fields, FEW | factors)
    fields = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}
    other = config(tmp_path / "o.gguf", "qwen2", fields)
    assert other["rope_scaling"] == {"rope_type": "yarn", "factor": 4.0}


def test_rows_of_q_and_k_are_put_back_in_order(tmp_path):
    tensors, expected = read_tensors(llama(tmp_path / "m.gguf")), llama_tensors()
    names = {"attn_q": "q_proj", "attn_k": "k_proj", "attn_v": "v_proj", "attn_output": "o_proj"}
    for ours, hub in names.items():
        got = tensors[f"model.layers.1.self_attn.{hub}.weight"]
        full = expected[f"blk.1.{ours}.weight"]
        assert got.get_shape() == list(full.shape) and got.get_dtype() == "F32"
        assert np.array_equal(got[:], full)
        assert np.array_equal(got[3:9, 5:7], full[3:9, 5:7])
        assert np.array_equal(got[:, 4:], full[:, 4:])
    assert not np.array_equal(interleave(full, 4), full)
    assert np.array_equal(tensors["model.norm.weight"][2:5], expected["output_norm.weight"][2:5])
    assert "lm_head.weight" not in tensors and len(tensors) == len(expected)


def test_other_architectures_keep_the_order_and_gemma_loses_its_one(tmp_path):
    stored = llama_tensors()
    for i in range(2):
        stored |= {
            f"blk.{i}.attn_{n}.bias": np.arange(s) for n, s in zip("qkv", (32, 16, 16), strict=True)
        }
    tensors = read_tensors(write(tmp_path / "q.gguf", "qwen2", SIZES, stored))
    q = tensors["model.layers.0.self_attn.q_proj.weight"][:]
    assert np.array_equal(q, stored["blk.0.attn_q.weight"])
    assert tensors["model.layers.1.self_attn.k_proj.bias"][3:5].tolist() == [3, 4]

    stored = llama_tensors()
    for i in range(2):
        for norm in ("attn_q_norm", "attn_k_norm", "post_attention_norm", "post_ffw_norm"):
            stored[f"blk.{i}.{norm}.weight"] = np.full(8, 1.25)
    fields = SIZES | {"attention.sliding_window": 16}
    tensors = read_tensors(write(tmp_path / "g.gguf", "gemma3", fields, stored))
    layer = "model.layers.1."
    assert tensors[layer + "self_attn.q_norm.weight"][:].tolist() == [0.25] * 8
    assert tensors[layer + "post_attention_layernorm.weight"][:].tolist() == [0.25] * 8
    norm, embedding = stored["blk.1.ffn_norm.weight"], stored["token_embd.weight"]
    got = tensors[layer + "pre_feedforward_layernorm.weight"]
    assert np.array_equal(got[:], norm - 1)
    assert np.array_equal(tensors["model.embed_tokens.weight"][:], embedding)


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
FAMILIES = {  # model_type of the hub -> architecture of the file, and its own fields of both
    "llama": (
        "llama",
        {
            "rope_theta": 5e5,
            "rope_scaling": LLAMA3 | {"original_max_position_embeddings": 8192},
            "tie_word_embeddings": False,
        },
        {"rope.freq_base": 5e5, "attention.key_length": 16},
    ),
    "qwen2": ("qwen2", {"rope_theta": 1e6, "head_dim": 8}, {"rope.freq_base": 1e6}),
    "qwen3": (
        "qwen3",
        {"rope_theta": 1e6, "tie_word_embeddings": True},
        {"rope.freq_base": 1e6, "attention.key_length": 16},
    ),
    "smollm3": (
        "smollm3",
        {"rope_theta": 2e6, "no_rope_layers": [1] * 3 + [0, 1, 1, 1], "head_dim": 8},
        {"rope.freq_base": 2e6},
    ),
    "gemma3_text": (
        "gemma3",
        {
            **{"rope_theta": 1e6, "rope_local_base_freq": 1e4, "query_pre_attn_scalar": 16},
            **{"sliding_window": 12, "hidden_activation": "gelu_pytorch_tanh"},
        },
        {"attention.key_length": 16, "attention.sliding_window": 12, "rope.freq_base": 1e6},
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_and_its_conversion_are_the_same_model(tmp_path, family):
    """Written as llama.cpp would, with the names of the `gguf` package; each family of the hub."""
    architecture, hub, ours = FAMILIES[family]
    given = {
        **{"model_type": family, "vocab_size": 11, "hidden_size": 32, "num_hidden_layers": 7},
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16},
        **{"intermediate_size": 48, "rms_norm_eps": 1e-6, "max_position_embeddings": 64, **hub},
    }
    config = parse_config(given, "config.json")
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)
    folder = export(params, config, tmp_path / "folder")
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture.upper()], 7)
    stored = {}
    for name, x in load_file(folder / "model.safetensors").items():
        for part, heads in (("q_proj.weight", 4), ("k_proj.weight", 2)):
            if part in name and family in ("llama", "smollm3"):
                x = interleave(x, heads)
        if "norm" in name and family == "gemma3_text":
            x = x + 1
        stored[table.get_name(name, (".weight", ".bias"))] = x
    if family == "llama":
        stored["rope_freqs.weight"] = llama3_factors(8.0)
    fields = {"block_count": 7, "feed_forward_length": 48, "context_length": 64}
    path = write(tmp_path / "m.gguf", architecture, SIZES | fields | ours, stored)
    assert hub_config(path) == hub_config(folder) == config
    close = partial(np.testing.assert_allclose, rtol=0, atol=2e-7 * (family == "gemma3_text"))
    jax.tree.map(close, load_params(path, config), params)


@pytest.mark.parametrize("kind", SUPPORTED)
def test_each_type_is_dequantised_as_by_the_package(tmp_path, kind):
    """Values and slices against the package's own reader, which shares no code with ours."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(33, 512)).astype(np.float32)  # an odd number of rows
    stored = random_blocks(kind, 33, 512) if kind in K_BLOCKS else x
    path = write(tmp_path / "m.gguf", "llama", {}, {"x.weight": stored}, None, {"x.weight": kind})
    (reference,) = gguf.GGUFReader(path).tensors
    assert reference.tensor_type == Kind[kind]
    full = gguf.quants.dequantize(reference.data, reference.tensor_type)
    assert full.shape == (33, 512) and np.isfinite(full).all() and full.std() > 0.01
    tensor = Tensor(path, read_header(path).tensors["x.weight"])
    for index in (
        slice(None),
        slice(5, 21),
        (slice(16, 33), slice(100, 300)),
        (slice(None), slice(7)),
    ):
        got = tensor[index]
        assert got.dtype == np.float32 and np.array_equal(got, full[index])
    if kind not in K_BLOCKS:
        steps = {"F32": 0, "F16": 1e-3, "BF16": 4e-3}.get(kind, 0.5 if kind in QUANTISED else 0)
        assert np.abs(full - x).max() <= steps * np.abs(x).max()


def test_a_block_by_hand(tmp_path):
    """Q8_0: a float16 scale and 32 int8; Q4_1: scale, minimum, and 32 numbers of four bits, the
    first sixteen in the lower halves."""
    eight = np.concatenate(
        [np.float16([0.5]).view(np.uint8), np.arange(-16, 16, dtype=np.int8).view(np.uint8)]
    )
    four = np.concatenate([np.float16([2, -1]).view(np.uint8), np.full(16, 0x3A, np.uint8)])
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("eight", eight[None], raw_dtype=Kind.Q8_0)
    writer.add_tensor("four", four[None], raw_dtype=Kind.Q4_1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    header = read_header(tmp_path / "m.gguf")
    got = Tensor(header.path, header.tensors["eight"])[:]
    assert got.tolist() == [[x / 2 for x in range(-16, 16)]]
    got = Tensor(header.path, header.tensors["four"])[:]
    assert got.tolist() == [[2 * 10 - 1] * 16 + [2 * 3 - 1] * 16]


def test_a_file_that_is_cut_off_is_refused_wherever_it_is_cut(tmp_path):
    whole = llama(tmp_path / "m.gguf").read_bytes()
    for size in [*range(4, 5000, 97), len(whole) // 2, len(whole) - 40]:
        path = tmp_path / f"cut{size}.gguf"
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=rf"cut{size}.gguf is cut off.* {size:,} bytes"):
            read_tensors(path)


def test_files_that_are_damaged_end_in_an_error_that_names_them(tmp_path):
    whole, rng = llama(tmp_path / "m.gguf").read_bytes(), np.random.default_rng(0)
    path = tmp_path / "bad.gguf"
    for at in rng.integers(4, 2000, 200):
        path.write_bytes(
            whole[:at] + bytes([whole[at] ^ int(rng.integers(1, 256))]) + whole[at + 1 :]
        )
        try:
            read_tensors(path)
        except ValueError as error:
            assert "bad.gguf" in str(error)


@pytest.mark.parametrize(
    "fields, tensors, message",
    [
        ({"split.count": 3, "split.no": 1}, {}, r"part 2 of 3: join .*llama-gguf-split --merge"),
        ({"general.type": "adapter"}, {}, "is no model: its general.type is 'adapter'"),
        ({"expert_count": 8}, {}, "mixture of experts; only dense"),
        ({"attention.value_length": 4}, {}, "attention.value_length is 4, but heads are 8 wide"),
        ({"rope.dimension_count": 4}, {}, "rope.dimension_count is 4, but heads are 8 wide"),
        ({"attention.head_count_kv": [2, 1]}, {}, r"head_count_kv is \[2, 1\]; one number"),
        ({"block_count": 0}, {}, "llama.block_count is 0; one number"),
        ({"block_count": 2**31}, {}, "block_count is 2147483648, but there are 20 tensors"),
        ({"block_count": 3}, {}, r"3 layers of llama: missing blk\.2\.attn_k.* and 1 more; left"),
        ({"block_count": 1}, {}, r"missing none; left over blk\.1\.attn_k"),
        ({}, {"blk.0.attn_q.bias": np.zeros(32)}, r"missing none; left over blk.0.attn_q.bias"),
    ],
)
def test_files_that_are_refused_by_name(tmp_path, fields, tensors, message):
    path = llama(tmp_path / "m.gguf", fields, tensors)
    with pytest.raises(ValueError, match=f"m.gguf.*{message}"):
        read_tensors(path)


def test_foreign_files_are_refused_by_name(tmp_path):
    path = tmp_path / "m.gguf"
    with pytest.raises(ValueError, match="m.gguf: no such file"):
        read_config(path)
    path.write_bytes(b"PK\x03\x04 a zip file")
    with pytest.raises(ValueError, match="m.gguf is no GGUF file"):
        read_config(path)
    path.write_bytes(b"GGUF\x00\x00\x00\x03" + bytes(100))  # big-endian
    with pytest.raises(ValueError, match="GGUF version 50331648; only little-endian"):
        read_config(path)
    write(path, "mamba", SIZES, FEW)
    with pytest.raises(ValueError, match="architecture 'mamba'; only llama, smollm3, qwen2"):
        read_config(path)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("x.weight", np.zeros((2, 84), np.uint8), raw_dtype=Kind.Q2_K)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ValueError, match="tensor x.weight is stored as Q2_K; supported are F32"):
        read_config(path)


def test_a_path_is_known_by_its_ending_or_because_it_is_a_file(tmp_path):
    (tmp_path / "folder.gguf").mkdir()
    (tmp_path / "blob").write_bytes(b"GGUF")
    given = ["~/m.GGUF", tmp_path / "blob", tmp_path / "folder.gguf", tmp_path, "smollm2", "a/b@c"]
    assert [is_gguf(path) for path in given] == [True, True, False, False, False, False]


def test_the_header_is_read_anew_when_the_file_changes(tmp_path):
    path = llama(tmp_path / "m.gguf")
    assert read_config(path)["max_position_embeddings"] == 128
    llama(path, {"context_length": 4096}, tokenizer=TOKENIZER | {"eos_token_id": 1})
    assert read_config(path)["max_position_embeddings"] == 4096
