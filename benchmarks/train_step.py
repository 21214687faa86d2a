"""One GRPO step, and whole GRPO iterations: ours, torch autograd, TRL, google-tunix.

    python -m benchmarks.train_step [--quick] [--part step|iteration]

Step: batch 32, 256 prompt and 64 completion tokens, Qwen3 of 5.2M parameters in float32 on CPU;
old and reference log-probs given, clipped surrogate and k3 estimate of the KL, global norm clipped,
AdamW. torch and ours are also run in micro-batches, which give the same step. Iteration: rollout,
reference log-probs, reward, advantages, step. A peer that is not installed is left out.
"""

from benchmarks.shapes import Shape, settings
from benchmarks.timing import Contender, arguments, run, table, write

TORCH = ("torch", "transformers")
TRL = ("trl", "torch", "transformers", "accelerate", "datasets")
TUNIX = ("google-tunix",)


def contenders(part: str, shape: Shape) -> tuple[Contender, ...]:
    micro = {"micro_batch": shape.batch // 4}
    ours = Contender(
        f"memalpha, {shape.batch // 4} rows at a time", f"benchmarks.ours:{part}", (), micro
    )
    trl = Contender("TRL", f"benchmarks.peer_trl:{part}", TRL)
    tunix = Contender("tunix", f"benchmarks.peer_tunix:{part}", TUNIX)
    if part == "iteration":
        return ours, trl, tunix
    whole = {"micro_batch": None}
    return (
        ours,
        Contender("memalpha, all rows at once", "benchmarks.ours:step", (), whole),
        Contender("torch, all rows at once", "benchmarks.peer_hf:step", TORCH, whole),
        Contender(
            f"torch, {shape.batch // 4} rows at a time", "benchmarks.peer_hf:step", TORCH, micro
        ),
        trl,
        tunix,
    )


def main() -> None:
    parser = arguments(__doc__, rounds=5)
    parser.add_argument("--part", choices=("step", "iteration"), help="(default: both)")
    args = parser.parse_args()
    given = settings(args.quick)
    parts, seen = {}, []
    for part in [args.part] if args.part else ["step", "iteration"]:
        functions = contenders(part, Shape(**given))
        parts[part] = run(args, functions, given)
        seen += functions
        print(
            f"\nGRPO {part}, min / median / max of the rounds\n\n{table(parts[part])}\n", flush=True
        )
    write(args, "train_step", given, parts, seen)


if __name__ == "__main__":
    main()
