"""One GRPO step of a pretrained model, ours and torch's: low-rank adapters, and all parameters.

    pip install -r requirements-bench.txt
    python -m benchmarks.train_peers --model=smollm2 --part=adapters
    python -m benchmarks.train_peers --model=smollm2 --part=full

16 rows of 272 prompt and 112 completion tokens, float32 on CPU, AdamW, global norm clipped; the
rows go through the model `--micro_batch` at a time. Adapters of rank 16 on all projections (peft).
The log-probs of both are held against each other: with `--warmup=0` the note `loss` of the first
step is the same up to rounding. `memory` is the peak of the process, loading included, in GiB.
"""

import resource
from dataclasses import dataclass
from functools import partial

import jax
import numpy as np

from benchmarks.timing import Contender, Timing, arguments, run, table, write

RANK, ALPHA = 16, 32.0
NEEDS = ("torch", "transformers", "gguf", "peft")


@dataclass(frozen=True)
class Step:
    """Sizes of a step; `adapters` False trains all parameters."""

    model: str
    adapters: bool
    rows: int
    prompt: int
    new: int
    micro_batch: int

    def draw(self, vocabulary: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tokens [rows, prompt + new], the log-probs given as old and reference [rows, new], and
        advantages [rows]."""
        rng = np.random.default_rng(0)
        tokens = rng.integers(100, vocabulary, (self.rows, self.prompt + self.new))
        given = np.full((self.rows, self.new), -np.log(vocabulary), np.float32)
        return tokens.astype(np.int32), given, rng.normal(size=self.rows).astype(np.float32)


def peak() -> float:
    """GiB that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def ours(settings: dict, rounds) -> None:
    from benchmarks.ours import LOSS, check_finite, make_batch
    from benchmarks.shapes import LEARNING_RATE, MAX_NORM
    from memalpha import lora
    from memalpha.batch import plan_micro_batches
    from memalpha.hub import find_folder, read_config
    from memalpha.learner import init_state, make_update
    from memalpha.optimizer import OptimizerConfig, make_optimizer
    from memalpha.weights import load_params

    step = Step(**settings)
    folder = find_folder(step.model)
    config = read_config(folder, dtype="float32", param_dtype="float32", attention="auto")
    params = load_params(folder, config)
    adapters = lora.LoraConfig(rank=RANK if step.adapters else 0, alpha=ALPHA)
    optimizer = make_optimizer(OptimizerConfig(LEARNING_RATE, max_grad_norm=MAX_NORM))
    state = init_state(lora.init(params, adapters, jax.random.key(0)), optimizer)
    frozen = params if step.adapters else None
    del params
    attach = partial(lora.attach, config=adapters)
    update = make_update(config, LOSS, optimizer, attach)
    tokens, given, advantages = step.draw(config.vocab_size)
    targets = {"old_logps": given, "ref_logps": given, "advantages": advantages}
    batch = make_batch(tokens[:, : step.prompt], tokens[:, step.prompt :], **targets)
    plan = plan_micro_batches(batch, step.micro_batch)
    for _ in rounds:
        state, metrics = update(state, batch, plan, frozen)
        metrics = jax.device_get(jax.block_until_ready((state, metrics))[1])
        check_finite(metrics)
        rounds.note(loss=float(metrics["loss"]), memory=peak())


def what(timings: list[Timing]) -> str:
    """A Markdown table of losses and memory."""
    lines = ["| | loss of the first measured step | peak memory, GiB |", "|---|---|---|"]
    for timing in timings:
        if timing.notes:
            memory = max(note["memory"] for note in timing.notes)
            lines.append(f"| {timing.name} | {timing.notes[0]['loss']:.5f} | {memory:.1f} |")
    return "\n".join(lines)


def main() -> None:
    parser = arguments(__doc__, rounds=3)
    parser.set_defaults(warmup=1)
    parser.add_argument("--model", default="smollm2", help="name or GGUF file")
    parser.add_argument("--part", choices=("adapters", "full"), default="adapters")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--micro_batch", type=int, default=4)
    args = parser.parse_args()
    sizes = {"rows": args.rows, "micro_batch": args.micro_batch}
    given = {"model": args.model, "adapters": args.part == "adapters", "prompt": 272, "new": 112}
    contenders = (
        Contender("memalpha", "benchmarks.train_peers:ours"),
        Contender("torch, peft", "benchmarks.peer_peft:step", NEEDS),
    )
    timings = run(args, contenders, given | sizes)
    print(f"\n{args.part}\n\n{table(timings)}\n\n{what(timings)}")
    write(args, "train_peers", given | sizes, {args.part: timings}, contenders)


if __name__ == "__main__":
    main()
