"""Compares a GGUF file in our model and in torch: logits and greedy tokens.

    python -m benchmarks.real_models smollm2 ~/models/qwen2.5-0.5b.Q4_K_M.gguf

torch's side is `transformers`, which reads the file by itself (`gguf_file=`): names, order of rows
and dequantisation share no code with ours. Both compute in float32. One line of JSON a model:

  logits        largest absolute difference over the tokens of TEXT (the first `--tokens`), and the
                largest logit for comparison
  greedy        how many of the 64 tokens after PROMPT are the same before the first that differs
  perplexity    of TEXT, ours and torch's
  tokenizer     number of SAMPLES with the same ids as the reference tokenizer, and its name
  seconds       to read the header, the tokenizer, and the parameters
"""

import argparse
import json
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Tokenizer

from memalpha import sampler
from memalpha.gguf_file import read_header
from memalpha.hub import find_folder, read_config
from memalpha.model import ModelConfig, Params, Transformer, logits
from memalpha.tokenizer import load_tokenizer
from memalpha.weights import load_params

GREEDY = 64  # tokens
TEXT = """\
The old lighthouse stood at the end of a narrow road that the sea covered twice a day. Its \
keeper, a quiet woman named Marta, wrote down everything that passed: the ships, the weather, the \
birds that rested on the railing in October. In the winter of 1987 a storm broke the great lamp, \
and for three nights she lit fires on the beach so that the fishing boats could find the harbour. \
Nobody asked her to do it. When the engineers arrived with a new lamp, they found eleven boats \
tied up at the pier and their crews asleep on the floor of her kitchen. The town wanted to give \
her a medal, but she asked for a telescope instead. From then on her notes grew longer. She \
described the rings of Saturn, the colours of double stars and the slow drift of the planets, and \
between these entries she still counted the ships. After her death the notebooks came to the \
library, where children read them aloud on rainy afternoons and argue about which of the ships \
was the most beautiful."""
PROMPT = "Three things to remember before a long walk in the mountains are"
SAMPLES = [
    "On 2024-01-05 Ann's dog didn't eat 12345 apples; she'll call 555-0199 at 07:45.",
    "naïve café, cafe\u0301, Übergröße, 東京 и Москва — العربية 👩‍👩‍👧",
    "def f(x):\n    return x**2  # two\n\n\n\tif x:\r\n        print('a')  \n",
    "  leading,   inner and trailing spaces  \n\n \n",
    "<|im_start|>user\nWhat is 17 + 4?<|im_end|>\n<|im_start|>assistant\n",
    '<tool_call>\n{"name": "new_memory_insert", "arguments": {"content": "1,000 €"}}\n</tool_call>',
    TEXT,
]  # fmt: skip


@partial(jax.jit, static_argnames="config")
def our_logits(params: Params, tokens: jax.Array, config: ModelConfig) -> jax.Array:
    """[S] int32 -> [S, V] float32."""
    tokens = tokens[None]
    positions = jnp.arange(tokens.shape[1])[None]
    mask = jnp.ones(tokens.shape, bool)
    hidden, _ = Transformer(config).apply({"params": params}, tokens, positions, mask, keep=False)
    return logits(params, hidden, config)[0]


def our_greedy(params: Params, prompt: list[int], config: ModelConfig) -> list[int]:
    """GREEDY tokens after a prompt; no token stops the generation."""
    tokens, mask = sampler.pad_prompts([prompt], [len(prompt)], 1)
    keys, never = sampler.row_keys(jax.random.key(0), [0]), jnp.asarray([-1], jnp.int32)
    limits = np.array([GREEDY])
    samples = sampler.generate(
        params, config, tokens, mask, keys, 0.0, 1.0, limits, never, GREEDY
    )  # fmt: skip
    return np.asarray(samples.tokens)[0, :GREEDY].tolist()


def their_greedy(model, prompt: list[int]) -> list[int]:
    ids = torch.tensor([prompt])
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, repetition_penalty=1.0,
        min_new_tokens=GREEDY, max_new_tokens=GREEDY, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    return out[0, len(prompt) :].tolist()


def perplexity(scores: np.ndarray, tokens: np.ndarray) -> float:
    """Perplexity of tokens [S] after the first, from logits [S, V]."""
    scores = scores[:-1].astype(np.float64)
    scores -= scores.max(axis=1, keepdims=True)
    picked = np.take_along_axis(scores, tokens[1:, None], axis=1)[:, 0]
    return float(np.exp(np.mean(np.log(np.exp(scores).sum(axis=1)) - picked)))


def reference_tokenizer(path: Path):
    """The hub's class with the vocabulary of the file where `transformers` has one; else what it
    makes of the file, whose special tokens are wrong but whose text is not."""
    metadata = read_header(path).metadata
    if metadata["tokenizer.ggml.pre"] != "qwen2":
        return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    ids = {token: i for i, (token, of) in enumerate(zip(tokens, types, strict=True)) if of == 1}
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Qwen2Tokenizer(ids, merges)
    special = [token for token, of in zip(tokens, types, strict=True) if of in (3, 4)]
    tokenizer.add_tokens(special)  # in the order of their ids, which follow the vocabulary
    return tokenizer


def measure(name: str, count: int) -> dict:
    times, begin = {}, time.perf_counter()

    def lap(what: str) -> None:
        nonlocal begin
        times[what], begin = round(time.perf_counter() - begin, 2), time.perf_counter()

    path = find_folder(name)
    config = read_config(path)
    lap("header")
    tokenizer = load_tokenizer(str(path))
    lap("tokenizer")
    params = jax.block_until_ready(load_params(path, config))
    lap("parameters")
    tokens = np.array(tokenizer.encode(TEXT, add_special_tokens=False)[:count], np.int32)
    prompt = tokenizer.encode(PROMPT, add_special_tokens=False)
    ours = np.asarray(our_logits(params, jnp.asarray(tokens), config))
    our_tokens = our_greedy(params, prompt, config)
    del params
    model = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    ).eval()
    with torch.inference_mode():
        theirs = model(torch.tensor(tokens[None].astype(np.int64))).logits[0].numpy()
        their_tokens = their_greedy(model, prompt)
    same = [a == b for a, b in zip(our_tokens, their_tokens, strict=True)]
    reference = reference_tokenizer(path)
    encoded = [
        [t.encode(text, add_special_tokens=False) for t in (tokenizer, reference)]
        for text in SAMPLES
    ]
    return {
        "model": path.name,
        "tokens": len(tokens),
        "logits": [float(np.abs(ours - theirs).max()), float(np.abs(theirs).max())],
        "greedy": [*same, False].index(False),
        "text": tokenizer.decode(our_tokens),
        "perplexity": [perplexity(ours, tokens), perplexity(theirs, tokens)],
        "tokenizer": [sum(a == b for a, b in encoded), len(SAMPLES), type(reference).__name__],
        "unlike": [text[:40] for text, (a, b) in zip(SAMPLES, encoded, strict=True) if a != b],
        "seconds": times,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", help="GGUF files, or names such as smollm2")
    parser.add_argument("--tokens", type=int, default=200, help="of the text (default 200)")
    options = parser.parse_args()
    for name in options.models:
        print(json.dumps(measure(name, options.tokens), ensure_ascii=False), flush=True)


if __name__ == "__main__":
    main()
