"""Small GGUF files, written with `gguf.GGUFWriter` as llama.cpp's conversion would."""

from functools import partial

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind

QUANTISED = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")  # what the package can also write
# Bytes of a block of 256 values, and where its float16 scales are.
K_BLOCKS = {"Q4_K": (144, (0, 2)), "Q5_K": (176, (0, 2)), "Q6_K": (210, (208,))}
SIZES = {
    "block_count": 2,
    "context_length": 128,
    "embedding_length": 32,
    "feed_forward_length": 64,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
}
BYTES = sorted(  # how byte-level BPE writes the 256 bytes: those that cannot be seen from 256 on
    [chr(b) for b in range(256) if 33 <= b <= 126 or 161 <= b <= 172 or b >= 174]
    + [chr(256 + i) for i in range(68)]
)
SPECIAL = ["<|end|>", "<|user|>", "<tool_call>"]
TEMPLATE = (
    "{% for m in messages %}<|user|>{{ m['role'] }}: {{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|user|>assistant: {% endif %}"
)
TOKENIZER = {
    "model": "gpt2",
    "pre": "qwen2",
    "tokens": [*SPECIAL, *BYTES, "an", "Ġan"],
    "token_type": [3, 3, 4, *[1] * 258],
    "merges": ["a n", "Ġ an"],
    "eos_token_id": 0,
    "chat_template": TEMPLATE,
}


def interleave(x, heads):
    """The rows of q or k as llama.cpp stores them, worked from the definition: rows i and i + half
    of a head, which rotate together, stand beside each other."""
    half = len(x) // heads // 2
    rows = []
    for head in range(heads):
        first = head * 2 * half
        for i in range(half):
            rows += [x[first + i], x[first + half + i]]
    return np.stack(rows)


def random_blocks(kind, rows, columns, seed=0):
    """Bytes [rows, bytes] of a K type, which the package cannot write: anything but for scales."""
    size, scales = K_BLOCKS[kind]
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (rows, columns // 256, size), dtype=np.uint8)
    for at in scales:
        scale = rng.uniform(0.001, 0.1, (rows, columns // 256, 1)).astype(np.float16)
        blocks[:, :, at : at + 2] = scale.view(np.uint8)
    return blocks.reshape(rows, -1)


def add_tensor(writer, name, x, kind="F32"):
    if kind in K_BLOCKS:  # x: bytes already
        writer.add_tensor(name, x, raw_dtype=Kind[kind])
    elif kind in ("F32", "F16"):
        writer.add_tensor(name, x.astype({"F32": np.float32, "F16": np.float16}[kind]))
    else:
        writer.add_tensor(name, gguf.quants.quantize(x, Kind[kind]), raw_dtype=Kind[kind])


def write(path, architecture, fields, tensors, tokenizer=None, kinds=None):
    """A file of these fields of the architecture, tensors (name -> array) and their kinds, F32
    where not given; fields with a full name ("general.type", "split.count") go in as they are."""
    writer = gguf.GGUFWriter(path, architecture)
    for name, value in fields.items():
        full = name if name.startswith(("general.", "split.")) else f"{architecture}.{name}"
        add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        add.get(type(value), writer.add_array)(full, value)
    for name, value in (tokenizer or {}).items():
        name = "tokenizer.chat_template" if name == "chat_template" else f"tokenizer.ggml.{name}"
        add = {int: writer.add_uint32, str: writer.add_string, bool: writer.add_bool}
        add.get(type(value), partial(writer.add_array))(name, value)
    for name, x in tensors.items():
        add_tensor(writer, name, x, (kinds or {}).get(name, "F32"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def llama_tensors(rows=261, width=32, mlp=64, heads=(4, 2), layers=2, seed=0):
    """name -> array of a small model of architecture llama, in the order of the hub."""
    rng = np.random.default_rng(seed)
    head = width // heads[0]
    shapes = {"token_embd": (rows, width), "output_norm": (width,)}
    for i in range(layers):
        shapes |= {
            f"blk.{i}.attn_norm": (width,),
            f"blk.{i}.attn_q": (heads[0] * head, width),
            f"blk.{i}.attn_k": (heads[1] * head, width),
            f"blk.{i}.attn_v": (heads[1] * head, width),
            f"blk.{i}.attn_output": (width, heads[0] * head),
            f"blk.{i}.ffn_norm": (width,),
            f"blk.{i}.ffn_gate": (mlp, width),
            f"blk.{i}.ffn_up": (mlp, width),
            f"blk.{i}.ffn_down": (width, mlp),
        }
    return {f"{n}.weight": rng.normal(0, 0.3, s).astype(np.float32) for n, s in shapes.items()}


def llama(path, fields=None, tensors=None, tokenizer=TOKENIZER, kinds=None):
    """A whole small model of architecture llama; `fields` and `tensors` are put in their place."""
    stored = llama_tensors()
    for name in stored:
        for part, heads in (("attn_q", 4), ("attn_k", 2)):
            if part in name:
                stored[name] = interleave(stored[name], heads)
    return write(path, "llama", SIZES | (fields or {}), stored | (tensors or {}), tokenizer, kinds)
