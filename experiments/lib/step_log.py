"""Everything around a training step: progress bar, logs, validation and checkpoints."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import jax
from ml_collections import ConfigDict

from experiments.lib.compilations import compilations
from experiments.lib.measure import summarise
from experiments.lib.progress import progress, worries
from experiments.lib.workdir import MetricsLog, own_folder
from memalpha.checkpoint import open_checkpoints, restore, save
from memalpha.episode import Clock, Episode
from memalpha.learner import TrainState
from memalpha.pieces import cut_chunks


class NonFiniteError(RuntimeError):
    """Loss or gradient was NaN or infinite."""


class StepLog:
    """The logs and checkpoints of the stage "rl" of a run; a context manager.

    `validate`: state -> metrics, called every `config.eval.every` steps and after the last.
    `events`: write TensorBoard events beside the logs.
    """

    def __init__(
        self,
        config: ConfigDict,
        workdir: Path,
        validate: Callable[[TrainState], dict[str, float]],
        events: bool,
    ):
        self._config, self._workdir = config, workdir
        self._validate, self._events = validate, events
        self._stack = ExitStack()

    def __enter__(self) -> "StepLog":
        folder = self._workdir / "checkpoints" / "rl"
        self._checkpoints = self._stack.enter_context(open_checkpoints(folder))
        return self

    def __exit__(self, *error) -> None:
        self._stack.__exit__(*error)

    def restore(self, state: TrainState) -> tuple[TrainState, int]:
        """The state of the last checkpoint, or `state` without one, and the first step to run.

        The first step is the number of the checkpoint; a resumed run needs no other position. Lines
        of the logs from that step on are dropped, because those steps are run again.
        """
        checkpoint = restore(self._checkpoints, state)
        first, state = (0, state) if checkpoint is None else checkpoint
        folder = own_folder(self._workdir)
        self._metrics = MetricsLog(folder / "metrics.jsonl", first, self._events)
        self._timing = MetricsLog(folder / "timing.jsonl", first, self._events)
        self._bar = self._stack.enter_context(progress("train", self._config.rl.steps, first))
        return state, first

    def start(self) -> Clock:
        """Begins a step; returns the clock for timing its stages."""
        self._began, self._compiled = time.perf_counter(), compilations()
        self._clock = Clock()
        return self._clock

    def finish(
        self,
        step: int,
        state: TrainState,
        metrics: Mapping[str, jax.Array],
        episodes: Sequence[Episode],
    ) -> None:
        """Validates if it is due, writes both logs, then saves a checkpoint if it is due.

        Raises NonFiniteError, after the metrics were written, if loss or gradient was not finite.
        """
        is_last = step + 1 == self._config.rl.steps
        line = {k: float(v) for k, v in jax.device_get(metrics).items()} | summarise(episodes)
        line["cut_chunks"] = float(cut_chunks(episodes))
        if line["nonfinite"]:
            self._metrics.write(step, line)
        check_finite(line, step, "train")
        if is_last or (step + 1) % self._config.eval.every == 0:
            with self._clock("validate"):
                line |= self._validate(state)
        self._metrics.write(step, line)
        seconds = time.perf_counter() - self._began
        counts = {"step_seconds": seconds, "compilations": compilations() - self._compiled}
        self._timing.write(step, dict(self._clock) | counts)
        if is_last or (step + 1) % self._config.checkpoint_every == 0:
            save(self._checkpoints, step + 1, state)
        self._bar.warn(step, *worries(line))
        self._bar(step + 1, describe_step(line, seconds - self._clock["validate"]))


def describe_step(metrics: Mapping[str, float], seconds: float) -> str:
    """For the terminal: rewards, and trained tokens per second of a step without validation."""
    rewards = "  ".join(f"{name} {metrics[name]:.2f}" for name in ("r1", "r2", "r3", "r4"))
    return f"{rewards}  {metrics['tokens'] / seconds:.0f} tokens/s"


def check_finite(metrics: Mapping[str, float], step: int, stage: str) -> None:
    """Raises NonFiniteError, which names the step, for a step whose update was skipped."""
    if metrics.get("nonfinite"):
        raise NonFiniteError(
            f"{stage}: loss or gradient was not finite at step {step} (loss {metrics['loss']},"
            f" gradient norm {metrics['grad_norm']}). The update was not applied and the last"
            " checkpoint is kept: lower the learning rate, or look at the metrics before that step"
        )
