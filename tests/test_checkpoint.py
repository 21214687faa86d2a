"""Checkpoints: exact, and never worse than the last good one."""

import errno

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memalpha.checkpoint import (
    CheckpointError,
    open_checkpoints,
    restore,
    restore_params,
    save,
)
from memalpha.learner import TrainState, init_state
from memalpha.optimizer import OptimizerConfig, make_optimizer

# Orbax leaves its other reads open when one of them fails.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

OPTIMIZER = make_optimizer(OptimizerConfig(1e-2, warmup_steps=3, max_grad_norm=1.0))


def params(width=3, seed=0):
    keys = jax.random.split(jax.random.key(seed), 2)
    tree = {"w": jax.random.normal(keys[0], (5, width)), "b": jax.random.normal(keys[1], (width,))}
    return tree | {"half": tree["w"].astype(jnp.bfloat16)}


@jax.jit
def train_step(state: TrainState) -> TrainState:
    """A real optimiser update, so that moments and counts are no zeros."""
    gradients = jax.tree.map(lambda x: jnp.sin(7 * x), state.params)
    updates, opt_state = OPTIMIZER.update(gradients, state.opt_state, state.params)
    moved = jax.tree.map(lambda p, u: (p + u).astype(p.dtype), state.params, updates)
    return TrainState(moved, opt_state, state.step + 1)


def trained(steps):
    """The same state for the same number of steps, whoever asks."""
    state = init_state(params(), OPTIMIZER)
    for _ in range(steps):
        state = train_step(state)
    return state


def assert_same(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert a.dtype == b.dtype and a.shape == b.shape
        assert a.tobytes() == b.tobytes()  # to the bit


def test_a_restored_state_is_the_saved_one_and_continues_alike(tmp_path):
    state = trained(4)
    with open_checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 4, state)
    with open_checkpoints(tmp_path) as checkpoints:  # as a new process would
        step, restored = restore(checkpoints, init_state(params(seed=9), OPTIMIZER))
    assert step == 4
    assert_same(restored, state)
    moments = [x for x in jax.tree.leaves(restored.opt_state) if x.ndim]
    assert all(np.asarray(x, np.float32).any() for x in moments)
    assert_same(train_step(restored), trained(5))


def test_no_checkpoint_is_none(tmp_path):
    with open_checkpoints(tmp_path / "not" / "there" / "yet") as checkpoints:
        assert restore(checkpoints, trained(0)) is None


def test_the_newest_is_restored_and_the_last_two_stay(tmp_path):
    with open_checkpoints(tmp_path) as checkpoints:
        for steps in (1, 2, 3):
            save(checkpoints, steps, trained(steps))
        step, state = restore(checkpoints, trained(0))
        assert step == 3
        assert_same(state, trained(3))
        assert checkpoints.all_steps() == [2, 3]


def test_parameters_of_the_newest_or_the_named_step(tmp_path):
    assert restore_params(tmp_path / "none", params()) is None
    assert restore_params(tmp_path, params()) is None
    with open_checkpoints(tmp_path) as checkpoints:
        for steps in (2, 3):
            save(checkpoints, steps, trained(steps))
    for asked, steps in ((None, 3), (2, 2)):
        step, tree = restore_params(tmp_path, jax.eval_shape(params), asked)
        assert step == steps
        assert_same(tree, trained(steps).params)
    with pytest.raises(CheckpointError, match="no checkpoint of step 1; there are: 2, 3"):
        restore_params(tmp_path, params(), 1)


def test_a_failed_write_keeps_the_last_good_one(tmp_path, monkeypatch):
    with open_checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 2, trained(2))
        with monkeypatch.context() as patch:
            full = OSError(errno.ENOSPC, "No space left on device")
            patch.setattr(checkpoints, "save", lambda *a, **k: (_ for _ in ()).throw(full))
            with pytest.raises(CheckpointError) as caught:
                save(checkpoints, 4, trained(4))
        text = str(caught.value)
        assert "step 4" in text and str(tmp_path) in text and "No space left" in text
        assert "last good one is step 2" in text
        step, state = restore(checkpoints, trained(0))
        assert step == 2
        assert_same(state, trained(2))
        save(checkpoints, 4, trained(4))  # once there is room again
        assert restore(checkpoints, trained(0))[0] == 4


def test_a_failed_first_write_says_that_there_is_none(tmp_path, monkeypatch):
    with open_checkpoints(tmp_path) as checkpoints:
        full = OSError(errno.ENOSPC, "No space left on device")
        monkeypatch.setattr(checkpoints, "save", lambda *a, **k: (_ for _ in ()).throw(full))
        with pytest.raises(CheckpointError, match="last good one is step none"):
            save(checkpoints, 1, trained(1))


def test_a_template_of_another_shape_is_refused(tmp_path):
    with open_checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 1, trained(1))
        with pytest.raises(CheckpointError, match=f"step 1 in {tmp_path} could not be read"):
            restore(checkpoints, init_state(params(width=4), OPTIMIZER))
        more = init_state(params() | {"critic": jnp.ones(3)}, OPTIMIZER)
        with pytest.raises(CheckpointError, match="could not be read"):
            restore(checkpoints, more)


def test_a_damaged_checkpoint_is_an_error_not_a_fresh_start(tmp_path):
    with open_checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 1, trained(1))
    for path in (tmp_path / "1").rglob("d/*"):
        path.write_bytes(b"")
    told = f"step 1 in .* could not be read.*remove {tmp_path}/1 to continue from the first step"
    with open_checkpoints(tmp_path) as checkpoints:
        with pytest.raises(CheckpointError, match=f"(?s){told}"):
            restore(checkpoints, trained(0))


def lose(folder, step):
    """What a sync leaves that broke off before the first file: folders without one."""
    for path in (folder / str(step)).rglob("*"):
        if path.is_file():
            path.unlink()


def test_without_files_in_the_newest_the_one_before_is_used_with_a_warning(tmp_path):
    with open_checkpoints(tmp_path) as checkpoints:
        for steps in (1, 2):
            save(checkpoints, steps, trained(steps))
    lose(tmp_path, 2)
    with pytest.warns(UserWarning, match=f"skipping {tmp_path}/2: no file there"):
        step, tree = restore_params(tmp_path, params())
    assert step == 1 and (tmp_path / "2").is_dir()  # who only reads removes nothing
    assert_same(tree, trained(1).params)
    with pytest.warns(UserWarning, match=f"skipping {tmp_path}/2: no file there"):
        checkpoints = open_checkpoints(tmp_path)
    with checkpoints:
        step, state = restore(checkpoints, trained(0))
        assert step == 1
        save(checkpoints, 2, train_step(state))  # the step is taken, and saved, once more
        assert_same(restore(checkpoints, trained(0)), (2, trained(2)))


def test_without_a_file_in_any_checkpoint_the_folders_to_remove_are_named(tmp_path):
    with open_checkpoints(tmp_path) as checkpoints:
        for steps in (1, 2):
            save(checkpoints, steps, trained(steps))
    lose(tmp_path, 1), lose(tmp_path, 2)
    told = f"no file in any .*{tmp_path}/1, {tmp_path}/2.*remove these folders"
    for load in (open_checkpoints, lambda folder: restore_params(folder, params())):
        with pytest.raises(CheckpointError, match=told):
            load(tmp_path)
    assert (tmp_path / "1").is_dir() and (tmp_path / "2").is_dir()


@pytest.mark.parametrize(
    "left", ["_CHECKPOINT_METADATA", "default/_METADATA", "nothing of default"]
)
def test_a_half_written_newest_is_an_error_that_says_what_to_do(tmp_path, left):
    """Not a fall-back: that would silently take steps again whose state may be elsewhere."""
    with open_checkpoints(tmp_path) as checkpoints:
        for steps in (1, 2):
            save(checkpoints, steps, trained(steps))
    for path in sorted((tmp_path / "2").rglob("*"), reverse=True):
        inside = path.relative_to(tmp_path / "2").as_posix()
        lost = inside.startswith("default") if left == "nothing of default" else inside != left
        if lost and path.is_file():
            path.unlink()
    told = f"(?s)step 2 in .* could not be read.*remove {tmp_path}/2 to continue from step 1"
    with open_checkpoints(tmp_path) as checkpoints:
        with pytest.raises(CheckpointError, match=told):
            restore(checkpoints, trained(0))
    with pytest.raises(CheckpointError, match=told):
        restore_params(tmp_path, params())
