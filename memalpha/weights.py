"""Weights of pretrained models: Hugging Face safetensors or GGUF to our parameters, and back.

Tensors are read one at a time, and only the slices that are placed on the devices of this process,
so that neither the host nor a single device ever holds the whole model. Names and shapes are
checked from the headers of the files before the first tensor is read.
"""

from __future__ import annotations

import ctypes
import json
import math
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from huggingface_hub import split_state_dict_into_shards_factory
from jax.experimental import multihost_utils
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from transformers import PreTrainedTokenizerBase

from memalpha import gguf
from memalpha.hub import FAMILIES, write_config
from memalpha.model import ModelConfig, Params, init_params
from memalpha.paths import user_path
from memalpha.sharding import device_memory

Sharding = jax.sharding.Sharding
Keys = tuple[str, ...]  # the path of a parameter in our tree

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
FLOATS = ("F32", "F16", "BF16")


class Tensor(Protocol):
    """A tensor of a file in the hub's layout; data is read only when it is indexed."""

    def get_shape(self) -> list[int]: ...

    def get_dtype(self) -> str: ...  # has to be one of FLOATS

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray: ...


def trim_memory() -> None:
    """Gives freed memory back to the system where the C library keeps it (glibc): after a model was
    loaded and merged, as much as the model takes."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)


def load_params(
    folder: str | Path, config: ModelConfig, sharding: Callable[[str], Sharding] | None = None
) -> Params:
    """Parameters in `config.param_dtype` from a GGUF file or the safetensors files of a folder.

    sharding: path of a parameter ("layers_0/mlp/up_proj/kernel") -> its sharding; None: everything
      on the first device. The files have no value head, so it starts at zero.

    Raises:
        ValueError: a file is missing or damaged; the tensors do not match the config (lists the
            missing and unexpected ones and wrong shapes or types); or a device has too little
            memory.
    """
    if gguf.is_gguf(folder):
        return read_params(gguf.read_tensors(folder), folder, config, sharding)
    with ExitStack() as opened:
        return read_params(_open(Path(folder), opened), folder, config, sharding)


def read_params(
    tensors: Mapping[str, Tensor],
    source: str | Path,
    config: ModelConfig,
    sharding: Callable[[str], Sharding] | None = None,
) -> Params:
    """`load_params` from tensors by their hub names; `source`: their file, for error messages."""
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shapes = _shapes(config)
    _check(source, tensors, shapes, config)
    places = {path: sharding("/".join(path)) if sharding else here for path in shapes}
    _check_room(source, shapes, places)
    params = {}
    for path, shape in shapes.items():
        tensor = tensors.get(hub_name(path, config))
        if tensor is None:
            tensor = np.zeros(shape.shape[::-1])  # the value head
        params[path] = _put(tensor, _is_transposed(path), shape, places[path])
    return unflatten_dict(params)


def hub_name(path: Keys, config: ModelConfig) -> str:
    """("layers_0", "attention", "q_proj", "kernel") -> "model.layers.0.self_attn.q_proj.weight"."""
    names = FAMILIES[config.family].names
    parts = [names.get(part, part.replace("layers_", "layers.")) for part in path[:-1]]
    base = [] if path[0].endswith("_head") else ["model"]
    return ".".join([*base, *parts, "bias" if path[-1] == "bias" else "weight"])


def _is_transposed(path: Keys) -> bool:
    """Linear layers are [out, in] in the files and [in, out] here; embeddings are the same."""
    return path[-1] == "kernel"


def _shapes(config: ModelConfig) -> dict[Keys, jax.ShapeDtypeStruct]:
    return flatten_dict(jax.eval_shape(lambda: init_params(config, jax.random.key(0))))


def _open(folder: Path, opened: ExitStack) -> dict[str, Tensor]:
    """All tensors of the files by name, as slices that are read only when indexed."""
    files = [SINGLE]
    if (folder / INDEX).exists():
        try:
            files = sorted(set(json.loads((folder / INDEX).read_text())["weight_map"].values()))
            if unlike := [name for name in files if not isinstance(name, str)]:
                raise TypeError(f"{unlike[0]!r} is no file name")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{folder / INDEX} is no index of weights: {error!r}") from error
    absent = [name for name in files if not (folder / name).exists()]
    if absent:
        raise ValueError(f"{folder} lacks {', '.join(absent)}: download the model again")
    tensors = {}
    for name in files:
        try:
            file = opened.enter_context(safe_open(folder / name, "np"))
        except (SafetensorError, OSError) as error:
            size = (folder / name).stat().st_size
            raise ValueError(
                f"{folder / name} ({size} bytes) is damaged or cut off: {error}. Download it again"
            ) from error
        tensors |= {tensor: file.get_slice(tensor) for tensor in file.keys()}
    return tensors


def _check(source: str | Path, tensors: Mapping[str, Tensor], shapes, config: ModelConfig) -> None:
    expected = {
        hub_name(path, config): list(shape.shape[::-1] if _is_transposed(path) else shape.shape)
        for path, shape in shapes.items()
        if path[0] != "value_head"
    }
    missing = expected.keys() - tensors.keys()
    # Old Llama files also store the rotary frequencies, which follow from config.json.
    extra = {n for n in tensors if n not in expected and not n.endswith("rotary_emb.inv_freq")}
    if config.tie_embeddings and "lm_head.weight" in extra and not missing:
        # Some tied models are stored with the embedding twice.
        extra -= {"lm_head.weight"}
        if not _equal(tensors["lm_head.weight"], tensors["model.embed_tokens.weight"]):
            raise ValueError(
                f"{source}: lm_head.weight differs from the embedding, but config.json says"
                " tie_word_embeddings; set that to false to use both"
            )
    wrong = [
        f"{name} {tensors[name].get_shape()} {tensors[name].get_dtype()}, expected {shape}"
        for name, shape in expected.items()
        if name in tensors
        and (tensors[name].get_shape() != shape or tensors[name].get_dtype() not in FLOATS)
    ]
    if missing or extra or wrong:
        raise ValueError(
            f"{source}: the tensors are not those of config.json\n  missing: {_some(missing)}\n"
            f"  left over: {_some(extra)}\n  wrong shape or kind: {_some(wrong)}"
        )


def _check_room(source: str | Path, shapes, places: Mapping[Keys, Sharding]) -> None:
    """Raises ValueError where a device cannot hold its shard of the parameters."""
    needed: Counter[jax.Device] = Counter()
    for path, shape in shapes.items():
        part = math.prod(places[path].shard_shape(shape.shape)) * shape.dtype.itemsize
        needed.update({device: part for device in places[path].addressable_devices})
    for device, size in needed.items():
        if size > (capacity := device_memory(device)):
            dtype = next(iter(shapes.values())).dtype
            raise ValueError(
                f"{source}: its parameters in {dtype} need {size / 1e9:.2f} GB of {device}, which"
                f" has {capacity / 1e9:.2f} GB: take a smaller model or dtype, or cut it over more"
                " devices"
            )


def _some(names, limit: int = 20) -> str:
    names = sorted(names)
    more = f", and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more or "none"


def _equal(a: Tensor, b: Tensor, rows: int = 8192) -> bool:
    """Whether two tensors are equal; compares a block of rows at a time."""
    if a.get_shape() != b.get_shape():
        return False
    count = a.get_shape()[0]
    blocks = (slice(i, min(i + rows, count)) for i in range(0, count, rows))
    return all(np.array_equal(a[block], b[block]) for block in blocks)


def _put(
    source: Tensor, transposed: bool, shape: jax.ShapeDtypeStruct, place: Sharding
) -> jax.Array:
    """The sharded array of a tensor; the slice of each device is read and converted separately."""

    def read(index: tuple[slice, ...]) -> np.ndarray:
        piece = source[index[::-1] if transposed else index].astype(shape.dtype)
        return piece.T if transposed else piece

    return jax.make_array_from_callback(shape.shape, place, read)


def export(
    params: Params,
    config: ModelConfig,
    folder: str | Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
    dtype: str | None = None,
    max_shard_bytes: int = 5 * 10**9,
    stops: Sequence[int] = (),
) -> Path:
    """Writes a folder in the format of `transformers`: config.json, safetensors and, if given, the
    tokenizer. A value head is left out, because the format has none.

    The folder is written atomically. The host holds one file shard at a time. With several
    processes all of them must call this; the first one writes.

    Args:
        dtype: of the weights in the files; None: that of `params`.
        max_shard_bytes: the largest size of a file, unless one tensor is larger.
        stops: token ids that end a reply, beside those that the tokenizer names.

    Raises:
        ValueError: the folder exists, the parameters do not match the config, the tokenizer has
            more tokens than the model, or the family cannot express the config.
    """
    folder = user_path(folder).absolute()
    flat, shapes = flatten_dict(params), _shapes(config)
    if folder.exists():
        raise ValueError(f"export: {folder} exists already; remove it or choose another")
    if {p: x.shape for p, x in flat.items()} != {p: x.shape for p, x in shapes.items()}:
        unlike = [
            f"{'/'.join(p)} {getattr(flat.get(p), 'shape', 'absent')}, expected"
            f" {getattr(shapes.get(p), 'shape', 'absent')}"
            for p in flat.keys() | shapes.keys()
            if p not in flat or p not in shapes or flat[p].shape != shapes[p].shape
        ]
        raise ValueError(f"export: parameters are not those of the config: {_some(unlike)}")
    if tokenizer is not None and len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"export: the tokenizer has {len(tokenizer)} tokens, the model {config.vocab_size}"
        )
    dtype = np.dtype(dtype or jax.tree.leaves(params)[0].dtype)
    tensors = {hub_name(p, config): (p, x) for p, x in flat.items() if p[0] != "value_head"}
    aside = folder.with_name(folder.name + ".tmp")
    writes = jax.process_index() == 0
    if writes:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        write_config(aside, config, tokenizer, dtype.name, stops)
    _write_tensors(aside, tensors, dtype, max_shard_bytes, writes)
    if writes:
        aside.rename(folder)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("export")
    return folder


def _write_tensors(aside: Path, tensors, dtype: np.dtype, limit: int, writes: bool) -> None:
    plan = split_state_dict_into_shards_factory(
        {name: x for name, (_, x) in tensors.items()},
        get_storage_size=lambda x: x.size * dtype.itemsize,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=limit,
    )
    for file, names in plan.filename_to_tensors.items():
        shard = {}
        for name in names:
            path, x = tensors[name]
            x = _fetch(x).astype(dtype, copy=False)
            shard[name] = np.ascontiguousarray(x.T if _is_transposed(path) else x)
        if writes:
            save_file(shard, aside / file, metadata={"format": "pt"})
    if writes and plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        (aside / INDEX).write_text(json.dumps(index, indent=1, sort_keys=True) + "\n")


def _fetch(x: jax.Array) -> np.ndarray:
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return multihost_utils.process_allgather(x, tiled=True)
    return np.asarray(x)
