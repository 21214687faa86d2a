"""The header of a GGUF file: its metadata, and type, shape and offset of its tensors.

`gguf.GGUFReader` is not used, because it builds several arrays for each token of a vocabulary
(seconds for 150,000 tokens; this module takes a tenth of one) and does not detect truncated files.
Types and block sizes come from the `gguf` package.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from memalpha.paths import user_path

MAGIC = b"GGUF"
VERSIONS = (2, 3)
SUPPORTED = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K")
KINDS = {kind.value: kind for kind in GGMLQuantizationType}
CODES = {  # format characters of `struct`
    GGUFValueType.UINT8: "B",
    GGUFValueType.INT8: "b",
    GGUFValueType.UINT16: "H",
    GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I",
    GGUFValueType.INT32: "i",
    GGUFValueType.UINT64: "Q",
    GGUFValueType.INT64: "q",
    GGUFValueType.FLOAT32: "f",
    GGUFValueType.FLOAT64: "d",
    GGUFValueType.BOOL: "?",
}


@dataclass(frozen=True)
class Stored:
    """A tensor in a file; the shape is in the order of the hub: the innermost axis last."""

    kind: GGMLQuantizationType
    shape: tuple[int, ...]
    offset: int  # bytes from the beginning of the file

    @property
    def row_bytes(self) -> int:
        """Bytes of one row along the innermost axis."""
        block, size = GGML_QUANT_SIZES[self.kind]
        return self.shape[-1] // block * size

    @property
    def end(self) -> int:
        return self.offset + math.prod(self.shape[:-1]) * self.row_bytes


@dataclass(frozen=True)
class Header:
    """Metadata and tensors by the names that the file uses."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Stored]


def read_header(path: str | Path) -> Header:
    """Reads and checks the header of a GGUF file; no tensor is read.

    Raises:
        ValueError: no such file; not GGUF; truncated or damaged; one part of a split model; not a
            model; or a tensor of an unsupported type.
    """
    path = user_path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    stat = path.stat()
    return _read(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=4)  # config, weights and tokenizer of a model each read the header
def _read(path: Path, size: int, changed: int) -> Header:
    with path.open("rb") as opened:
        if opened.read(len(MAGIC)) != MAGIC:
            raise ValueError(
                f"{path} is no GGUF file: it does not begin with 'GGUF'. Give a .gguf file, or the"
                " folder of a model"
            )
        with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
            header = _parse(path, _Cursor(path, data, len(MAGIC)))
    _check(header, size)
    return header


class _Cursor:
    """Reads consecutive values; raises ValueError where the file ends in the middle of one."""

    def __init__(self, path: Path, data: mmap.mmap, at: int):
        self.path, self.data, self.at = path, data, at

    def take(self, count: int) -> bytes:
        if self.at + count > len(self.data):
            raise ValueError(
                f"{self.path} is cut off or damaged: its header goes on past its end at"
                f" {len(self.data):,} bytes. Download it again"
            )
        self.at += count
        return self.data[self.at - count : self.at]

    def numbers(self, code: str, count: int) -> tuple[Any, ...]:
        return struct.unpack(f"<{count}{code}", self.take(struct.calcsize("<" + code) * count))

    def number(self, code: str) -> Any:
        return self.numbers(code, 1)[0]

    def text(self) -> str:
        return self.take(self.number("Q")).decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        if kind == GGUFValueType.STRING:
            return self.text()
        if kind == GGUFValueType.ARRAY:
            kind, count = self.number("I"), self.number("Q")
            if kind in CODES:
                return list(self.numbers(CODES[kind], count))
            if kind == GGUFValueType.STRING:
                return [self.text() for _ in range(count)]
        if kind not in CODES:
            raise ValueError(f"{self.path} is damaged: a field is of the unknown type {kind}")
        return self.number(CODES[kind])


def _parse(path: Path, cursor: _Cursor) -> Header:
    version = cursor.number("I")
    if version not in VERSIONS:
        raise ValueError(
            f"{path}: GGUF version {version}; only little-endian files of version"
            f" {' and '.join(map(str, VERSIONS))} can be read: convert the model anew"
        )
    tensor_count, field_count = cursor.numbers("Q", 2)
    metadata, infos, tensors = {}, [], {}
    for _ in range(field_count):
        key = cursor.text()
        metadata[key] = cursor.value(cursor.number("I"))
    for _ in range(tensor_count):
        name = cursor.text()
        shape = cursor.numbers("Q", cursor.number("I"))[::-1]
        infos.append((name, shape, cursor.number("I"), cursor.number("Q")))
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise ValueError(f"{path} is damaged: general.alignment is {alignment!r}")
    start = math.ceil(cursor.at / alignment) * alignment
    for name, shape, kind, offset in infos:
        if name in tensors:
            raise ValueError(f"{path} is damaged: tensor {name} is there twice")
        known = KINDS.get(kind)
        if known is None or known.name not in SUPPORTED:
            raise ValueError(
                f"{path}: tensor {name} is stored as {known.name if known else f'type {kind}'};"
                f" supported are {', '.join(SUPPORTED)}. Take another file of this model, such as"
                " Q4_K_M or Q8_0"
            )
        tensors[name] = Stored(known, shape, start + offset)
    return Header(path, metadata, tensors)


def _check(header: Header, size: int) -> None:
    path, metadata = header.path, header.metadata
    if metadata.get("split.count", 1) > 1:
        raise ValueError(
            f"{path} is part {metadata.get('split.no', 0) + 1} of {metadata['split.count']}: join"
            " the parts with `llama-gguf-split --merge FIRST_PART OUT.gguf`"
        )
    if metadata.get("general.type", "model") != "model":
        raise ValueError(f"{path} is no model: its general.type is {metadata['general.type']!r}")
    for name, tensor in header.tensors.items():
        block = GGML_QUANT_SIZES[tensor.kind][0]
        if not tensor.shape or 0 in tensor.shape or tensor.shape[-1] % block:
            raise ValueError(
                f"{path} is damaged: tensor {name} is {tensor.kind.name} of shape {tensor.shape}"
            )
        if tensor.end > size:
            raise ValueError(
                f"{path} is cut off: it has {size:,} bytes, but tensor {name} ends at"
                f" {tensor.end:,}. Download it again"
            )
