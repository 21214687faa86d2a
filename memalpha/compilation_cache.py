"""Compiled programs on disk, in one folder for all processes of a user.

JAX names an entry by a hash of the program, the compile options, XLA's flags, the version of jaxlib
(that of jax counts by the program alone) and the device, with the instruction sets of a CPU. So
versions and machines can share the folder, and it holds nothing that could change a result.
"""

from pathlib import Path

import filelock
import jax
from absl import logging

from memalpha.paths import cache_folder

MAX_BYTES = 2**30  # past this JAX drops what was not used for longest
# Before it writes, JAX reads when each entry was last used: 0.1 s for 2,000. A small run has 150.
MAX_ENTRIES = 2000
LOCK_SECONDS = 10  # as long as JAX waits for the same lock
PROGRAM, LAST_USE = "-cache", "-atime"  # ends of the two files that JAX writes for an entry


def keep_compiled() -> None:
    """Programs that JAX compiles are kept in `cache_folder()/jax`, and loaded from there.

    Where that folder cannot be used, a warning says so and programs are compiled as without it. A
    folder that is set already, as by JAX_COMPILATION_CACHE_DIR, stays as it is.
    """
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    if jax.config.jax_compilation_cache_dir:
        return
    folder = cache_folder().absolute() / "jax"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder / ".lockfile", timeout=LOCK_SECONDS):  # JAX's own
            _tidy(folder)
    except (OSError, NotImplementedError) as error:  # the latter: no locks on this file system
        logging.warning("compiled programs are not kept for the next process: %s", error)
        return
    if jax.config.jax_compilation_cache_max_size < 0:
        jax.config.update("jax_compilation_cache_max_size", MAX_BYTES)
    jax.config.update("jax_compilation_cache_dir", str(folder))


def _tidy(folder: Path) -> None:
    """Removes what a killed process left half-written, and what is more than MAX_ENTRIES.

    JAX writes the time of the last use after the program, so a program without one is not whole.
    """
    programs, times = (
        {path.name.removesuffix(end): path for path in folder.glob(f"*{end}")}
        for end in (PROGRAM, LAST_USE)
    )
    whole = sorted(programs.keys() & times.keys(), key=lambda key: _last_use(times[key]))
    kept = set(whole[-MAX_ENTRIES:])
    for files in (programs, times):
        for key in files.keys() - kept:
            files[key].unlink()


def _last_use(path: Path) -> int:
    """Nanoseconds, as JAX writes them."""
    return int.from_bytes(path.read_bytes(), "little")
