"""Reshapes of a batch keep every token that counts."""

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memalpha.batch import (
    Batch,
    fill,
    from_tokens,
    micro_batches,
    row_bucket,
    sequence,
    take,
    token_mask,
)


def small() -> Batch:
    batch = from_tokens([[5, 6], [7], [8, 9, 3]], [[1, 2], [3, 4, 5], [6]], 5, 7)
    return batch.replace(
        sample_logps=-np.arange(21, dtype=np.float32).reshape(3, 7),
        advantages=np.array([0.3, 0.6, 0.9], np.float32),
        rewards={"r1": np.array([0.1, 0.2, 0.3], np.float32)},
        group=np.array([4, 4, 5], np.int32),
        episode=np.arange(3, dtype=np.int32),
        chunk=np.zeros(3, np.int32),
    )


def test_prompts_meet_completions():
    tokens, positions, mask = sequence(small())
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
    assert batch.valid.tolist() == [True] * 3 + [False] * 2
    assert batch.group.tolist() == [4, 4, 5, -1, -1]
    assert not batch.prompt_mask[3:].any() and not batch.completion_mask[3:].any()
    assert batch.rewards["r1"].dtype == np.float32 and batch.rewards["r1"][2] == np.float32(0.3)
    assert batch.ref_logps is None
    with pytest.raises(ValueError, match="3 rows cannot be filled to 2"):
        fill(small(), 2)


def test_fill_keeps_rows_that_were_invalid():
    batch = small().replace(valid=np.array([True, False, True]))
    assert fill(batch, 4).valid.tolist() == [True, False, True, False]
    assert token_mask(batch).sum(axis=1).tolist() == [2, 0, 1]


def test_micro_batches_hold_every_row_once_without_the_columns_they_do_not_use():
    prompts, completions = [[1] * n for n in (2, 8, 3, 5)], [[2] * n for n in (4, 1, 1, 8)]
    whole = from_tokens(prompts, completions, 8, 8).replace(
        advantages=np.arange(4, dtype=np.float32),
        values=np.arange(32, dtype=np.float32).reshape(4, 8),
    )
    parts = micro_batches(whole, 2)
    # Rows 0 and 2 use at most a half of P, and of T.
    assert [rows.tolist() for rows, _ in parts] == [[2, 0], [3, 1]]
    assert [b.prompt.shape[1] for _, b in parts] == [4, 8]
    assert [b.completion.shape[1] for _, b in parts] == [4, 8]
    for rows, part in parts:
        assert (part.advantages == whole.advantages[rows]).all()
        assert (part.values == whole.values[rows, : part.values.shape[1]]).all()
        for field in ("prompt", "completion"):
            mask, all_of_it = getattr(part, f"{field}_mask"), getattr(whole, f"{field}_mask")[rows]
            assert mask.sum() == all_of_it.sum()
            kept = getattr(part, field)[mask]
            assert (kept == getattr(whole, field)[rows][all_of_it]).all()


def test_micro_batches_of_odd_axes_and_of_empty_rows():
    ((rows, part),) = micro_batches(small(), None)
    assert sorted(rows) == [0, 1, 2]
    assert part.prompt.shape == (3, 4) and part.completion.shape == (3, 4)  # 3/4 of 5 and 1/2 of 7
    empty = small()
    empty = dataclasses.replace(empty, completion_mask=np.zeros_like(empty.completion_mask))
    ((_, part),) = micro_batches(empty, None)
    assert part.completion.shape == (3, 4)


@pytest.mark.parametrize("micro_batch", [0, 4, 7])
def test_micro_batches_want_a_divisor(micro_batch):
    with pytest.raises(ValueError, match=f"micro_batch={micro_batch} does not divide"):
        micro_batches(fill(small(), 6), micro_batch)


def test_take_picks_rows():
    batch = take(small(), np.array([2, 0]))
    assert batch.group.tolist() == [5, 4]
    assert batch.completion[1].tolist() == small().completion[0].tolist()


def test_row_buckets_by_hand():
    assert [row_bucket(n, 40) for n in (1, 5, 6, 10, 11, 20, 21, 40)] == [
        5,
        5,
        10,
        10,
        20,
        20,
        40,
        40,
    ]
    assert [row_bucket(n, 3) for n in (0, 1, 2, 3)] == [1, 1, 2, 3]
    assert row_bucket(1, 1) == 1
    assert [row_bucket(n, 24, parts=4) for n in (1, 5, 9, 13)] == [4, 8, 12, 24]


@given(rows=st.integers(1, 300), parts=st.integers(1, 8), data=st.data())
def test_a_row_bucket_holds_its_rows_in_whole_parts(rows, parts, data):
    rows = parts * rows
    count = data.draw(st.integers(0, rows))
    size = row_bucket(count, rows, parts)
    assert count <= size <= rows and size % parts == 0
    assert len({row_bucket(n, rows, parts) for n in range(rows + 1)}) <= 4
