"""Seconds of a training step while a reader takes as long as the rollout, with `rl.overlap` and
without.

    python -m benchmarks.overlap [--quick] [--steps=8] [--arguments=ARGUMENTS OF configs/tiny.py]

An untrained policy of configs/tiny.py samples. A first run with the offline reader says how long
the rollout of a step takes; then that reader waits as long before it answers. The first two steps,
which compile, and the last two, of which nothing is sampled ahead or which validates, do not count.
`--quick` takes small batches: does all of it work?
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.episode import QUICK, load
from experiments.lib.objects import first_trained
from experiments.lib.workdir import read_metrics
from experiments.train import train
from memalpha.reader import Answerer, Request

ROLLOUT = ("render", "write", "parse", "apply", "judge")  # stages of a step before its reading
LEFT_OUT = 2  # steps at either end
SAME = "rl.is_cap=2.0,eval.every=1000,eval.instances=1"


def waiting(
    answerer: Answerer, seconds: float, sleep: Callable[[float], None] = time.sleep
) -> Answerer:
    """The reader, after so long."""

    def answer(requests: Sequence[Request]) -> list[str | None]:
        sleep(seconds)
        return answerer(requests)

    return answer


def timings(arguments: str, steps: int, overlap: bool, wait: float) -> list[dict[str, float]]:
    """The lines of timing.jsonl of the steps that count; `wait`: seconds that the reader takes."""
    fields = f"{SAME},rl.steps={steps},checkpoint_every={steps},rl.overlap={overlap}"
    given = {"workdir": "", "arguments": ",".join(filter(None, [arguments, fields]))}
    config, env, model, params = load(given)
    env = env.replace(answerer=waiting(env.reading.answerer, wait))
    with tempfile.TemporaryDirectory() as folder:
        train(config, Path(folder), env, model, params, first_trained(config, params))
        return read_metrics(Path(folder) / "timing.jsonl")[LEFT_OUT:-LEFT_OUT]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small batches")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--arguments", default="", help="of configs/tiny.py")
    options = parser.parse_args()
    if options.steps <= 2 * LEFT_OUT:
        parser.error(f"--steps={options.steps}: give more than {2 * LEFT_OUT}")
    arguments = ",".join(filter(None, [options.quick and QUICK, options.arguments]))
    alone = timings(arguments, options.steps, overlap=False, wait=0.0)
    rollout = statistics.median(sum(line.get(s, 0.0) for s in ROLLOUT) for line in alone)
    print(f"rollout {rollout:.3f} s, and a reader that takes as long")
    for overlap in (False, True):
        lines = timings(arguments, options.steps, overlap, rollout)
        seconds = statistics.median(line["step_seconds"] for line in lines)
        waited = statistics.median(line["read"] for line in lines)
        name = "with overlap" if overlap else "without"
        print(f"{name}: {seconds:.3f} s a step, {waited:.3f} s of them waiting for the reader")


if __name__ == "__main__":
    main()
