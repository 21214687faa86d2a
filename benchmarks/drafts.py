"""Tokens per second of a trained writer with drafts of several lengths, and without.

    python -m benchmarks.drafts [--quick]
    python -m benchmarks.drafts --rows=1 --drafts=3,7,15 --checkpoint=runs/smollm2

The writer reads one chunk a row (synthetic chats that hold something to keep, or another synthetic
source) with an empty memory, greedily. Seconds count prompts and replies, as a user waits for them;
passes are those of the model over a row, the fewer the more of the drafts was kept. Every contender
writes the same tokens, or the program says so. `--loop=rollout` measures the loop of training, one
program for all of it, which takes minutes to compile for 30 layers.

1, 8 and 32 rows, each with drafts of 7, 3 and 15 tokens and without, in five rounds after two to
warm up: probably more than an hour on two cores. `--quick`: the first number of rows and the first
size of drafts alone, in two rounds after one; about a dozen replies, some minutes.
"""

import hashlib
import itertools
from collections.abc import Iterator

import jax

from benchmarks.timing import Contender, arguments, run, spread, table, write
from memalpha.data import synthetic
from memalpha.episode import Environment, Turn
from memalpha.lm.trained import trained_writer
from memalpha.memory import EMPTY_VIEW
from memalpha.policy import load_policy
from memalpha.prompts import PromptTooLong, fit_prompt
from memalpha.writer import policy_writer


def turns(env: Environment, family: str) -> Iterator[Turn]:
    """Turns of different streams, of those whose prompt fits."""
    for number in itertools.count():
        instance = synthetic.generate(
            family, "test", number, chunks=1, filler_share=0.0, empty_share=0.0
        )
        turn = Turn(number, 0, instance.chunks[0], instance, EMPTY_VIEW)
        try:
            fit_prompt(env.prompt, turn.view, turn.text)
        except PromptTooLong:
            continue
        yield turn


def respond(settings: dict, rounds) -> None:
    """The contender: one response a row, the same in every round."""
    policy, size = load_policy(settings["checkpoint"]), settings["draft_tokens"]
    given, rows = (policy.params, policy.model, policy.env), settings["rows"]
    if settings["loop"] == "rollout":
        writer = policy_writer(*given, rows, jax.random.key(0), 0.0, draft_tokens=size)
    else:
        writer = trained_writer(*given, draft_tokens=size)
    asked = list(itertools.islice(turns(policy.env, settings["family"]), rows))
    for _ in rounds:
        responses = writer(asked)
        written = [response.tokens.tolist() for response in responses]
        rounds.note(
            tokens=sum(map(len, written)),
            passes=sum(response.passes for response in responses),
            digest=hashlib.sha256(str(written).encode()).hexdigest()[:12],
        )


def main() -> None:
    parser = arguments(__doc__, rounds=5)
    parser.add_argument("--rows", default="1,8,32")
    parser.add_argument("--drafts", default="7,3,15", help="tokens of a draft")
    parser.add_argument("--family", default="chats", help="of the synthetic streams")
    parser.add_argument("--checkpoint", default="memalpha-smollm2")
    parser.add_argument("--loop", choices=("use", "rollout"), default="use")
    args = parser.parse_args()
    most = 1 if args.quick else None
    if args.quick:
        args.rounds, args.warmup = min(args.rounds, 2), min(args.warmup, 1)
    sizes = [0, *map(int, args.drafts.split(",")[:most])]
    contenders = [
        Contender(
            f"drafts of {n}" if n else "no drafts", "benchmarks.drafts:respond", (),
            {"draft_tokens": n},
        )
        for n in sizes
    ]  # fmt: skip
    given = {"checkpoint": args.checkpoint, "family": args.family, "loop": args.loop}
    parts = {}
    for rows in map(int, args.rows.split(",")[:most]):
        timings = run(args, contenders, given | {"rows": rows})
        parts[f"{rows} rows"] = timings
        ran = [timing for timing in timings if timing.notes]
        tokens = ran[0].notes[0]["tokens"]
        print(f"\n{rows} rows, {tokens} tokens; min / median / max of the rounds\n")
        print(table(timings, tokens, "tokens/s"))
        for timing in ran:
            note, (_, middle, _) = timing.notes[0], spread(timing.seconds)
            faster = spread(ran[0].seconds)[1] / middle
            print(
                f"{timing.name}: {note['tokens'] / note['passes']:.2f} tokens a pass,"
                f" {faster:.2f} times as fast as without"
            )
        if len({timing.notes[0]["digest"] for timing in ran}) > 1:
            print("the tokens are not the same: rounding decided somewhere")
    write(args, "drafts", given | {"rows": args.rows}, parts, contenders)


if __name__ == "__main__":
    main()
