"""Sampled tokens per second: ours, Hugging Face transformers, google-tunix.

    python -m benchmarks.generate [--quick]

Batch 32, prompts of 256 tokens, 64 new ones at temperature 1, Qwen3 of 5.2M parameters in float32,
on CPU. Ours and tunix compute log-probs too. Libraries that are not installed are left out.
"""

from benchmarks.shapes import Shape, settings
from benchmarks.timing import Contender, arguments, run, table, write

HF = ("torch", "transformers")
CONTENDERS = (
    Contender("memalpha", "benchmarks.ours:generate"),
    Contender(
        "transformers, static compiled", "benchmarks.peer_hf:generate", HF, {"cache": "static"}
    ),
    Contender("transformers, dynamic", "benchmarks.peer_hf:generate", HF, {"cache": "dynamic"}),
    Contender("tunix", "benchmarks.peer_tunix:generate", ("google-tunix",)),
)


def main() -> None:
    args = arguments(__doc__, rounds=7).parse_args()
    given = settings(args.quick)
    shape = Shape(**given)
    timings = run(args, CONTENDERS, given)
    print("\nmin / median / max of the rounds\n")
    print(table(timings, shape.batch * shape.new, "tokens/s"))
    write(args, "generate", given, {"generate": timings}, CONTENDERS)


if __name__ == "__main__":
    main()
