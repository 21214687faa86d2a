"""Trained adapters as a folder that can be handed on: the layout of PEFT, and our `policy.json`.

`transformers` with `peft` loads the folder onto the base model; `load_policy` loads it as a writer.
The weights carry a fingerprint of the base model, because adapters do nothing sensible on another.
Some folders are part of this package (`SHIPPED`).
"""

import hashlib
import json
import re
import shutil
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from memalpha.dense import LORA
from memalpha.model import Params
from memalpha.models import MODELS
from memalpha.paths import user_path
from memalpha.policy_spec import PolicySpec, write_spec
from memalpha.weights import hub_name

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
FINGERPRINT = "base_fingerprint"  # in the metadata of WEIGHTS
SHIPPED = {"memalpha-smollm2": Path(__file__).parent / "writers" / "memalpha-smollm2"}


def find(path_or_name: str | Path) -> Path:
    """The path itself, which need not exist; where no folder is there, that of a shipped writer."""
    path = user_path(path_or_name)
    return path if path.is_dir() else SHIPPED.get(str(path_or_name), path)


def fingerprint(base: Params) -> str:
    """A SHA-256 of the norms of a model, rounded to bfloat16: the same whatever file or dtype the
    model was read from, another one for another model or a model that was trained on as a whole. A
    model into which adapters were merged keeps it, since they leave the norms alone."""
    flat = flatten_dict(base)
    digest = hashlib.sha256()
    for path in sorted(path for path in flat if path[-1] == "scale"):
        scale = np.asarray(jax.device_get(flat[path])).astype(ml_dtypes.bfloat16)
        digest.update("/".join(path).encode() + scale.tobytes())
    return digest.hexdigest()


def write(
    folder: str | Path, adapters: Params, base: Params, spec: PolicySpec, dtype: str = "float16"
) -> Path:
    """Writes adapters as a folder, atomically: WEIGHTS, CONFIG and `policy.json`.

    Raises:
        ValueError: the folder exists, or the run trained the whole model.
    """
    folder = user_path(folder).absolute()
    if folder.exists():
        raise ValueError(f"export: {folder} exists already; remove it or choose another")
    if not spec.lora.rank:
        raise ValueError("export: the run trained the whole model and has no adapters")
    aside = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    tensors = {
        _peft_name(path, spec): np.ascontiguousarray(np.asarray(x).T.astype(dtype))
        for path, x in flatten_dict(adapters).items()
        if path[-1] in LORA
    }
    metadata = {"format": "pt", FINGERPRINT: fingerprint(base)}
    save_file(tensors, aside / WEIGHTS, metadata=metadata)
    modules = sorted({name.split(".")[-3] for name in tensors})
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": MODELS[spec.base].hub_id if spec.base in MODELS else spec.base,
        "r": spec.lora.rank,
        "lora_alpha": spec.lora.alpha,
        "target_modules": modules,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }
    (aside / CONFIG).write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    write_spec(aside, spec)
    aside.rename(folder)
    return folder


def read(folder: Path, base: Params, spec: PolicySpec) -> Params:
    """The adapters of a folder in float32, for `lora.merge`.

    Raises:
        ValueError: a damaged file, other tensors than `spec` says, or another base model.
    """
    path = folder / WEIGHTS
    try:
        with safe_open(path, "np") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged or cut off: {error}") from error
    ours, wanted = fingerprint(base), metadata.get(FINGERPRINT)
    if wanted != ours:
        raise ValueError(
            f"{folder}: its adapters are for another model than {spec.base} (fingerprint"
            f" {str(wanted)[:12]}, not {ours[:12]}): they need the revision they were trained on"
        )
    adapters = {}
    for keys, kernel in flatten_dict(base).items():
        chosen = keys[0].startswith("layers_") and keys[-1] == "kernel"
        if not chosen or not re.search(spec.lora.layers, "/".join(keys[:-1])):
            continue
        shapes = ((kernel.shape[0], spec.lora.rank), (spec.lora.rank, kernel.shape[1]))
        for part, shape in zip(LORA, shapes, strict=True):
            name = _peft_name((*keys[:-1], part), spec)
            if name not in tensors:
                raise ValueError(f"{path} lacks {name}")
            tensor = tensors.pop(name).T.astype(np.float32)
            if tensor.shape != shape:
                raise ValueError(
                    f"{path}: {name} has shape {tensor.shape[::-1]}, not {shape[::-1]}"
                )
            adapters[*keys[:-1], part] = jax.numpy.asarray(tensor)
    if tensors:
        raise ValueError(f"{path}: {len(tensors)} tensors too many, such as {min(tensors)}")
    return unflatten_dict(adapters)


def _peft_name(path: tuple[str, ...], spec: PolicySpec) -> str:
    """("layers_0", "mlp", "up_proj", "lora_a") -> "base_model.model.model.layers.0.mlp.up_proj
    .lora_A.weight" """
    base = hub_name((*path[:-1], "kernel"), spec.model).removesuffix(".weight")
    return f"base_model.model.{base}.{'lora_A' if path[-1] == LORA[0] else 'lora_B'}.weight"
