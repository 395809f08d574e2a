"""The mixture that STD trains on: what is drawn, what is read, and where a resumed run reads on."""

from types import SimpleNamespace

import numpy as np
import pytest
from small_shards import write_split

from dept.data.mixture import Mixture, draw
from dept.data.order import SampleOrder

SIZES = {"en": 40, "it": 10, "hi": 25}


class Source:
    """A source whose samples are numbers."""

    def __init__(self, name, stage="pretraining"):
        self.name = name
        self.order = SampleOrder([SIZES[name]], seed=17, source=name, stage=stage)

    def sample_at(self, position):
        number = list(SIZES).index(self.name) * 1000 + self.order.sample_at(position)
        return np.array([number, number])


def mixture(stage="pretraining", **more):
    sources = {name: Source(name, stage) for name in SIZES}
    options = {"tokens": SIZES, "tau": 0.0, "batch_size": 5, "epoch_batches": 7, "seed": 17} | more
    return Mixture(sources, stage=stage, **options)


def numbers(batches):
    return [row[0] for batch in batches for row in batch["input_ids"].tolist()]


def epochs(given, count):
    return [numbers(given) for _ in range(count)]


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0])
def test_sources_are_drawn_by_their_size_to_the_power_tau(tau):
    weights = np.array(list(SIZES.values()), dtype=float) ** tau
    expected = weights / weights.sum()
    assert mixture(tau=tau).probabilities == pytest.approx(expected)
    drawn = [draw(expected, 32, seed=17, stage="pretraining", batch=b) for b in range(1000)]
    shares = np.bincount(np.concatenate(drawn), minlength=3) / 32_000
    assert shares == pytest.approx(expected, abs=4 * 0.5 / 32_000**0.5)


def test_each_source_is_read_in_whole_passes_in_an_order_of_its_own():
    read = [number for epoch in epochs(mixture(), 30) for number in epoch]
    for place, (name, size) in enumerate(SIZES.items()):
        own = [number - 1000 * place for number in read if number // 1000 == place]
        assert len(own) > 2 * size
        for first in range(0, len(own) - size, size):
            assert sorted(own[first : first + size]) == list(range(size))
        order = Source(name).order
        assert own == [order.sample_at(p) for p in range(len(own))]  # what DEPT reads


def test_a_later_stage_reads_other_batches():
    """Continued pre-training must not begin with the batches of pre-training."""
    first, later = epochs(mixture(), 1)[0], epochs(mixture("start_from"), 1)[0]
    assert len(set(first) & set(later)) < len(first)
    assert first != later
    drawn = [draw([0.5, 0.5], 64, seed=17, stage=s, batch=0) for s in ("pretraining", "start_from")]
    assert (drawn[0] != drawn[1]).any()


@pytest.mark.parametrize("batches", [3, 7, 10])
def test_a_resumed_run_reads_on_where_a_checkpoint_was_taken(batches):
    whole_run = mixture()
    whole = numbers(batch for _ in range(3) for batch in whole_run)
    assert whole_run.batch == 21
    stopped, trained = mixture(), []
    while len(trained) < batches * 5:
        for batch in stopped:
            trained += numbers([batch])
            if len(trained) == batches * 5:
                break
    in_epoch = batches * 5 % 35  # Composer counts samples of an epoch, and none once it has ended
    state = stopped.state_dict(in_epoch, True)
    assert state == {"batch": batches}
    resumed = mixture()
    resumed.load_state_dict(state)
    assert resumed.positions == stopped.positions
    rest = []
    while len(trained) + len(rest) < len(whole):
        rest += numbers(resumed)
    assert trained + rest == whole


def test_ranks_read_parts_of_one_batch():
    alone = numbers(mixture(batch_size=6))
    parts = [mixture(batch_size=3, rank=rank, ranks=2) for rank in range(2)]
    read = zip(*([numbers([b]) for b in part] for part in parts), strict=True)
    assert [n for batch in read for part in batch for n in part] == alone
    assert parts[0].positions == parts[1].positions


def test_an_epoch_is_all_samples_unless_the_yaml_says_otherwise():
    assert len(mixture(epoch_batches=None)) == sum(SIZES.values()) // 5
    assert len(mixture()) == 7


def test_shards_are_wanted_ahead_of_their_need(tmp_path):
    from dept.data.loader import OpenSource

    wanted = []

    class Cache:
        def want(self, shards):
            wanted.append(list(shards))

    prepared = SimpleNamespace(name="en", vocab_size=1 << 16, train=tmp_path / "train")
    write_split(tmp_path / "train", [2, 2, 2])
    source = OpenSource(prepared, seed=1, block_shards=1)
    source.shards_at = source.order.shards_at
    read = Mixture(
        {"en": source},
        tokens={"en": 48},
        tau=0,
        batch_size=1,
        epoch_batches=6,
        seed=1,
        cache=Cache(),
    )
    assert len(list(read)) == 6
    assert [len(shards) for shards in wanted] == [2, 2, 2]  # the block that is read, and the next
    first = [shards[0] for shards in wanted]
    assert sorted(first) == [0, 1, 2] and [s[1] for s in wanted[:2]] == first[1:]
