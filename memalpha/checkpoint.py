"""Checkpoints with Orbax: everything needed to continue bit for bit.

Random keys and data are derived from (seed, step), so the train state is all there is to save.
A save is written aside and renamed when it is whole; it has ended when `save` returns.
"""

from pathlib import Path

import jax
import orbax.checkpoint as ocp

from memalpha.learner import TrainState
from memalpha.model import Params
from memalpha.paths import user_path


class CheckpointError(RuntimeError):
    """A checkpoint that could not be written or read; says which, why and what is still there."""


def open_checkpoints(folder: str | Path, keep: int = 2) -> ocp.CheckpointManager:
    """A manager of the checkpoints in `folder` (made if missing), of which the last `keep` stay.

    Use it as a context manager, or call `close()`.
    """
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep, create=True, enable_async_checkpointing=False
    )
    return ocp.CheckpointManager(user_path(folder).absolute(), options=options)


def save(manager: ocp.CheckpointManager, step: int, state: TrainState) -> None:
    """Saves the state as of `step` finished steps; returns when it is on disk.

    Raises:
        CheckpointError: it could not be written (full disk, no permission); earlier ones stay.
    """
    try:
        manager.save(step, args=ocp.args.StandardSave(state), force=True)
        manager.wait_until_finished()
    except Exception as error:  # Orbax wraps what the file system says in errors of many types
        raise CheckpointError(
            f"the checkpoint of step {step} could not be written to {manager.directory}: {error}."
            f" The last good one is step {_latest(manager, below=step)}; free some space and run"
            " the same command to continue from there"
        ) from error


def restore(
    manager: ocp.CheckpointManager, template: TrainState, step: int | None = None
) -> tuple[int, TrainState] | None:
    """The newest checkpoint (or that of `step`) in the form of `template`; None if there is none.

    Raises:
        CheckpointError: it does not fit the template, or cannot be read.
    """
    step = manager.latest_step() if step is None else step
    if step is None:
        return None
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, template)
    try:
        return step, manager.restore(step, args=ocp.args.StandardRestore(abstract))
    except Exception as error:
        raise CheckpointError(
            f"the checkpoint of step {step} in {manager.directory} could not be read: {error}"
        ) from error


def restore_params(
    folder: str | Path, template: Params, step: int | None = None
) -> tuple[int, Params] | None:
    """Step and parameters of the newest checkpoint in `folder`, or that of `step`, without the
    optimiser state (which is not read) and without touching the folder; None if there is none.

    `template`: parameters, or their shapes (`jax.eval_shape`). Raises CheckpointError as `restore`,
    and for a `step` that is not kept.
    """
    folder = user_path(folder).absolute()
    if not folder.is_dir():
        return None
    options = ocp.CheckpointManagerOptions(create=False, read_only=True)
    with ocp.CheckpointManager(folder, options=options) as manager:
        kept = manager.all_steps()
        step = max(kept, default=None) if step is None else step
        if step is None:
            return None
        if step not in kept:
            there = ", ".join(map(str, sorted(kept))) or "none"
            raise CheckpointError(f"{folder} has no checkpoint of step {step}; there are: {there}")
        wanted = {"params": jax.tree.map(ocp.utils.to_shape_dtype_struct, template)}
        how = ocp.checkpoint_utils.construct_restore_args(wanted)
        arguments = ocp.args.PyTreeRestore(item=wanted, restore_args=how, partial_restore=True)
        try:
            return step, manager.restore(step, args=arguments)["params"]
        except Exception as error:
            raise CheckpointError(
                f"the checkpoint of step {step} in {folder} could not be read: {error}"
            ) from error


def _latest(manager: ocp.CheckpointManager, below: int) -> int | str:
    return max((s for s in manager.all_steps() if s < below), default="none")
