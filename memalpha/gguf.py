"""Models in GGUF files, in the hub's terms: the fields of config.json, and tensors by name.

Tensors are dequantised one at a time by the `gguf` package, and only the rows that are requested.
Two changes of llama.cpp's conversion (github.com/ggml-org/llama.cpp, conversion/) are reverted: the
order of the rows of q and k, and the 1 that is added to the scales of Gemma's norms.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from gguf import quants

from memalpha.gguf_file import Header, Stored, read_header
from memalpha.paths import user_path

# Module names within a layer: in GGUF -> in the hub.
_ATTENTION = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
}
_MLP = {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
_LAYER = _ATTENTION | _MLP | {"ffn_norm": "post_attention_layernorm"}
_HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_FOUR_NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_QKV = ("attn_q", "attn_k", "attn_v")
_ROPE_FACTORS = "rope_freqs.weight"
# Llama 3: a frequency with fewer turns than low_freq_factor within the original context is scaled,
# one with more than high_freq_factor is not, and those between are interpolated.
_LLAMA3 = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@dataclass(frozen=True)
class Architecture:
    """How GGUF files of one architecture differ from the hub's files of `model_type`.

    layer: module names within a layer. biases: modules with a bias. interleaved: the rows of q and
    k alternate between the two halves of a head, as the rotary embedding of llama.cpp pairs them.
    norm_shift: the constant that the file adds to the scales of norms.
    """

    model_type: str
    class_name: str
    layer: Mapping[str, str] = field(default_factory=lambda: _LAYER)
    biases: tuple[str, ...] = ()
    interleaved: bool = False
    norm_shift: float = 0.0


ARCHITECTURES = {
    "llama": Architecture("llama", "LlamaForCausalLM", interleaved=True),
    "smollm3": Architecture("smollm3", "SmolLM3ForCausalLM", interleaved=True),
    "qwen2": Architecture("qwen2", "Qwen2ForCausalLM", biases=_QKV),
    "qwen3": Architecture("qwen3", "Qwen3ForCausalLM", _LAYER | _HEAD_NORMS),
    "gemma3": Architecture(
        "gemma3_text",
        "Gemma3ForCausalLM",
        _ATTENTION | _MLP | _HEAD_NORMS | _FOUR_NORMS,
        norm_shift=1.0,
    ),
}


def is_gguf(path: str | Path) -> bool:
    """Whether a path is taken for a GGUF file: it ends in .gguf, or it is a file and no folder."""
    path = user_path(path)
    return path.suffix.lower() == ".gguf" and not path.is_dir() or path.is_file()


def read_config(path: str | Path) -> dict[str, Any]:
    """The fields that the config.json of this model has in the hub.

    Raises:
        ValueError: see `gguf_file.read_header`; an unknown architecture, or metadata that are
            missing or impossible for it.
    """
    header = read_header(path)
    kind = _architecture(header)
    heads, width = _number(header, "attention.head_count"), _number(header, "embedding_length")
    head_dim = _get(header, "attention.key_length", width // heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        if _get(header, key, head_dim) != head_dim:
            raise ValueError(
                f"{header.path}: {key} is {_get(header, key)}, but heads are {head_dim} wide: such"
                " models cannot be loaded"
            )
    layers = _number(header, "block_count")
    if layers > len(header.tensors):  # checked before anything is built per layer
        raise ValueError(
            f"{header.path}: block_count is {layers}, but there are {len(header.tensors)} tensors"
        )
    if "token_embd.weight" not in header.tensors:
        raise ValueError(f"{header.path} has no tensor token_embd.weight: it holds no whole model")
    config = {
        "architectures": [kind.class_name],
        "model_type": kind.model_type,
        "vocab_size": header.tensors["token_embd.weight"].shape[0],
        "hidden_size": width,
        "intermediate_size": _number(header, "feed_forward_length"),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": _number(header, "attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": _number(header, "context_length"),
        "rms_norm_eps": _decimal(_get(header, "attention.layer_norm_rms_epsilon", 1e-6)),
        "rope_theta": _decimal(_get(header, "rope.freq_base", 10_000.0)),
        "rope_scaling": _rope_scaling(header, head_dim),
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "attention_bias": not kind.biases and "blk.0.attn_q.bias" in header.tensors,
    }
    if kind.model_type == "gemma3_text":
        return config | _gemma_fields(header, config)
    config |= {"hidden_act": "silu", "use_sliding_window": False, "sliding_window": None}
    if kind.model_type == "smollm3":  # every fourth layer has no rotary embedding
        rotated = [int(number % 4 > 0) for number in range(1, layers + 1)]
        config |= {"no_rope_layer_interval": 4, "no_rope_layers": rotated}
    return config


def _gemma_fields(header: Header, config: dict[str, Any]) -> dict[str, Any]:
    # Only the largest published model, with 62 layers, does not scale queries by head_dim.
    largest = config["num_hidden_layers"] == 62
    scalar = config["hidden_size"] // config["num_attention_heads"]
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": scalar if largest else config["head_dim"],
        "rope_theta": _decimal(_get(header, "rope.freq_base", 1e6)),
        "rope_local_base_freq": _decimal(_get(header, "rope.freq_base_swa", 10_000.0)),
        "sliding_window": _number(header, "attention.sliding_window"),
        "sliding_window_pattern": _number(header, "attention.sliding_window_pattern", 6),
        "attn_logit_softcapping": None,
        "final_logit_softcapping": _get(header, "final_logit_softcapping"),
    }


def _architecture(header: Header) -> Architecture:
    name = header.metadata.get("general.architecture")
    if name not in ARCHITECTURES:
        raise ValueError(
            f"{header.path}: architecture {name!r}; only {', '.join(ARCHITECTURES)} can be loaded"
        )
    if _get(header, "expert_count", 0):
        raise ValueError(f"{header.path}: a mixture of experts; only dense models can be loaded")
    return ARCHITECTURES[name]


def _get(header: Header, key: str, default: Any = None) -> Any:
    """A metadata field without its prefix: "block_count" reads llama.block_count."""
    return header.metadata.get(f"{header.metadata['general.architecture']}.{key}", default)


def _number(header: Header, key: str, default: int | None = None) -> int:
    value = _get(header, key, default)
    if isinstance(value, list) and len(set(value)) == 1:
        value = value[0]
    if not isinstance(value, int) or value < 1:
        name = f"{header.metadata['general.architecture']}.{key}"
        raise ValueError(f"{header.path}: {name} is {value}; one number above 0 is expected")
    return value


def _decimal(value: float) -> float:
    """The shortest decimal with the same float32 value: 1e-05 for 9.99999974e-06."""
    return float(str(np.float32(value)))


def _rope_scaling(header: Header, head_dim: int) -> dict[str, Any] | None:
    """`rope_scaling` of config.json; for Llama 3 from a tensor of divisors of the frequencies."""
    stored = header.tensors.get(_ROPE_FACTORS)
    if stored is None:
        kind = _get(header, "rope.scaling.type", "none")
        factor = _get(header, "rope.scaling.factor", 1.0)
        return None if kind == "none" else {"rope_type": kind, "factor": _decimal(factor)}
    factors = Tensor(header.path, stored)[:]
    half, theta = head_dim // 2, _get(header, "rope.freq_base", 10_000.0)
    turns = _LLAMA3["original_max_position_embeddings"] / (2 * np.pi)
    turns = turns * theta ** (-np.arange(half) / half)
    low, high = _LLAMA3["low_freq_factor"], _LLAMA3["high_freq_factor"]
    unscaled = np.clip((turns - low) / (high - low), 0.0, 1.0)
    factor = float(np.round(factors.max(), 3))
    expected = 1.0 / (unscaled + (1.0 - unscaled) / factor)
    if factors.shape != expected.shape or not np.allclose(factors, expected, rtol=1e-3):
        raise ValueError(
            f"{header.path}: {_ROPE_FACTORS} is not the scaling of Llama 3; others cannot be loaded"
        )
    return {"rope_type": "llama3", "factor": factor, **_LLAMA3}


@dataclass(frozen=True)
class Tensor:
    """A tensor that is read and dequantised to float32 when it is indexed; it has the methods of a
    `safetensors` slice.

    heads: the number of heads whose interleaved rows are reordered; 0: none. shift: the constant
    that the file adds to the values.
    """

    path: Path
    stored: Stored
    heads: int = 0
    shift: float = 0.0

    def get_shape(self) -> list[int]:
        return list(self.stored.shape)

    def get_dtype(self) -> str:
        return "F32"

    def __getitem__(self, index: slice | tuple[slice, ...]) -> np.ndarray:
        """Only the rows that the first slice selects are read from the file."""
        first, *rest = index if isinstance(index, tuple) else (index,)
        stored = self.stored
        lines = np.memmap(self.path, np.uint8, "r", stored.offset, stored.end - stored.offset)
        if len(stored.shape) == 1:
            return quants.dequantize(np.array(lines), stored.kind)[first] - np.float32(self.shift)
        lines = lines.reshape(stored.shape[0], -1)
        rows = _interleaved_rows(len(lines), self.heads)[first] if self.heads else first
        return _dequantize(np.array(lines[rows]), stored)[(slice(None), *rest)]


def _dequantize(lines: np.ndarray, stored: Stored) -> np.ndarray:
    """Rows of bytes to [rows, ...] float32. The package works on 16 rows at a time, which is slow
    for short rows, so several rows are passed to it as one."""
    together = math.gcd(len(lines), 16)
    values = quants.dequantize(lines.reshape(len(lines) // together, -1), stored.kind)
    return values.reshape(len(lines), *stored.shape[1:]).astype(np.float32, copy=False)


def _interleaved_rows(count: int, heads: int) -> np.ndarray:
    """[count] the positions in the file of the rows of q or k: pair i of a head is in rows 2i and
    2i + 1 there, and in rows i and i + half in the hub."""
    rows = np.arange(count).reshape(heads, -1, 2)
    return rows.swapaxes(1, 2).reshape(count)


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """All tensors of the model by their hub names; only the header is read.

    Raises:
        ValueError: see `read_config`; missing or unexpected tensors, listed by their GGUF names.
    """
    header, config = read_header(path), read_config(path)
    kind, names = _architecture(header), _names(header)
    missing = names.keys() - header.tensors.keys()
    extra = header.tensors.keys() - names.keys() - {_ROPE_FACTORS}
    if missing or extra:
        raise ValueError(
            f"{header.path}: the tensors are not those of {config['num_hidden_layers']} layers of"
            f" {kind.model_type}: missing {_some(missing)}; left over {_some(extra)}"
        )
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    tensors = {}
    for name, hub in names.items():
        part = name.split(".")[-2]
        tensors[hub] = Tensor(
            header.path,
            header.tensors[name],
            heads.get(part, 0) if kind.interleaved else 0,
            kind.norm_shift if part.endswith("norm") else 0.0,
        )
    return tensors


def _names(header: Header) -> dict[str, str]:
    """Name in the file -> name in the hub, for all tensors."""
    kind = _architecture(header)
    names = {
        "token_embd.weight": "model.embed_tokens.weight",
        "output_norm.weight": "model.norm.weight",
    }
    if "output.weight" in header.tensors:
        names["output.weight"] = "lm_head.weight"
    for i in range(_number(header, "block_count")):
        for ours, hub in kind.layer.items():
            names[f"blk.{i}.{ours}.weight"] = f"model.layers.{i}.{hub}.weight"
        for ours in kind.biases:
            names[f"blk.{i}.{ours}.bias"] = f"model.layers.{i}.{kind.layer[ours]}.bias"
    return names


def _some(names: set[str], limit: int = 8) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(sorted(names)[:limit]) + more or "none"
