"""TensorBoard events of a run, without TensorFlow.

    python run_experiment.py --tensorboard --config=configs/tiny.py --workdir=runs/tiny
    tensorboard --logdir=runs/tiny/tensorboard

Every .jsonl file of steps in the workdir becomes a run of the same name in TensorBoard. At every
start the events are written again from the lines of these files, so that a resumed run has no
duplicate steps and a run that was started without the flag is complete.
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
    """The events of the metrics file `path`; `lines` are its existing lines."""

    def __init__(self, path: Path, lines: Iterable[Mapping[str, float]]):
        own = path.parent / FOLDER / path.stem
        shutil.rmtree(own, ignore_errors=True)
        own.mkdir(parents=True)
        self.events = EventsWriter(
            str(own / "events")
        )  # SummaryWriter would lose its queue when killed
        for line in lines:
            self.write(line["step"], line)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes one scalar per metric and flushes the file."""
        names = sorted(metrics.keys() - {"step"})
        values = [Summary.Value(tag=name, simple_value=metrics[name]) for name in names]
        event = Event(wall_time=time.time(), step=step, summary=Summary(value=values))
        self.events.write_event(event)
        self.events.flush()
