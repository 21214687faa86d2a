"""Train a memory writer and see what it learned.

    python run_experiment.py --config=configs/tiny.py --workdir=runs/tiny

Warm start, reinforcement learning, then a table against simpler memories, the learning curves and
one memory before and after. Ends with summary.json in the workdir. Stopped at any moment, the same
command continues from the last checkpoint. Fields of a config can be set on the command line
(`--config.rl.steps=100`) or as arguments of the config (`configs/tiny.py:smoke,seed=1`).
"""

import ast
import os
import sys
from pathlib import Path

ALLOCATOR = "glibc.malloc.hugetlb=1"  # huge pages: JAX on CPU runs 1.0 to 1.9 times as fast


def _restart_with_huge_pages() -> None:
    """The setting is read when a process starts, so start again with it; harmless elsewhere."""
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = ALLOCATOR
        os.execv(sys.executable, [sys.executable, *sys.argv])


if __name__ == "__main__":
    _restart_with_huge_pages()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # "PyTorch was not found"

from absl import app, flags, logging  # noqa: E402
from ml_collections import config_flags  # noqa: E402

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file and its arguments, such as configs/tiny.py:smoke."
)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; made if it is not there.")


def list_configs() -> str:
    """A line a config: its name and the first line of its docstring."""
    lines = []
    for path in sorted(Path(__file__).parent.glob("configs/[!_]*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if any(getattr(node, "name", "") == "get_config" for node in tree.body):
            about = (ast.get_docstring(tree) or "").partition("\n")[0]
            lines.append(f"    configs/{path.name}\n        {about}")
    return "\n".join(lines)


def join_processes(how: str) -> None:
    """Starts `jax.distributed`; ends the program where `how` is neither auto nor three parts."""
    import jax

    address, *numbers = how.split(",")
    if how == "auto":
        jax.distributed.initialize()
    elif len(numbers) == 2 and all(number.isdecimal() for number in numbers):
        jax.distributed.initialize(address, *map(int, numbers))
    else:
        sys.exit(f"--distributed={how}: give auto or HOST:PORT,COUNT,NUMBER")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown argument {argv[1]!r}; see --help")
    try:
        config = CONFIG.value
        config.keys()  # a file that could not be read is an error only where it is used
    except OSError as error:
        sys.exit(f"--config: {error}")
    if not FLAGS.debug:
        logging.set_verbosity(logging.WARNING)  # Orbax tells much of every checkpoint
    if FLAGS.distributed:
        join_processes(FLAGS.distributed)
    from experiments import main_job
    from experiments.lib.needs import advice
    from memalpha.compilation_cache import keep_compiled

    keep_compiled()
    try:
        main_job.run(config, WORKDIR.value, FLAGS.tensorboard)
    except KeyboardInterrupt:
        sys.exit("\nStopped. The same command continues from the last checkpoint.")
    except (ValueError, RuntimeError, OSError) as error:
        if FLAGS.debug:
            raise
        sys.exit(f"{type(error).__name__}: {error}{advice(error)}")


flags.DEFINE_string(
    "distributed",
    None,
    "One of several processes of a run: auto, where JAX finds its cluster (Slurm, MPI, TPU), or"
    " HOST:PORT,COUNT,NUMBER: of the first process, how many, and which this is.",
)
flags.DEFINE_bool("tensorboard", False, "Write TensorBoard events too, in WORKDIR/tensorboard.")
flags.DEFINE_bool("debug", False, "Show the whole traceback of an error.")
FLAGS = flags.FLAGS

if __name__ == "__main__":
    __doc__ += (
        f"\nConfigs; each begins with what it is and the arguments it takes:\n{list_configs()}\n"
    )
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main)
