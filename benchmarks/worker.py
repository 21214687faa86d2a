"""The process of one contender: `python -m benchmarks.worker MODULE:FUNCTION SETTINGS`.

SETTINGS is a JSON object, the contender's first argument. Started by `benchmarks.timing`. Messages
are lines of JSON on what was standard output; what libraries print goes to standard error.
"""

import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any


class Rounds:
    """`for _ in rounds: work()`: waits to be told to go, and reports the seconds since then when it
    is asked again. `next(rounds)` does for a trainer that owns its loop, see `turn`.

    prepare: called before the clock starts; what it returns is the item.
    share: the fraction of the work that the round did; its seconds are divided by this.
    """

    def __init__(self, told, channel):
        self._told, self._channel = told, channel
        self._began: tuple[float, float] | None = None
        self._notes: dict[str, Any] = {}
        self.prepare: Callable[[], Any] = lambda: None
        self.share = 1.0

    def note(self, **facts: Any) -> None:
        """Records a note with the time of this round."""
        self._notes |= facts

    def __iter__(self):
        return self

    def __next__(self) -> Any:
        message: dict[str, Any] = {"ready": True}
        if self._began is not None:
            now = time.perf_counter(), time.process_time()
            seconds, cpu = (
                (end - begin) / self.share for begin, end in zip(self._began, now, strict=True)
            )
            message = {"seconds": seconds, "cpu_seconds": cpu, "notes": self._notes}
        self._channel.write(json.dumps(message) + "\n")
        self._channel.flush()
        self._notes = {}
        if not self._told.readline():
            raise StopIteration
        item = self.prepare()
        self._began = time.perf_counter(), time.process_time()
        return item

    def turn(self) -> None:
        """As `next`, for a callback of a trainer: nothing there could end the loop, so the process
        ends with the last round."""
        try:
            next(self)
        except StopIteration:
            leave(0)


def leave(code: int) -> None:
    """Ends the process at once: a trainer stopped inside its loop may leave waiting threads."""
    sys.stderr.flush()
    os._exit(code)


def main() -> None:
    module, function = sys.argv[1].split(":")
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    contender = getattr(importlib.import_module(module), function)
    try:
        contender(json.loads(sys.argv[2]), Rounds(sys.stdin, channel))
    except Exception:
        traceback.print_exc()
        leave(1)
    leave(0)


if __name__ == "__main__":
    main()
