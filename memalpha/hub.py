"""Models in the hub's layout: where they are, and what their config.json says.

A GGUF file can be given wherever a folder can: its metadata are read as the fields of config.json.
Everything that is specific to a model family in the layout of the hub is in the table `FAMILIES`.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    Gemma3TextConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from memalpha import gguf
from memalpha.gguf_file import read_header
from memalpha.model import ModelConfig
from memalpha.model_config import RopeScaling
from memalpha.models import find_file
from memalpha.paths import user_path
from memalpha.tokenizer import stop_ids

NEEDED = ("*.json", "*.safetensors", "*.txt", "*.jinja")  # files to download from the hub
# Field of config.json -> field of ModelConfig.
SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
    "head_dim": "head_dim",
    "intermediate_size": "mlp_size",
    "rms_norm_eps": "rms_eps",
    "tie_word_embeddings": "tie_embeddings",
}
CHOICES = (
    "dtype",
    "param_dtype",
    "remat",
    "scan_layers",
    "attention",
    "value_head",
)  # not stated by the hub
ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}  # the hub's name -> ours
# Fields of config.json in the order of the fields of RopeScaling.
LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
# Features that the decoder does not have; they must be false, null, zero or absent.
LACKED = (
    "attention_bias",
    "mlp_bias",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "use_bidirectional_attention",
    "rope_interleaved",
    "num_experts",
    "num_local_experts",
)
# Our name of a module -> the hub's, where they differ.
NAMES = {
    "attention": "self_attn",
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "embed": "embed_tokens",
}


@dataclass(frozen=True)
class Family:
    """A model_type of the hub: its classes in `transformers`, and the settings of our decoder.

    hub: its config class. switches: fields of ModelConfig. optional: sizes that its config.json may
    leave out, because `hub` derives them. own: fields that only this family has and that must be
    stated. activation: the name of the field with the activation. names: our module names -> the
    hub's.
    """

    hub: type[PreTrainedConfig]
    architecture: str
    switches: Mapping[str, Any]
    optional: tuple[str, ...] = ()
    own: tuple[str, ...] = ()
    activation: str = "hidden_act"
    names: Mapping[str, str] = field(default_factory=lambda: NAMES)


FAMILIES = {
    "qwen2": Family(
        Qwen2Config, "Qwen2ForCausalLM", dict(qk_norm=False, qkv_bias=True), optional=("head_dim",)
    ),
    "qwen3": Family(Qwen3Config, "Qwen3ForCausalLM", {}),
    "llama": Family(
        LlamaConfig,
        "LlamaForCausalLM",
        dict(qk_norm=False),
        optional=("head_dim", "num_key_value_heads", "rope_theta"),
    ),
    "smollm3": Family(
        SmolLM3Config,
        "SmolLM3ForCausalLM",
        dict(qk_norm=False),
        optional=("head_dim",),
        own=("no_rope_layers",),
    ),
    "gemma3_text": Family(
        Gemma3TextConfig,
        "Gemma3ForCausalLM",
        dict(post_norms=True, norm_plus_one=True, scale_embedding=True),
        own=("query_pre_attn_scalar", "sliding_window"),
        activation="hidden_activation",
        names=NAMES
        | {
            "attention_post_norm": "post_attention_layernorm",
            "mlp_norm": "pre_feedforward_layernorm",
            "mlp_post_norm": "post_feedforward_layernorm",
        },
    ),
}


def find_folder(path_or_hub_id: str) -> Path:
    """The local folder or GGUF file of a model: the path itself, or a download, which is cached: a
    snapshot of a hub repository, or a model of `models`, such as "smollm2".

    A hub id may have a revision: "Qwen/Qwen3-4B@main".

    Raises:
        ValueError: no such folder or GGUF file, and the hub and its cache do not have it either.
    """
    folder = user_path(path_or_hub_id)
    if folder.is_dir():
        return folder
    if (file := find_file(path_or_hub_id)) is not None:
        return read_header(file).path
    name, _, revision = path_or_hub_id.partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=NEEDED))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"model {path_or_hub_id!r}: no such folder, and the hub did not give it ({error})."
            " Give a folder or a GGUF file, or download the model where there is a network"
        ) from error


def read_config(folder: str | Path, **choices: Any) -> ModelConfig:
    """The configuration of a model from its config.json or GGUF file. `choices` are the fields that
    the files do not determine: dtype, param_dtype, remat, scan_layers, attention, value_head.

    Raises:
        ValueError: no config.json, an unknown architecture, or an unsupported feature.
    """
    return parse_config(*read_fields(folder), **choices)


def read_fields(folder: str | Path) -> tuple[dict[str, Any], Path]:
    """The fields of config.json, and the file they were read from: config.json or the GGUF file.

    Raises:
        ValueError: no config.json, or a GGUF file that cannot be read.
    """
    if gguf.is_gguf(folder):
        return gguf.read_config(folder), Path(folder)
    path = Path(folder) / "config.json"
    try:
        given = json.loads(path.read_text())
        if not isinstance(given, dict):
            raise ValueError(f"a JSON object is expected, not {type(given).__name__}")
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} is no model folder: config.json: {error}") from error
    return given, path


def parse_config(given: Mapping[str, Any], path: str | Path, **choices: Any) -> ModelConfig:
    """`read_config` from the fields of config.json; `path`: their file, for error messages."""
    name = given.get("model_type")
    family = FAMILIES.get(name)
    if family is None:
        known = ", ".join(map(repr, FAMILIES))
        raise ValueError(f"{path}: model_type {name!r}; only {known} (dense) can be loaded")
    if missing := _missing(given, family):
        raise ValueError(f"{path}: {name} lacks {', '.join(sorted(missing))}")
    sizes = {key: given.get(key) for key in SIZES.keys() - {"tie_word_embeddings"}}
    if low := [k for k, x in sizes.items() if isinstance(x, int | float) and not x > 0]:
        values = ", ".join(f"{k} {sizes[k]!r}" for k in sorted(low))
        raise ValueError(f"{path}: {name}: {values}: more than 0 is needed")
    try:
        config = family.hub.from_dict(dict(given))  # knows the older spellings too
    except (StrictDataclassError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: {name}: {error}") from error
    if lacked := _lacked(given, config, family):
        raise ValueError(f"{path}: {name} asks for what this model lacks: {', '.join(lacked)}")
    heads, width = config.num_attention_heads, config.hidden_size
    config.head_dim = getattr(config, "head_dim", None) or width // heads
    rope, local = _rope(config)
    own = {key: getattr(config, key) for key in family.own}
    windowed = _numbers(kind == "sliding_attention" for kind in _layer_types(config))
    return ModelConfig(
        **{ours: getattr(config, hub) for hub, ours in SIZES.items()},
        **family.switches,
        family=name,
        max_positions=config.max_position_embeddings,
        activation=ACTIVATIONS[getattr(config, family.activation)],
        rope_theta=float(rope["rope_theta"]),
        rope_scaling=_scaling(rope),
        query_pre_attn_scalar=own.get("query_pre_attn_scalar"),
        no_rope_layers=_numbers(not on for on in own.get("no_rope_layers", ())),
        window=getattr(config, "sliding_window", None) or 0,
        window_layers=windowed,
        window_rope_theta=float(local["rope_theta"]) if local and windowed else None,
        **choices,
    )


def _numbers(flags: Iterable[bool]) -> tuple[int, ...]:
    return tuple(i for i, on in enumerate(flags) if on)


def _scaling(rope: Mapping[str, Any]) -> RopeScaling | None:
    if rope["rope_type"] == "default":
        return None
    factor, low, high, original = (rope[key] for key in LLAMA3)
    return RopeScaling(float(factor), float(low), float(high), int(original))


def _missing(given: Mapping[str, Any], family: Family) -> set[str]:
    """Required fields that config.json does not state and that would have to be guessed."""
    rope = given.get("rope_parameters")
    if isinstance(rope, dict) and "sliding_window" in family.own:
        rope = rope.get("full_attention")
    stated = {k for k, value in given.items() if value is not None}
    stated |= {"rope_theta"} if isinstance(rope, dict) and "rope_theta" in rope else set()
    needed = SIZES.keys() - {"tie_word_embeddings"} | {"rope_theta", *family.own}
    return needed - set(family.optional) - stated


def _layer_types(config: PreTrainedConfig) -> list[str]:
    return getattr(config, "layer_types", None) or []


def _rope(config: PreTrainedConfig) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Rotary parameters of the layers, and those of layers with a window; None: the same."""
    rope = config.rope_parameters
    if "full_attention" in rope:
        return rope["full_attention"], rope.get("sliding_attention")
    return rope, None


def _lacked(given: Mapping[str, Any], config: PreTrainedConfig, family: Family) -> list[str]:
    """Features of a config that the decoder does not support, each with its value."""
    act, ropes = getattr(config, family.activation), [r for r in _rope(config) if r]
    types, layers = _layer_types(config), config.num_hidden_layers
    windowed = "sliding_attention" in types
    window = config.sliding_window if windowed else None
    lacked = {f"{name} {given.get(name)!r}": bool(given.get(name)) for name in LACKED}
    lacked |= {
        f"{family.activation} {act!r}": act not in ACTIVATIONS,
        f"layer_types {sorted(set(types))}": not set(types)
        <= {"full_attention", "sliding_attention"},
        f"sliding-window attention with sliding_window {window!r}": windowed
        and (not window or given.get("use_sliding_window") is False),
        "quantised weights (quantization_config)": given.get("quantization_config") is not None,
    }
    for rope, known in zip(ropes, (("default", "llama3"), ("default",)), strict=False):
        kind, part = rope.get("rope_type"), rope.get("partial_rotary_factor", 1)
        lacked[f"rope scaling {kind!r}"] = kind not in known
        lacked[f"partial_rotary_factor {part!r}"] = part != 1
    if not getattr(config, "head_dim", None):
        width, heads = config.hidden_size, config.num_attention_heads
        lacked[f"hidden_size {width} in {heads} heads"] = bool(width % heads)
    for name in {"layer_types", "no_rope_layers"} & vars(config).keys():
        count = len(getattr(config, name))
        lacked[f"{name} of {count} layers, not {layers}"] = count != layers
    return [feature for feature, there in lacked.items() if there]


def write_config(
    folder: Path,
    config: ModelConfig,
    tokenizer: PreTrainedTokenizerBase | None,
    dtype: str,
    stops: Sequence[int] = (),
) -> None:
    """Writes config.json and the tokenizer, and in generation_config.json the ids that end a reply:
    those of `tokenizer.stop_ids`, where `stops` are the ones that the model states. Field names
    are those of the published files of the family, which `transformers` of any age reads.

    Raises:
        ValueError: the model has settings that its family cannot express.
    """
    stated = _fields(config) | {
        "max_position_embeddings": config.max_positions,
        "torch_dtype": dtype,
    }
    ours = {name: getattr(config, name) for name in CHOICES}
    back = replace(parse_config(stated, folder / "config.json", **ours), max_positions=0)
    if back != replace(config, max_positions=0):
        names = (f.name for f in fields(config))
        unlike = [n for n in names if getattr(config, n) != getattr(back, n)]
        values = ", ".join(f"{n} {getattr(config, n)!r}" for n in unlike if n != "max_positions")
        raise ValueError(f"{folder}: a model of family {config.family!r} cannot have {values}")
    # Written as null without a tokenizer: `transformers` would otherwise assume default ids.
    special = ("bos_token_id", "eos_token_id", "pad_token_id")
    stated |= {name: getattr(tokenizer, name, None) for name in special}
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
        ends = {name: stated[name] for name in special} | {
            "eos_token_id": stop_ids(tokenizer, stops)
        }
        _write_json(folder / "generation_config.json", ends)
    _write_json(folder / "config.json", stated)


def _write_json(path: Path, stated: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(stated, indent=1, sort_keys=True) + "\n")


def _fields(config: ModelConfig) -> dict[str, Any]:
    """The fields of config.json, without the context length and the dtype of the weights."""
    family, layers, scaling = FAMILIES[config.family], range(config.num_layers), config.rope_scaling
    acts = {ours: hub for hub, ours in ACTIVATIONS.items()}
    stated = {hub: getattr(config, ours) for hub, ours in SIZES.items()} | {
        "architectures": [family.architecture],
        "model_type": config.family,
        "attention_bias": False,
        "attention_dropout": 0.0,
        family.activation: acts[config.activation],
        "initializer_range": 0.02,
        "max_window_layers": config.num_layers,
        "rope_scaling": scaling
        and {"rope_type": "llama3", **dict(zip(LLAMA3, scaling, strict=True))},
        "rope_theta": config.rope_theta,
        "sliding_window": config.window or None,
        "use_cache": True,
        "use_sliding_window": bool(config.window),
    }
    if config.window:
        kinds = ("full_attention", "sliding_attention")
        stated["layer_types"] = [kinds[i in config.window_layers] for i in layers]
    if config.window_rope_theta is not None:
        stated["rope_local_base_freq"] = config.window_rope_theta
    if "no_rope_layers" in family.own:
        stated["no_rope_layers"] = [int(i not in config.no_rope_layers) for i in layers]
    if "query_pre_attn_scalar" in family.own:
        stated["query_pre_attn_scalar"] = config.query_pre_attn_scalar
    return stated
