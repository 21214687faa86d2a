"""What every command begins and ends with."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from absl import app, logging

from memalpha.compilation_cache import keep_compiled

STOPPED = "\nStopped. The same command continues after the last finished batch."


@contextmanager
def command(argv: Sequence[str], debug: bool = False) -> Iterator[None]:
    """Runs the body of a command: no stray arguments, compiled programs are kept, a quiet
    log, and errors as one line.

    `debug`: show the whole traceback. Raises app.UsageError for an argument that is no flag.
    """
    if len(argv) > 1:
        raise app.UsageError(f"unknown argument {argv[1]!r}; see --help")
    keep_compiled()
    logging.set_verbosity(logging.ERROR)  # Orbax logs much about every checkpoint
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(STOPPED)
    except (ValueError, RuntimeError, OSError) as error:
        if debug:
            raise
        sys.exit(f"{type(error).__name__}: {error}")
