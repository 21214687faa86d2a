"""Progress: a live bar on a terminal, otherwise a plain line now and then."""

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

console = Console(highlight=False)
if not console.is_terminal:
    console.width = 140  # for files and pipes: do not wrap tables at the default width
LINES = 20  # plain lines per stage without a terminal
WORRIES = {  # metric -> the problem that a value other than 0 means
    "nonfinite": "a loss or gradient that was not finite",
    "nan_logps": "a log-prob that was not a number",
    "failed": "episodes that the reader left unjudged",
    "cut_chunks": "chunks too long for the prompt, which are read in pieces",
}
CUT = "more than half of the responses cut by their limit"


def worries(metrics: Mapping[str, float]) -> list[str]:
    """Warnings about a step for someone who watches the run; empty if there is no problem."""
    texts = [text for name, text in WORRIES.items() if metrics.get(name)]
    return texts + ([CUT] if metrics.get("unfinished", 0) > 0.5 else [])


def duration(seconds: float) -> str:
    """30 s, 12 min, 3.5 h."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


class Reporter:
    """`reporter(step, text)` after every step."""

    def __init__(self, title: str, total: int, start: int = 0):
        self.title, self.total, self.first = title, total, start
        self.every = max(1, total // LINES)
        self.printed = start
        self.began = time.monotonic()
        self.warned: set[str] = set()
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
        elif done > self.printed and (done == self.total or done - self.printed >= self.every):
            self.printed = done
            pace = (time.monotonic() - self.began) / max(1, done - self.first)
            left = pace * (self.total - done)
            console.print(f"{self.title} {done}/{self.total}  {text}  {duration(left)} left")

    def warn(self, step: int, *texts: str) -> None:
        """Prints each warning once, at its first step; the metrics count the others."""
        for text in texts:
            if text not in self.warned:
                self.warned.add(text)
                line = f"warning: {self.title}, step {step}: {text}"
                console.print(line, style="yellow", markup=False)

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
