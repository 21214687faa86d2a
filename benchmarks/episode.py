"""A whole training step of configs/tiny.py: the time of each stage, and the share of the host.

    python -m benchmarks.episode [--quick] [--workdir runs/tiny]

With a workdir, its trained policy writes. Without one, an untrained policy samples on the device,
but its responses are replaced by those of the scripted writer, so that parsing, memory, retrieval
and reader have realistic work. `device` is the time until sampling, memory operations, log-probs
and gradients are finished; everything else is counted for the host.
"""

import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import jax
import numpy as np

from benchmarks.timing import Contender, arguments, run, spread, write
from configs import tiny
from experiments.lib.instances import training_batches
from experiments.lib.objects import (
    build_environment,
    build_model,
    build_optimizer,
    build_tokenizer,
    copy_state,
    first_trained,
    open_trained,
)
from experiments.lib.writers import poor_writer
from experiments.train import make_learner, training_batch
from memalpha import learner, memory, sampler
from memalpha.batch import plan_micro_batches
from memalpha.episode import Clock, Writer
from memalpha.paths import user_path
from memalpha.rollout import run_episodes
from memalpha.writer import policy_writer

QUICK = "rl.instances=2,rl.rollouts=2,rl.micro_batch=4"
# Functions that are timed separately within a stage: (module, name, stage, runs on the device).
PARTS = (
    (sampler, "generate", "write", True),
    (memory, "apply_batch", "apply", True),
    (memory, "newest", "apply", True),
    (learner, "take_micro_batch", "update", False),
)


def load(settings: dict):
    """Loads config, environment, model and parameters."""
    if settings["workdir"]:
        config, policy = open_trained(settings["workdir"])
        return config, policy.env, policy.model, policy.params
    config = tiny.get_config(settings["arguments"])
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = build_tokenizer(config, Path(folder))
    return config, build_environment(config, tokenizer), *build_model(config, len(tokenizer))


def blocking(function: Callable, clock: Clock, name: str) -> Callable:
    """`function`, timed until its results are computed."""

    def timed(*args, **kwargs):
        with clock(name):
            return jax.block_until_ready(function(*args, **kwargs))

    return timed


def and_scripted(policy: Writer, scripted: Writer) -> Writer:
    def write(turns):
        policy(turns)
        return scripted(turns)

    return write


def training_step(settings: dict, rounds) -> None:
    config, env, model, params = load(settings)
    rl = config.rl
    optimizer = build_optimizer(config)
    state = copy_state(first_trained(config, params), optimizer)
    batches, key = training_batches(config), jax.random.key(0)
    scripted = poor_writer(config, env, np.random.default_rng(0))
    inner = Clock()
    with ExitStack() as patches:
        for where, name, _, _ in PARTS:
            timed = blocking(getattr(where, name), inner, name)
            patches.enter_context(mock.patch.object(where, name, timed))
        learner_of_run = make_learner(config, model, optimizer, params, params)
        for step, _ in enumerate(rounds):
            inner.clear()
            clock = Clock()
            with clock("data"):
                instances = [i for i in batches(step, rl.instances) for _ in range(rl.rollouts)]
            writer = policy_writer(
                state.params, model, env, len(instances),
                jax.random.fold_in(key, step), rl.temperature, rl.top_p, clock=clock,
            )  # fmt: skip
            if not settings["workdir"]:
                writer = and_scripted(writer, scripted)
            episodes = run_episodes(env, instances, writer, seed=step, clock=clock)
            with clock("batch"):
                batch = training_batch(config, env, episodes)
            with clock("update"):
                plan = plan_micro_batches(batch, rl.micro_batch or None)
                batch, _ = learner_of_run.advantages(state, batch, plan)
                state, metrics = learner_of_run.update(state, batch, plan, step)
                jax.block_until_ready(state)
            if float(metrics["nonfinite"]):
                raise ValueError(f"step {step}: loss or gradient is not finite")
            rounds.note(stages=shares(clock, inner))


def shares(clock: dict[str, float], inner: dict[str, float]) -> dict[str, float]:
    """Seconds of every stage; a stage on both host and device has two rows: "write, device"."""
    seconds = dict(clock)
    for stage, device in dict.fromkeys((stage, device) for _, _, stage, device in PARTS):
        part = sum(inner[name] for _, name, its_stage, _ in PARTS if its_stage == stage)
        rest = seconds.pop(stage) - part
        own, other = ("device", "host") if device else ("host", "device")
        seconds |= {f"{stage}, {own}": part, f"{stage}, {other}": rest}
    return seconds


CONTENDERS = (Contender("memalpha", "benchmarks.episode:training_step"),)


def main() -> None:
    parser = arguments(__doc__, rounds=30)
    parser.set_defaults(warmup=6)  # micro-batches of several widths have to be compiled
    parser.add_argument("--workdir", default="", help="a run whose trained policy writes")
    args = parser.parse_args()
    if args.workdir and not (user_path(args.workdir) / "config.json").is_file():
        sys.exit(f"--workdir={args.workdir} is no workdir of run_experiment.py")
    given = {
        "workdir": args.workdir and str(user_path(args.workdir).absolute()),
        "arguments": QUICK if args.quick else "",
    }
    (timing,) = run(args, CONTENDERS, given)
    low, middle, high = spread(timing.seconds)
    print(f"\nseconds of a training step: {low:.2f} / {middle:.2f} / {high:.2f}\n")
    print("| stage | share of a step, min / median / max |\n|---|---|")
    stages = [note["stages"] for note in timing.notes]
    rows = {name: [s[name] / sum(s.values()) for s in stages] for name in stages[0]}
    rows["host in all"] = [
        sum(v for k, v in s.items() if "device" not in k) / sum(s.values()) for s in stages
    ]
    for name, values in rows.items():
        print(f"| {name} | {' / '.join(f'{x:.1%}' for x in spread(values))} |")
    write(args, "episode", given, {"step": [timing]}, CONTENDERS)


if __name__ == "__main__":
    main()
