"""Batches that are copied ahead, to a GPU played by a fake."""

import threading

import torch

from dept.data.upload import batches_ahead


class OnGpu(torch.Tensor):
    """A tensor that records how it came to the GPU, and which streams read it."""

    def pin_memory(self):
        copy = self.clone()
        copy.calls = ["pinned"]
        return copy

    def to(self, device, non_blocking):
        assert self.calls == ["pinned"] and non_blocking  # otherwise the copy would wait
        copy = self.clone()
        copy.calls = [*self.calls, str(device), CURRENT.stream.name]
        return copy

    def record_stream(self, stream):
        self.calls.append(f"read by {stream.name}")


CURRENT = threading.local()


class Stream:
    def __init__(self, name):
        self.name, self.waited_for = name, []

    def __enter__(self):
        self.before, CURRENT.stream = getattr(CURRENT, "stream", None), self

    def __exit__(self, *error):
        CURRENT.stream = self.before

    def record_event(self):
        return f"copied {self.name}"

    def wait_event(self, event):
        self.waited_for.append(event)


def test_a_batch_is_pinned_copied_on_its_own_stream_and_waited_for(monkeypatch):
    main = Stream("main")
    fakes = {
        "is_available": lambda: True,
        "current_device": lambda: 3,
        "Stream": lambda device: Stream(f"of copies to {device}"),
        "stream": lambda stream: stream,
        "current_stream": lambda: main,
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    ids = [torch.full((2,), i).as_subclass(OnGpu) for i in range(4)]
    found = list(batches_ahead({"input_ids": i, "source": "en"} for i in ids))
    assert [batch["input_ids"].tolist() for batch in found] == [[i, i] for i in range(4)]
    assert {batch["source"] for batch in found} == {"en"}
    copies = "of copies to cuda:3"
    assert found[0]["input_ids"].calls == ["pinned", "cuda:3", copies, "read by main"]
    assert main.waited_for == [f"copied {copies}"] * 4


def test_on_a_cpu_batches_are_those_given():
    given = [{"input_ids": torch.ones(2), "step": step} for step in range(3)]
    found = list(batches_ahead(iter(given)))
    assert all(one is other for one, other in zip(found, given, strict=True))
