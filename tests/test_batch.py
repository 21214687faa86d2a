"""Reshapes of a batch keep every token that counts."""

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memalpha.batch import (
    Batch,
    MicroBatch,
    Rows,
    Targets,
    fill,
    from_tokens,
    lean,
    plan_micro_batches,
    row_bucket,
    sequence,
    take,
    take_micro_batch,
    token_mask,
)


def small() -> Batch:
    batch = from_tokens([[5, 6], [7], [8, 9, 3]], [[1, 2], [3, 4, 5], [6]], 5, 7)
    return batch.with_targets(
        sample_logps=-np.arange(21, dtype=np.float32).reshape(3, 7),
        advantages=np.array([0.3, 0.6, 0.9], np.float32),
    ).with_rows(
        rewards={"r1": np.array([0.1, 0.2, 0.3], np.float32)},
        instance=np.array([4, 4, 5], np.int32),
        episode=np.arange(3, dtype=np.int32),
        chunk=np.zeros(3, np.int32),
    )


def test_prompts_meet_completions():
    tokens, positions, mask = sequence(small().tokens)
    assert tokens[0].tolist() == [0, 0, 0, 5, 6, 1, 2, 0, 0, 0, 0, 0]
    assert mask[0].tolist() == [False] * 3 + [True] * 4 + [False] * 5
    assert positions[0].tolist() == [0, 0, 0, 0, 1, 2, 3, 3, 3, 3, 3, 3]


def test_from_tokens_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="prompt of row 1 has 3 tokens, the axis holds 2"):
        from_tokens([[1], [1, 2, 3]], [[1], [1]], prompt_length=2)
    with pytest.raises(ValueError, match="2 prompts but 1 completions"):
        from_tokens([[1], [2]], [[1]])


def test_fill_adds_rows_that_do_not_count():
    batch = fill(small(), 5)
    assert {x.shape[0] for x in jax.tree.leaves(batch)} == {5}
    assert batch.rows.valid.tolist() == [True] * 3 + [False] * 2
    assert batch.rows.instance.tolist() == [4, 4, 5, -1, -1]
    assert not batch.tokens.prompt_mask[3:].any() and not batch.tokens.completion_mask[3:].any()
    rewards = batch.rows.rewards["r1"]
    assert rewards.dtype == np.float32 and rewards[2] == np.float32(0.3)
    assert batch.targets.ref_logps is None
    with pytest.raises(ValueError, match="3 rows cannot be filled to 2"):
        fill(small(), 2)


def test_fill_keeps_rows_that_were_invalid():
    batch = small().with_rows(valid=np.array([True, False, True]))
    assert fill(batch, 4).rows.valid.tolist() == [True, False, True, False]
    assert token_mask(batch).sum(axis=1).tolist() == [2, 0, 1]


def test_micro_batches_hold_every_row_once_without_the_columns_they_do_not_use():
    prompts, completions = [[1] * n for n in (2, 8, 3, 5)], [[2] * n for n in (4, 1, 1, 8)]
    whole = from_tokens(prompts, completions, 8, 8).with_targets(
        advantages=np.arange(4, dtype=np.float32),
        values=np.arange(32, dtype=np.float32).reshape(4, 8),
    )
    plan = plan_micro_batches(whole, 2)
    # Rows 0 and 2 use at most a half of P, and of T.
    assert [micro.rows.tolist() for micro in plan] == [[2, 0], [3, 1]]
    assert [(micro.prompt, micro.completion) for micro in plan] == [(4, 4), (8, 8)]
    for micro in plan:
        part, rows = take_micro_batch(whole, micro), micro.rows
        values = part.targets.values
        assert (part.targets.advantages == whole.targets.advantages[rows]).all()
        assert (values == whole.targets.values[rows, : values.shape[1]]).all()
        for field in ("prompt", "completion"):
            mask = getattr(part.tokens, f"{field}_mask")
            whole_mask = getattr(whole.tokens, f"{field}_mask")[rows]
            assert mask.sum() == whole_mask.sum()
            ids, whole_ids = getattr(part.tokens, field), getattr(whole.tokens, field)[rows]
            assert (ids[mask] == whole_ids[whole_mask]).all()


def test_every_target_is_cut_to_the_columns_of_a_micro_batch():
    """Whatever field is added to `Targets`, no list of names has to be told."""
    names = [field.name for field in dataclasses.fields(Targets)]
    targets = Targets(**{name: np.zeros((3, 7), np.float32) for name in names})
    part = take_micro_batch(small().replace(targets=targets), MicroBatch(np.array([2]), 4, 3))
    shapes = {name: getattr(part.targets, name).shape for name in names}
    assert shapes == dict.fromkeys(names, (1, 3))


def test_micro_batches_of_odd_axes_and_of_empty_rows():
    (micro,) = plan_micro_batches(small(), None)
    assert sorted(micro.rows) == [0, 1, 2]
    assert (micro.prompt, micro.completion) == (4, 4)  # 3/4 of 5 and 1/2 of 7
    empty = from_tokens([[5, 6], [7], [8, 9, 3]], [[], [], []], 5, 7)
    (micro,) = plan_micro_batches(empty, None)
    assert micro.completion == 4


def test_a_lean_batch_has_all_that_the_loss_reads():
    whole = small().with_rows(valid=np.array([True, False, True]))
    batch = lean(whole)
    assert batch.tokens is whole.tokens and batch.targets is whole.targets
    assert batch.rows == Rows(valid=whole.rows.valid)


@pytest.mark.parametrize(
    "broken",
    [
        dict(completion=np.zeros(3, np.int32)),
        dict(completion=np.zeros((3, 7), np.float32)),
        dict(completion_mask=np.ones((3, 7), np.int32)),
        dict(prompt_mask=np.ones((3, 4), bool)),
        dict(prompt=np.zeros((2, 5), np.int32), prompt_mask=np.zeros((2, 5), bool)),
    ],
)
def test_tokens_of_a_wrong_rank_type_or_shape_are_refused(broken):
    batch = small()
    batch = batch.replace(tokens=batch.tokens.replace(**broken))
    for call in (
        lambda: sequence(batch.tokens),
        lambda: token_mask(batch),
        lambda: fill(batch, 4),
        lambda: plan_micro_batches(batch, None),
    ):
        with pytest.raises(AssertionError):
            call()


def test_a_valid_that_is_no_mask_and_row_numbers_that_are_none_are_refused():
    with pytest.raises(AssertionError):
        token_mask(small().with_rows(valid=np.array([1, 0, 1])))
    with pytest.raises(AssertionError):
        take(small(), np.array([0.0, 1.0]))


@pytest.mark.parametrize("micro_batch", [0, 4, 7])
def test_micro_batches_want_a_divisor(micro_batch):
    with pytest.raises(ValueError, match=f"micro_batch={micro_batch} does not divide"):
        plan_micro_batches(fill(small(), 6), micro_batch)


def test_take_picks_rows():
    batch = take(small(), np.array([2, 0]))
    assert batch.rows.instance.tolist() == [5, 4]
    assert batch.tokens.completion[1].tolist() == small().tokens.completion[0].tolist()


def test_row_buckets_by_hand():
    sizes = [row_bucket(n, 40) for n in (1, 5, 6, 10, 11, 20, 21, 40)]
    assert sizes == [5, 5, 10, 10, 20, 20, 40, 40]
    assert [row_bucket(n, 3) for n in (0, 1, 2, 3)] == [1, 1, 2, 3]
    assert row_bucket(1, 1) == 1
    assert [row_bucket(n, 24, parts=4) for n in (1, 5, 9, 13)] == [4, 8, 12, 24]


@settings(max_examples=50, deadline=None)
@given(rows=st.integers(1, 300), parts=st.integers(1, 8), data=st.data())
def test_a_row_bucket_holds_its_rows_in_whole_parts(rows, parts, data):
    rows = parts * rows
    count = data.draw(st.integers(0, rows))
    size = row_bucket(count, rows, parts)
    assert count <= size <= rows and size % parts == 0
    assert len({row_bucket(n, rows, parts) for n in range(rows + 1)}) <= 4
