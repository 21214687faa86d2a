"""Checkpoints with Orbax: everything needed to continue bit for bit.

Random keys and data are derived from (seed, step), so the train state is all there is to save.
A save is written aside and renamed when it is complete; it has ended when `save` returns.

Two kinds of broken checkpoint folder are told apart. One without any file (a copy or sync that
broke off before the first one) never held a state: it is skipped with a warning, and training
continues from the checkpoint before it. One with some of its files, or with damaged ones, is an
error: to fall back there would silently repeat steps whose state may still be saved elsewhere.
"""

import shutil
import warnings
from pathlib import Path

import jax
import orbax.checkpoint as ocp

from memalpha.learner import TrainState
from memalpha.model import Params
from memalpha.paths import user_path

MAX_TO_KEEP = 2  # checkpoints: the newest, and the one before in case that the newest breaks


class CheckpointError(RuntimeError):
    """A checkpoint that could not be written or read; says which, why and what to do."""


def open_checkpoints(folder: str | Path) -> ocp.CheckpointManager:
    """A manager of the checkpoints in `folder` (created if missing), of which the last two stay.

    Use it as a context manager, or call `close()`. Checkpoint folders without any file are removed,
    with a warning that names them, so that their steps can be saved again.

    Raises:
        CheckpointError: there are checkpoint folders, and none of them holds a file.
    """
    folder = user_path(folder).absolute()
    for empty in _empty_steps(folder):
        shutil.rmtree(empty, ignore_errors=True)  # another process may have been faster
    options = ocp.CheckpointManagerOptions(
        max_to_keep=MAX_TO_KEEP, create=True, enable_async_checkpointing=False
    )
    return ocp.CheckpointManager(folder, options=options)


def save(manager: ocp.CheckpointManager, step: int, state: TrainState) -> None:
    """Saves the state after `step` finished steps; returns when it is on disk.

    Raises:
        CheckpointError: it could not be written (full disk, no permission); earlier ones stay.
    """
    try:
        manager.save(step, args=ocp.args.StandardSave(state), force=True)
        manager.wait_until_finished()
    except Exception as error:  # Orbax raises errors of many types for those of the file system
        raise CheckpointError(
            f"the checkpoint of step {step} could not be written to {manager.directory}: {error}."
            f" The last good one is step {_latest(manager, below=step)}; free some space and run"
            " the same command to continue from there"
        ) from error


def restore(manager: ocp.CheckpointManager, template: TrainState) -> tuple[int, TrainState] | None:
    """Step and state of the newest checkpoint, in the form of `template`; None if there is none.

    Raises:
        CheckpointError: it does not fit the template, or cannot be read.
    """
    step = manager.latest_step()
    if step is None:
        return None
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, template)
    try:
        return step, manager.restore(step, args=ocp.args.StandardRestore(abstract))
    except Exception as error:
        raise CheckpointError(_unreadable(manager, step, error)) from error


def restore_params(
    folder: str | Path, template: Params, step: int | None = None
) -> tuple[int, Params] | None:
    """Step and parameters of the newest checkpoint in `folder`, or that of `step`, without the
    optimiser state (which is not read) and without touching the folder; None if there is none.

    `template`: parameters, or their shapes (`jax.eval_shape`). Checkpoint folders without any file
    are skipped, with a warning that names them.

    Raises:
        CheckpointError: as `restore` and `open_checkpoints`, or there is no checkpoint of `step`.
    """
    folder = user_path(folder).absolute()
    if not folder.is_dir():
        return None
    empty = {path.name for path in _empty_steps(folder)}
    options = ocp.CheckpointManagerOptions(create=False, read_only=True)
    with ocp.CheckpointManager(folder, options=options) as manager:
        steps = sorted(number for number in manager.all_steps() if str(number) not in empty)
        step = max(steps, default=None) if step is None else step
        if step is None:
            return None
        if step not in steps:
            listed = ", ".join(map(str, steps)) or "none"
            raise CheckpointError(f"{folder} has no checkpoint of step {step}; there are: {listed}")
        item = {"params": jax.tree.map(ocp.utils.to_shape_dtype_struct, template)}
        arguments = ocp.args.PyTreeRestore(
            item=item,
            restore_args=ocp.checkpoint_utils.construct_restore_args(item),
            partial_restore=True,
        )
        try:
            return step, manager.restore(step, args=arguments)["params"]
        except Exception as error:
            raise CheckpointError(_unreadable(manager, step, error)) from error


def _empty_steps(folder: Path) -> list[Path]:
    """The checkpoint folders without any file; warns of them if there are others.

    Raises:
        CheckpointError: there are no others.
    """
    steps = [path for path in folder.glob("*") if path.name.isdigit() and path.is_dir()]
    empty = [path for path in steps if not any(child.is_file() for child in path.rglob("*"))]
    if not empty:
        return []
    listed = ", ".join(map(str, sorted(empty)))
    if len(empty) == len(steps):
        raise CheckpointError(
            f"no file in any checkpoint folder, perhaps a copy that broke off: {listed}. Copy the"
            " checkpoints again; or remove these folders to train from the first step"
        )
    warnings.warn(
        f"skipping {listed}: no file there, perhaps a copy that broke off",
        stacklevel=3,
    )
    return empty


def _unreadable(manager: ocp.CheckpointManager, step: int, error: Exception) -> str:
    """The error message for a checkpoint with files that cannot be read."""
    path, earlier = Path(manager.directory) / str(step), _latest(manager, below=step)
    start = "from the first step" if earlier == "none" else f"from step {earlier}"
    return (
        f"the checkpoint of step {step} in {manager.directory} could not be read: {error}. Either"
        " it is of another model or optimiser, then use the config that it was saved with; or it is"
        f" damaged, then copy it again, or remove {path} to continue {start}"
    )


def _latest(manager: ocp.CheckpointManager, below: int) -> int | str:
    return max((s for s in manager.all_steps() if s < below), default="none")
