"""Folders of models in the hub's layout: where they are, and what their config.json says."""

import json
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedTokenizerBase, Qwen3Config

from memalpha.model import ModelConfig

NEEDED = ("*.json", "*.safetensors", "*.txt", "*.jinja")  # of a hub repository
# Fields of config.json and of ModelConfig.
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


def find_folder(path_or_hub_id: str) -> Path:
    """The folder of a model: the path itself, or a snapshot of a hub repository, downloaded once.

    A hub id may name a revision: "Qwen/Qwen3-4B@main".

    Raises:
        ValueError: neither a folder, nor to be had from the hub or its cache.
    """
    folder = Path(path_or_hub_id).expanduser()
    if folder.is_dir():
        return folder
    name, _, revision = path_or_hub_id.partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=NEEDED))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"model {path_or_hub_id!r}: no such folder, and the hub did not give it ({error})."
            " Give a folder, or download the model where there is a network"
        ) from error


def read_config(folder: str | Path, **choices: Any) -> ModelConfig:
    """The shape of a model from its config.json; `choices` are the fields that are ours to choose:
    dtype, param_dtype, remat, scan_layers, attention, value_head.

    Raises:
        ValueError: no config.json, another architecture, or a feature that the model lacks.
    """
    path = Path(folder) / "config.json"
    try:
        given = json.loads(path.read_text())
        if not isinstance(given, dict):
            raise ValueError(f"a JSON object is expected, not {type(given).__name__}")
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} is no model folder: config.json: {error}") from error
    if given.get("model_type") != "qwen3":
        raise ValueError(
            f"{path}: model_type {given.get('model_type')!r}; only 'qwen3' (dense) can be loaded"
        )
    missing = SIZES.keys() - given.keys() - {"tie_word_embeddings"}
    if "rope_theta" not in given.keys() | (given.get("rope_parameters") or {}).keys():
        missing |= {"rope_theta"}
    if missing:
        raise ValueError(f"{path} lacks {', '.join(sorted(missing))}")
    try:
        config = Qwen3Config.from_dict(given)  # knows the older spellings too
    except (StrictDataclassError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    rope = config.rope_parameters
    unsupported = {
        f"hidden_act {config.hidden_act!r}": config.hidden_act != "silu",
        "attention_bias": config.attention_bias,
        f"rope scaling {rope['rope_type']!r}": rope["rope_type"] != "default",
        "sliding-window attention": set(config.layer_types) != {"full_attention"},
        "quantised weights": given.get("quantization_config") is not None,
    }
    if any(unsupported.values()):
        found = ", ".join(feature for feature, there in unsupported.items() if there)
        raise ValueError(f"{path} asks for what this model lacks: {found}")
    sizes = {ours: getattr(config, hub) for hub, ours in SIZES.items()}
    return ModelConfig(**sizes, rope_theta=float(rope["rope_theta"]), **choices)


def write_config(
    folder: Path,
    config: ModelConfig,
    tokenizer: PreTrainedTokenizerBase | None,
    dtype: str,
    max_positions: int,
) -> None:
    """Writes config.json, in the spelling of the published Qwen3 files, which older readers and
    newer ones know, and the tokenizer."""
    fields = {hub: getattr(config, ours) for hub, ours in SIZES.items()} | {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "max_position_embeddings": max_positions,
        "max_window_layers": config.num_layers,
        "rope_scaling": None,
        "rope_theta": config.rope_theta,
        "sliding_window": None,
        "torch_dtype": dtype,
        "use_cache": True,
        "use_sliding_window": False,
    }
    if tokenizer is not None:
        fields |= {k: getattr(tokenizer, k) for k in ("eos_token_id", "pad_token_id")}
        tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(fields, indent=1, sort_keys=True) + "\n")
