"""The order in which samples are read."""

from itertools import chain, pairwise

import numpy as np
import pytest

from dept.data.order import SampleOrder

SHARDS = [5, 3, 8, 1, 6, 7, 4]
SAMPLES = sum(SHARDS)


def order(seed=1, source="en", block_shards=2):
    return SampleOrder(SHARDS, seed=seed, source=source, block_shards=block_shards)


def passes(order, count=1):
    return [
        [order.sample_at(p) for p in range(i * SAMPLES, (i + 1) * SAMPLES)] for i in range(count)
    ]


def test_each_pass_reads_every_sample_once_in_another_order():
    first, second = passes(order(), 2)
    assert sorted(first) == sorted(second) == list(range(SAMPLES))
    assert first != second
    assert first != sorted(first)


def test_it_is_a_function_of_seed_and_source():
    assert passes(order(), 3) == passes(order(), 3)
    assert passes(order(seed=2)) != passes(order())
    assert passes(order(source="it")) != passes(order())


def test_any_position_can_be_asked_for_first():
    expected = passes(order(), 2)
    assert order().sample_at(SAMPLES + 9) == expected[1][9]
    assert order().sample_at(3) == expected[0][3]


def test_samples_are_mixed_within_blocks_of_shards_only():
    shard_of = np.repeat(np.arange(len(SHARDS)), SHARDS)
    shards = [int(shard_of[i]) for i in passes(order(block_shards=2))[0]]
    blocks = [sorted(set(shards[i:j])) for i, j in pairwise([0, *_ends(shards)])]
    assert sorted(chain(*blocks)) == list(range(len(SHARDS)))
    assert all(len(block) <= 2 for block in blocks)


def _ends(shards):
    """Where no shard read so far is read again: the ends of blocks, or of shards within one."""
    return [i for i in range(1, len(shards) + 1) if not set(shards[:i]) & set(shards[i:])]


def test_the_shards_of_a_block_are_known_before_it_is_read():
    shard_of = np.repeat(np.arange(len(SHARDS)), SHARDS)
    whole, position, ends = order(), 0, []
    while position < 2 * SAMPLES:
        end = whole.block_end(position)
        for first in range(position, end):
            read = [int(shard_of[order().sample_at(p)]) for p in range(first, end)]
            assert whole.block_end(first) == end
            assert whole.shards_at(first) == list(dict.fromkeys(read))
        position = end
        ends.append(end)
    assert len(ends) == 2 * 4 and SAMPLES in ends and ends[-1] == 2 * SAMPLES


def test_a_source_without_samples_is_refused():
    with pytest.raises(ValueError, match="source sw holds no samples"):
        SampleOrder([], seed=1, source="sw")
