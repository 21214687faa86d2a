"""The cost of a memory operation with 100, 1,000 and 10,000 entries per list.

    python -m benchmarks.memory_ops [--quick] [--rows 8]

A step is 16 inserts, updates and deletes on each of `rows` memories whose lists have that many
entries. It is timed until the outcomes are on the host, with and without the view for the writer
that each chunk of an episode also needs.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import Contender, Timing, arguments, ratios, run, spread, write
from memalpha import memory
from memalpha.memory import MemoryState, OpKind, Ops

ENTRY_TOKENS, CORE_TOKENS, RECENT = 48, 64, 2  # as configs/tiny.py
OPERATIONS = 16  # of a step; its max_calls
CYCLE = (OpKind.INSERT, OpKind.UPDATE, OpKind.DELETE, OpKind.UPDATE)  # a list keeps its size
SMALLEST, ENTRIES = 100, (100, 1_000, 10_000)
CUT_MARK, ENABLED = np.array([1], np.int32), np.ones(3, bool)
TOKENS = 1000  # token ids of entries
STEPS = 4  # of a round; SMALLEST >= STEPS * OPERATIONS, so that no entry is named twice


def filled(rows: int, entries: int, rng: np.random.Generator) -> MemoryState:
    """Memories with `entries` random entries per list and capacity for a step (numpy)."""
    capacity = memory.capacity_bucket(entries + OPERATIONS)
    empty = jax.device_get(memory.init(rows, capacity, ENTRY_TOKENS, CORE_TOKENS))
    used = np.arange(capacity) < entries
    ids = used * np.arange(1, 2 * capacity + 1, dtype=np.int32).reshape(2, capacity)
    full = empty.replace(
        tokens=rng.integers(1, TOKENS, empty.tokens.shape, np.int32) * used[:, None],
        length=np.zeros_like(empty.length) + (ENTRY_TOKENS * used).astype(np.int32),
        id=np.zeros_like(empty.id) + ids,
        count=np.full_like(empty.count, entries),
        next_id=np.full_like(empty.next_id, 2 * capacity + 1),
    )
    return memory.reindex(full)


def draw_steps(host: MemoryState, rng: np.random.Generator) -> list[Ops]:
    """The operations of a round; all of them succeed, and every row gets the same ones."""
    rows, entries = host.id.shape[0], int(host.count[0, 0])
    places = rng.permutation(entries)[: STEPS * OPERATIONS].reshape(STEPS, OPERATIONS)
    kind = np.resize(np.array(CYCLE, np.int32), OPERATIONS)
    target = 1 + np.arange(OPERATIONS, dtype=np.int32) // len(CYCLE) % 2
    width = max(ENTRY_TOKENS, CORE_TOKENS)

    def step(place: np.ndarray) -> Ops:
        one = Ops(
            kind=kind,
            target=target,
            id=host.id[0, target - 1, place],
            tokens=rng.integers(1, TOKENS, (OPERATIONS, width), np.int32),
            length=np.full(OPERATIONS, ENTRY_TOKENS, np.int32),
        )
        return jax.tree.map(lambda leaf: np.repeat(leaf[None], rows, axis=0), one)

    return [step(place) for place in places]


@jax.jit
def copied(state: MemoryState) -> MemoryState:
    return jax.tree.map(jnp.copy, state)


def operate(settings: dict, rounds) -> None:
    rows = settings["rows"]
    rng = np.random.default_rng(0)
    start, chunk = filled(rows, settings["entries"], rng), np.zeros(rows, np.int32)

    def prepare():  # not timed
        # Device arrays: numpy arrays cannot be donated and would be copied in the timed step.
        return jax.block_until_ready(copied(start)), draw_steps(start, rng)

    rounds.prepare = prepare
    for state, steps in rounds:
        for ops in steps:
            state, outcomes, _ = memory.apply_batch(state, ops, chunk, CUT_MARK, ENABLED)
            failed = int((np.asarray(outcomes) != memory.Outcome.OK).sum())
            if failed:
                raise ValueError(f"{failed} operations failed")
            if settings["view"]:
                newest = jax.device_get(memory.newest(state, RECENT))
                for row in range(rows):
                    memory.view(newest, row, str, last=RECENT)


def contenders(view: bool) -> list[Contender]:
    target = "benchmarks.memory_ops:operate"
    return [
        Contender(f"{entries:,} entries", target, (), {"entries": entries, "view": view})
        for entries in ENTRIES
    ]


def show(title: str, timings: Sequence[Timing], rows: int) -> None:
    """Microseconds of one operation on one memory, and times the cost at the fewest entries; both
    by the clock and by the processor, which other work on the machine disturbs less."""
    least = f"times that at {timings[0].name}"
    print(f"\n{title}\n\n|  | µs an operation | {least} | µs of the processor | {least} |")
    print("|---|---|---|---|---|")
    for timing in timings:
        cells = []
        for kind in ("seconds", "cpu_seconds"):
            taken, fewest = getattr(timing, kind), getattr(timings[0], kind)
            micros = [1e6 * seconds / (STEPS * OPERATIONS * rows) for seconds in taken]
            # `ratios` returns the speed of its first argument relative to the second.
            for three in (spread(micros), ratios(fewest, taken)):
                cells.append(" / ".join(f"{x:,.2f}" for x in three))
        print(f"| {timing.name} | {' | '.join(cells)} |")


def main() -> None:
    parser = arguments(__doc__, rounds=15)
    parser.add_argument("--rows", type=int, default=8, help="(default %(default)s)")
    args = parser.parse_args()
    rows = 2 if args.quick else args.rows
    given, parts = {"rows": rows}, {}
    titles = {"operation": "operations alone", "chunk": "with the view that is shown"}
    for part, title in titles.items():
        parts[part] = run(args, contenders(part == "chunk"), given)
        show(f"{title}, min / median / max", parts[part], rows)
    write(args, "memory_ops", given, parts, contenders(False))


if __name__ == "__main__":
    main()
