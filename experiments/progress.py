"""Progress on the terminal: a live bar where there is one, else a plain line now and then."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

console = Console(highlight=False)
if not console.is_terminal:
    console.width = 140  # a file or a pipe: tables whole, whatever the default says
LINES = 20  # plain lines a stage, where nobody watches a bar


class Reporter:
    """`reporter(step, text)` after every step."""

    def __init__(self, title: str, total: int, start: int = 0):
        self.title, self.total, self.first = title, total, start
        self.every = max(1, total // LINES)
        self.said = start
        self.began = time.monotonic()
        self.bar = None
        if console.is_terminal and sys.stdout.isatty():
            self.bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[text]}"),
                TimeRemainingColumn(),
                console=console,
            )
            self.task = self.bar.add_task(title, total=total, completed=start, text="")
            self.bar.start()

    def __call__(self, done: int, text: str = "") -> None:
        if self.bar:
            self.bar.update(self.task, completed=done, text=text)
        elif done > self.said and (done == self.total or done - self.said >= self.every):
            self.said = done
            pace = (time.monotonic() - self.began) / max(1, done - self.first)
            left = pace * (self.total - done)
            console.print(f"{self.title} {done}/{self.total}  {text}  {left:.0f} s left")

    def close(self) -> None:
        if self.bar:
            self.bar.stop()


@contextmanager
def progress(title: str, total: int, start: int = 0) -> Iterator[Reporter]:
    reporter = Reporter(title, total, start)
    try:
        yield reporter
    finally:
        reporter.close()
