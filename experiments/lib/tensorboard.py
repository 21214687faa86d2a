"""TensorBoard events of a run, without TensorFlow.

    python run_experiment.py --tensorboard --config=configs/tiny.py --workdir=runs/tiny
    tensorboard --logdir=runs/tiny/tensorboard

Every .jsonl file of steps in the workdir is a run there, under the same names. The files are the
truth: at every start the events are made anew from the lines that stand, so that a resumed run has
no step twice, and one that was begun without the flag is shown whole.
"""

import shutil
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary

FOLDER = "tensorboard"


class EventLog:
    """The events that go with the metrics file `path`; they begin with `lines`."""

    def __init__(self, path: Path, lines: Iterable[Mapping[str, float]]):
        own = path.parent / FOLDER / path.stem
        shutil.rmtree(own, ignore_errors=True)
        own.mkdir(parents=True)
        self.events = EventsWriter(
            str(own / "events")
        )  # SummaryWriter has a queue: a kill loses it
        for line in lines:
            self.write(line["step"], line)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """One scalar a metric; in the file when this returns."""
        names = sorted(metrics.keys() - {"step"})
        values = [Summary.Value(tag=name, simple_value=metrics[name]) for name in names]
        event = Event(wall_time=time.time(), step=step, summary=Summary(value=values))
        self.events.write_event(event)
        self.events.flush()
