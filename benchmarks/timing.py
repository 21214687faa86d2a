"""Ratios of speed: contenders in processes of their own, which run in turns.

A contender is a function `contender(settings, rounds)`, named "module:function". It prepares itself
and then does the work once for every item of `rounds`; what happens between two items is timed
(`benchmarks.worker`). Every contender is started once and keeps its process, so that libraries that
cannot share one never meet, while the rounds alternate: whatever else the machine does falls on all
of them. Threads, cores and allocator are the same for all.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ALLOCATOR = "glibc.malloc.hugetlb=1"  # huge pages, as run_experiment.py sets
THREAD_VARIABLES = ("OMP", "MKL", "OPENBLAS", "NUMEXPR", "NUMBA")  # and _NUM_THREADS
SETTLE = 0.2  # seconds between two turns: idle thread pools stop spinning


@dataclass(frozen=True)
class Contender:
    """`target`: "module:function"; `packages`: what has to be installed for it; `settings`: what it
    is told beyond the shape."""

    name: str
    target: str
    packages: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Timing:
    """Seconds of every round of a contender, of the processor too (of all its threads), and of the
    rounds before them that compile; `absent` says why there are none. `notes`: what the contender
    told of its work in each round."""

    name: str
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    warmup: list[float] = field(default_factory=list)
    notes: list[dict[str, Any]] = field(default_factory=list)
    absent: str = ""


class ContenderError(RuntimeError):
    """A contender ended before its time; the message holds the end of what it printed."""


class Worker:
    """The process of one contender."""

    def __init__(self, contender: Contender, settings: Mapping[str, Any], environment: dict):
        self.name = contender.name
        self._log = tempfile.TemporaryFile("w+", errors="replace")
        told = json.dumps({**settings, **contender.settings})
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", contender.target, told],
            cwd=ROOT, env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log,
        )  # fmt: skip

    def answer(self) -> dict[str, Any]:
        """The next message; ContenderError where the process has ended."""
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        self._process.wait()
        self._log.seek(0)
        tail = self._log.read().strip().splitlines()[-12:]
        raise ContenderError("\n".join([f"{self.name} ended:", *tail]))

    def round(self) -> dict[str, Any]:
        """One repetition: {"seconds": float, "cpu_seconds": float, "notes": {...}}."""
        try:
            self._process.stdin.write("go\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # `answer` reports the reason
        return self.answer()

    def close(self) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            try:
                stream.close()
            except BrokenPipeError:
                pass
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()


def missing(contender: Contender) -> list[str]:
    """The packages of a contender that are not installed."""
    return [name for name in contender.packages if installed(name) is None]


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def environment(threads: int) -> dict[str, str]:
    """Environment variables of every contender: threads, allocator, no network or accelerator."""
    defaults = {
        "GLIBC_TUNABLES": ALLOCATOR,
        "JAX_PLATFORMS": "cpu",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
    }
    counts = {f"{name}_NUM_THREADS": str(threads) for name in THREAD_VARIABLES}
    return defaults | os.environ | counts


def use_cores(threads: int) -> None:
    """Restricts this process and its children to some cores; XLA sizes its thread pool by them."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def alternate(
    contenders: Sequence[Contender],
    settings: Mapping[str, Any],
    rounds: int,
    warmup: int,
    environment: dict[str, str],
    say=print,
) -> list[Timing]:
    """Starts the contenders one by one with `warmup` rounds each, then runs `rounds` rounds in
    turns. One that is not installed or fails is reported and left out."""
    timings = [Timing(contender.name) for contender in contenders]
    workers: dict[int, Worker] = {}

    def attempt(number: int, work):
        try:
            return work()
        except ContenderError as error:
            timings[number].absent = str(error)
            workers.pop(number).close()
            say(f"{error}\n  goes on without it")

    def prepare(number: int) -> None:
        worker = workers[number]
        worker.answer()
        for _ in range(warmup):
            timings[number].warmup.append(worker.round()["seconds"])

    def turn(number: int) -> None:
        time.sleep(SETTLE)
        answer = workers[number].round()
        timings[number].seconds.append(answer["seconds"])
        timings[number].cpu_seconds.append(answer["cpu_seconds"])
        timings[number].notes.append(answer["notes"])

    try:
        for number, contender in enumerate(contenders):
            if absent := missing(contender):
                timings[number].absent = f"not installed: {', '.join(absent)}"
                say(f"{contender.name}: {timings[number].absent} (see requirements-bench.txt)")
                continue
            say(f"{contender.name}: starting", flush=True)
            workers[number] = Worker(contender, settings, environment)
            attempt(number, lambda number=number: prepare(number))
        for done in range(rounds):
            for number in list(workers):
                attempt(number, lambda number=number: turn(number))
            say(f"round {done + 1} of {rounds}", flush=True)
    finally:
        for worker in workers.values():
            worker.close()
    return timings


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """(minimum, median, maximum)."""
    return min(values), statistics.median(values), max(values)


def ratios(ours: Sequence[float], peer: Sequence[float]) -> tuple[float, float, float]:
    """How many times as fast we are, round by round: least, median, largest.

    Raises ValueError where the two did not run the same number of rounds.
    """
    if len(ours) != len(peer) or not ours:
        raise ValueError(f"ratios: {len(ours)} rounds of ours, {len(peer)} of the peer's")
    return spread([theirs / own for own, theirs in zip(ours, peer, strict=True)])


def table(timings: Sequence[Timing], units: float = 0, unit: str = "") -> str:
    """A Markdown table: seconds of every contender, `units` / seconds where units are given, and
    how many times as fast as it the first one is; each min / median / max of the rounds."""

    def cells(values: tuple[float, float, float], digits: int) -> str:
        return " / ".join(f"{value:,.{digits}f}" for value in values)

    first = timings[0]
    header = ["", "s"] + ([unit] if units else []) + [f"times as fast is {first.name}"]
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    for timing in timings:
        row = [timing.name]
        if not timing.seconds:
            row += [timing.absent.splitlines()[0]] + [""] * (len(header) - 2)
        else:
            row.append(cells(spread(timing.seconds), 3))
            if units:
                row.append(cells(spread([units / s for s in timing.seconds]), 0))
            same = timing is not first and len(timing.seconds) == len(first.seconds)
            row.append(cells(ratios(first.seconds, timing.seconds), 2) if same else "")
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def arguments(doc: str, rounds: int) -> argparse.ArgumentParser:
    """A parser with the options that all benchmarks share."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small sizes: does all of it work?")
    parser.add_argument("--rounds", type=int, default=rounds, help="(default %(default)s)")
    parser.add_argument("--warmup", type=int, default=2, help="(default %(default)s)")
    parser.add_argument("--threads", type=int, default=cores(), help="(default: all cores)")
    parser.add_argument("--only", default="", help="contenders whose name holds one of these, a,b")
    parser.add_argument("--out", type=Path, help="(default runs/benchmarks/NAME.json)")
    return parser


def chosen(contenders: Sequence[Contender], only: str) -> list[Contender]:
    """The first contender (ours), and those of the others whose name holds a part of `only`."""
    parts = [part for part in only.split(",") if part]
    return [
        contender
        for number, contender in enumerate(contenders)
        if not number or not parts or any(part in contender.name for part in parts)
    ]


def run(
    args: argparse.Namespace, contenders: Sequence[Contender], settings: Mapping[str, Any]
) -> list[Timing]:
    """`alternate` as the options say; ends the program where the first contender has failed."""
    use_cores(args.threads)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    print(f"{args.threads} threads, load of the machine at the start {load:.1f}", flush=True)
    timings = alternate(
        chosen(contenders, args.only), settings, args.rounds, args.warmup, environment(args.threads)
    )
    if timings[0].absent:
        sys.exit(f"{timings[0].name} did not run: {timings[0].absent}")
    return timings


def write(
    args: argparse.Namespace,
    name: str,
    settings: Mapping[str, Any],
    parts: Mapping[str, Sequence[Timing]],
    contenders: Sequence[Contender],
) -> Path:
    """Leaves a JSON with seconds, notes, versions and circumstances; returns where."""
    path = args.out or ROOT / "runs" / "benchmarks" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    packages = {"jax", "jaxlib", "flax", "numpy"}.union(*(c.packages for c in contenders))
    shared = environment(args.threads)
    record = {
        "command": " ".join(["python", "-m", f"benchmarks.{name}", *sys.argv[1:]]),
        "when": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": args.threads,
        "nice": os.nice(0) if hasattr(os, "nice") else None,
        "load": os.getloadavg() if hasattr(os, "getloadavg") else None,
        "allocator": shared["GLIBC_TUNABLES"],
        "versions": {package: installed(package) for package in sorted(packages)},
        "settings": dict(settings),
        "results": {part: [vars(timing) for timing in timings] for part, timings in parts.items()},
    }
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"\n{path}")
    return path
