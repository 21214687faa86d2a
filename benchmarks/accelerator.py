"""Sampling and training on one GPU or TPU, relative to its memory bandwidth and peak FLOP/s.

    python -m benchmarks.accelerator [--model=qwen3_4b] [--only=decode] [--profile] [--quick]

Uses random weights in bfloat16. First it measures the ceilings: bytes per second of a large copy
(read and written) and operations per second of a large matrix product. Decoding is compared with
its lower bound, the time to read the weights and the keys and values of all rows once per step; a
training step (micro-batches, AdamW in float32) with the operations of a step, not counting those
that remat repeats. Shares are given of the measured ceiling and of the vendor's figure (MFU), for
the devices listed below. `--profile` prints the slowest kernels. `--quick` uses a small model, to
check that everything runs.
"""

import argparse
import functools
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from memalpha.batch import Batch, Targets, Tokens, plan_micro_batches
from memalpha.learner import init_state, make_update
from memalpha.model import ModelConfig, Params, init_params
from memalpha.objective import LossConfig
from memalpha.optimizer import OptimizerConfig, make_optimizer
from memalpha.sampler import generate, row_keys

SIZES = {  # layers, width, heads, key-value heads, head width, MLP, vocabulary
    "qwen3_4b": (36, 2560, 32, 8, 128, 9728, 151_936),
    "qwen3_0_6b": (28, 1024, 16, 8, 128, 3072, 151_936),
    "quick": (2, 64, 4, 2, 16, 128, 512),
}
MAKERS = {  # bytes a second; operations a second in bfloat16, without sparsity
    "NVIDIA H100 80GB HBM3": (3.35e12, 989e12),
    "NVIDIA H200": (4.8e12, 989e12),
}
NO_STOP = np.array([-1], np.int32)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", default="qwen3_4b", choices=SIZES)
    add("--layers", type=int, default=0, help="so many layers only (0: all)")
    add("--only", choices=("decode", "train"), help="one of the two parts")
    add("--batch", default="64,128,256", help="rows to decode at a time")
    add("--prompt", type=int, default=1024, help="tokens of a prompt")
    add("--new", type=int, default=128, help="tokens to decode after it")
    add("--rows", type=int, default=16, help="rows of a training step")
    add("--micro_batch", default="4", help="rows of a micro-batch")
    add("--response", type=int, default=1024, help="tokens of a response that is learned from")
    add("--attention", default="auto", help="blocks, xla, cudnn or auto")
    add("--remat", default="dots", help="none, dots or full")
    add("--unroll", action="store_true", help="train without a loop over the layers")
    add("--rounds", type=int, default=3)
    add("--profile", action="store_true", help="print the kernels that took longest")
    add("--quick", action="store_true", help="a small model, a few tokens")
    args = parser.parse_args()
    if args.quick:
        args.model, args.batch, args.prompt, args.new = "quick", "4", 16, 4
        args.rows, args.micro_batch, args.response = 4, "2", 16
    return args


def seconds(work, rounds: int, queued: int = 1) -> float:
    """Median seconds of one call over the rounds after the one that compiles; a round has several
    calls in a row."""
    jax.block_until_ready(work())
    taken = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(queued):
            result = work()
        jax.block_until_ready(result)
        taken.append((time.perf_counter() - start) / queued)
    return statistics.median(taken)


def ceilings(quick: bool) -> tuple[float, float]:
    """Bytes per second of a copy, and operations per second of a matrix product in bfloat16."""
    size, side = (2**20, 256) if quick else (2**31, 8192)
    flip = jax.jit(jnp.negative)
    x = jax.random.normal(jax.random.key(0), (size,), jnp.bfloat16)
    copied = 2 * x.nbytes / seconds(lambda: flip(x), 3, 20)
    a = jax.random.normal(jax.random.key(1), (side, side), jnp.bfloat16)
    multiply = jax.jit(lambda a: a @ a)
    return copied, 2 * side**3 / seconds(lambda: multiply(a), 3, 50)


def build(args) -> tuple[ModelConfig, Params]:
    layers, width, heads, kv_heads, head, mlp, vocabulary = SIZES[args.model]
    config = ModelConfig(
        vocabulary, width, args.layers or layers, heads, kv_heads, head, mlp,
        dtype="bfloat16", param_dtype="bfloat16", attention=args.attention, remat=args.remat,
        scan_layers=not args.unroll,
    )  # fmt: skip
    shapes = jax.eval_shape(functools.partial(init_params, config), jax.random.key(0))
    key = jax.random.key(0)  # leaf by leaf: one program for all would compile for a minute
    params = [
        0.02 * jax.random.normal(jax.random.fold_in(key, i), x.shape, x.dtype) + (x.ndim == 1)
        for i, x in enumerate(jax.tree.leaves(shapes))
    ]
    return config, jax.tree.unflatten(jax.tree.structure(shapes), params)


def kernels(config: ModelConfig) -> int:
    """The number of weights that a token is multiplied with, including the head."""
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    layer = 2 * config.hidden_size * (q + kv) + 3 * config.hidden_size * config.mlp_size
    return config.num_layers * layer + config.hidden_size * config.vocab_size


def decode(args, config: ModelConfig, params: Params, rows: int, bandwidths: list[float]) -> str:
    """A row of the table: the time of a decoding step, and its lower bound as a share of it."""
    prompts = np.random.default_rng(0).integers(10, config.vocab_size, (rows, args.prompt))
    mask, keys = np.ones(prompts.shape, bool), row_keys(jax.random.key(1), np.arange(rows))

    def sample(new):
        return generate(
            params, config, prompts, mask, keys, 1.0, 1.0, new, NO_STOP, args.new
        ).tokens  # fmt: skip

    prefill = seconds(lambda: sample(1), args.rounds)
    step = (seconds(lambda: sample(args.new), args.rounds) - prefill) / (args.new - 1)
    if args.profile:
        profile(f"decode, {rows} rows", lambda: sample(args.new))
    slot = 2 * 2 * config.num_layers * config.num_kv_heads * config.head_dim
    read = 2 * kernels(config) + rows * (args.prompt + args.new / 2) * slot
    return (
        f"| {rows} | {prefill:.3f} | {step * 1e3:.2f} | {read / 1e9:.1f}"
        f" | {shares(read / step, bandwidths)} | {rows / step:,.0f} |"
    )


def train(args, size: int, rates: list[float]) -> str:
    """A row of the table: the time of a training step, and the share of the ceiling it reaches."""
    config, params = build(args)
    rows, p, t = args.rows, args.prompt, args.response
    rng = np.random.default_rng(0)
    ids = rng.integers(10, config.vocab_size, (rows, p + t)).astype(np.int32)
    masks = np.ones((rows, p), bool), np.ones((rows, t), bool)
    batch = Batch(
        Tokens(ids[:, :p], masks[0], ids[:, p:], masks[1]),
        Targets(
            sample_logps=np.full((rows, t), -np.log(config.vocab_size), np.float32),
            advantages=rng.normal(size=rows).astype(np.float32),
        ),
    )
    plan = plan_micro_batches(batch, size)
    optimizer = make_optimizer(OptimizerConfig(1e-6))
    update = make_update(config, LossConfig(head_chunk=128), optimizer)
    state = init_state(params, optimizer)

    def step():
        nonlocal state
        state, metrics = update(state, batch, plan)
        return metrics

    taken = seconds(step, args.rounds)
    if args.profile:
        profile(f"training step, {config.attention}, {config.remat}", step)
    pairs = 4 * config.num_heads * config.head_dim * config.num_layers * (p + t) / 2
    head = 2 * config.hidden_size * config.vocab_size
    forward = 2 * kernels(config) - head + pairs + head * t / (p + t)
    done = 3 * forward * rows * (p + t) / taken
    return (
        f"| {config.attention} | {config.remat} | {size} | {taken:.3f}"
        f" | {rows * (p + t) / taken:,.0f} | {done / 1e12:.0f} | {shares(done, rates)} |"
    )


def shares(reached: float, ceilings: list[float]) -> str:
    return " | ".join(f"{reached / ceiling:.0%}" for ceiling in ceilings)


def profile(name: str, work) -> None:
    """Prints the kernels of one round, slowest first."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(work())
        (path,) = Path(folder).rglob("*.xplane.pb")
        data = jax.profiler.ProfileData.from_file(str(path))
    spent, count = Counter(), Counter()
    for plane in data.planes:
        if "GPU" not in plane.name and "TPU" not in plane.name:
            continue
        for line in plane.lines:
            if not line.name.startswith(("Stream", "XLA Ops")):
                continue
            for event in line.events:
                kernel = event.name.rstrip("0123456789_.")
                spent[kernel] += event.duration_ns
                count[kernel] += 1
    total = sum(spent.values())
    print(f"\n{name}: {total / 1e9:.3f} s in kernels")
    for kernel, taken in spent.most_common(16):
        print(f"  {taken / total:6.1%} {taken / 1e6:9.2f} ms {count[kernel]:6} x  {kernel[:90]}")


def used() -> str:
    stats = jax.devices()[0].memory_stats() or {}
    return f"{stats.get('peak_bytes_in_use', 0) / 1e9:.1f} GB at most so far"


def main() -> None:
    args = parse()
    device = jax.devices()[0]
    measured = ceilings(args.quick)
    print(
        f"{device.device_kind}, JAX {jax.__version__}: a copy moves {measured[0] / 1e12:.2f} TB/s,"
        f" a product runs at {measured[1] / 1e12:.0f} TFLOP/s"
    )
    known = [measured, *([MAKERS[device.device_kind]] if device.device_kind in MAKERS else [])]
    bandwidths, rates = ([pair[i] for pair in known] for i in (0, 1))
    if args.only != "train":
        config, params = build(args)
        heads = ["of the copy", "of the maker's"][: len(known)]
        title(f"prompts of {args.prompt}, {args.new} new tokens; a step is one token of every row")
        header("rows", "prefill, s", "step, ms", "GB read", *heads, "tokens/s")
        for rows in map(int, args.batch.split(",")):
            print(decode(args, config, params, rows, bandwidths), flush=True)
        print(used())
        del params
    if args.only != "decode":
        heads = ["of the product", "MFU"][: len(known)]
        title(f"a GRPO step; {args.rows} rows of {args.prompt} + {args.response} tokens")
        header("attention", "remat", "micro-batch", "step, s", "tokens/s", "TFLOP/s", *heads)
        for size in map(int, args.micro_batch.split(",")):
            print(train(args, size, rates), flush=True)
        print(used())


def title(text: str) -> None:
    print(f"\n{text}\n")


def header(*names: str) -> None:
    print("| " + " | ".join(names) + " |\n" + "|---" * len(names) + "|")


if __name__ == "__main__":
    main()
