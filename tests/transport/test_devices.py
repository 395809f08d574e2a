"""Which GPU each process takes, on a machine whose CUDA is played by a fake."""

from types import SimpleNamespace

import pytest
import torch

from dept.errors import ConfigError
from dept.training.on_machine import choose
from dept.transport import devices, process_group
from dept.transport.topology import Place


class Cuda:
    """GPUs as CUDA and NVML show them: CUDA reads ``CUDA_VISIBLE_DEVICES`` once, NVML each time."""

    def __init__(self, monkeypatch, gpus):
        self.environment, self.gpus, self.frozen, self.current = {}, gpus, None, 0
        monkeypatch.setattr(devices.os, "environ", self.environment)
        for name in (
            "device_count",
            "is_available",
            "set_device",
            "current_device",
            "get_device_name",
            "get_device_capability",
        ):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        monkeypatch.setattr(torch, "set_num_threads", lambda count: None)

    def _visible(self):
        given = self.environment.get("CUDA_VISIBLE_DEVICES")
        every = [str(i) for i in range(self.gpus)]
        return every if given is None else [g for g in given.split(",") if g in every]

    def _start(self):
        if self.frozen is None:
            self.frozen = self._visible()

    def device_count(self):
        return len(self._visible())

    def is_available(self):
        if self.environment.get("PYTORCH_NVML_BASED_CUDA_CHECK") != "1":
            self._start()
            return bool(self.frozen)
        return self.device_count() > 0

    def set_device(self, index):
        self._start()
        self.current = self.frozen[index]

    def current_device(self):
        return 0

    def get_device_name(self):
        self._start()
        return "Fake 100"

    def get_device_capability(self):
        self._start()
        return (9, 0)


def taken(monkeypatch, *, gpus, processes, ranks=1, given=None, baseline=False):
    """For each process of a machine, the GPU that it computes on."""
    found = []
    for rank in range(processes):
        with monkeypatch.context() as patch:
            cuda = Cuda(patch, gpus)
            cuda.environment |= {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(processes),
                "LOCAL_WORLD_SIZE": str(processes),
            }
            if given is not None:
                cuda.environment["CUDA_VISIBLE_DEVICES"] = given[rank]
            dept = {"variant": "spec", "local_steps": 1, "ranks_per_worker": ranks}
            config = {
                "global_train_batch_size": 4,
                "model": {"name": "mpt_causal_lm"},
                "algorithms": {} if baseline else {"dept": dept},
                "train_loader": {} if baseline else {"name": "sources", "corpus": "c"},
            }
            _, line = choose(config)
            assert config["precision"] == "amp_bf16" and "on Fake 100: precision" in line
            found.append(cuda.current)
    return found


def test_each_process_of_a_machine_takes_a_gpu_of_its_own(monkeypatch):
    assert taken(monkeypatch, gpus=4, processes=4) == ["0", "1", "2", "3"]
    assert taken(monkeypatch, gpus=8, processes=2) == ["0", "1"]
    assert taken(monkeypatch, gpus=4, processes=4, ranks=2) == ["0", "1", "2", "3"]
    assert taken(monkeypatch, gpus=1, processes=1) == ["0"]
    assert taken(monkeypatch, gpus=4, processes=4, baseline=True) == ["0", "1", "2", "3"]


def test_those_that_a_launcher_gives_are_kept(monkeypatch):
    assert taken(monkeypatch, gpus=8, processes=2, given=["5,6", "5,6"]) == ["5", "6"]
    assert taken(monkeypatch, gpus=8, processes=2, given=["3", "7"]) == ["3", "7"]  # srun


def test_workers_share_where_there_are_too_few(monkeypatch):
    assert taken(monkeypatch, gpus=1, processes=2) == ["0", "0"]
    assert taken(monkeypatch, gpus=2, processes=4) == ["0", "1", "0", "1"]
    assert taken(monkeypatch, gpus=2, processes=4, ranks=2) == ["0", "1", "0", "1"]


def test_ranks_do_not_share(monkeypatch):
    with pytest.raises(ConfigError, match=r"ranks_per_worker is 2, .* sees 1 GPU: set it to 1 or"):
        taken(monkeypatch, gpus=1, processes=2, ranks=2)
    with pytest.raises(ConfigError, match=r"2 processes .* each sees 1 GPU, .* start 1"):
        taken(monkeypatch, gpus=1, processes=2, baseline=True)


@pytest.mark.parametrize(
    ("gpus", "over_nccl"),
    [(["a", "b"], True), (["a", "a"], False), (["a", devices.NO_GPU], False)],
)
def test_workers_use_nccl_if_each_has_a_gpu(monkeypatch, gpus, over_nccl):
    kept = {f"gpu/{worker}": name.encode() for worker, name in enumerate(gpus)}
    store = SimpleNamespace(set=lambda key, value: None, get=kept.__getitem__)
    monkeypatch.setattr(devices, "identity", lambda: gpus[0])
    assert process_group._each_has_a_gpu(Place(workers=2), store) is over_nccl
