"""The place that a launcher gives a process, and the one that Composer reads instead."""

import pytest

from dept.errors import ConfigError
from dept.transport.topology import Place


def launched(rank, world, machine):
    """The environment of one of ``world`` processes, ``machine`` of them on each machine."""
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_RANK": str(rank % machine),
        "LOCAL_WORLD_SIZE": str(machine),
    }


def placed(rank, world, machine, ranks_per_worker):
    environment = launched(rank, world, machine)
    place = Place.of(environment, ranks_per_worker)
    return place, place.environment()


def test_a_process_without_a_launcher_is_the_only_worker():
    assert Place.of({}, 1) == Place()


def test_each_process_is_a_worker_and_a_world_of_its_own():
    place, environment = placed(rank=5, world=8, machine=4, ranks_per_worker=1)
    assert (place.worker, place.workers, place.rank, place.ranks) == (5, 8, 0, 1)
    assert (place.global_rank, place.world) == (5, 8)
    assert environment == {
        "RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
        "NODE_RANK": "0",
    }
    assert place.gpus("0123") == ["1"]


def test_neighbours_make_a_worker():
    place, environment = placed(rank=7, world=8, machine=4, ranks_per_worker=2)
    assert (place.worker, place.workers, place.rank, place.ranks) == (3, 4, 1, 2)
    assert environment["RANK"] == environment["LOCAL_RANK"] == "1"
    assert environment["WORLD_SIZE"] == environment["LOCAL_WORLD_SIZE"] == "2"
    assert place.gpus("0123") == ["2", "3"]


def test_a_worker_may_be_several_machines():
    place, environment = placed(rank=13, world=16, machine=4, ranks_per_worker=8)
    assert (place.worker, place.rank) == (1, 5)
    assert (environment["LOCAL_RANK"], environment["LOCAL_WORLD_SIZE"]) == ("1", "4")
    assert environment["NODE_RANK"] == "1"
    assert place.gpus("0123") == ["0", "1", "2", "3"]


def test_gpus_are_chosen_from_those_given():
    place, _ = placed(3, 4, 4, 1)
    assert place.gpus("4567") == ["7"]
    assert place.gpus("7") == ["7"]  # srun --gpus-per-task=1
    assert place.gpus([]) == []


def test_ranks_that_make_no_whole_workers_are_refused():
    with pytest.raises(ConfigError, match=r"does not divide the 4 processes.* 1, 2, 4"):
        Place.of(launched(0, 4, 4), 3)
    with pytest.raises(ConfigError, match="a machine runs 3 processes"):
        Place.of(launched(0, 6, 3), 2)
