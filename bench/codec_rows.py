"""The row of `make bench` about codecs: how fast a core packs and unpacks updates."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import torch
from measure import Result, Row, Setting, alternate

from dept.method.codecs import CODECS
from dept.method.compression import Compression
from dept.transport import cpu

NUMBERS, SMALL = 1 << 23, 1 << 16


def codecs(setting: Setting) -> list[Result]:
    """GB of float32 that a core codes, decodes, and copies, in a second of its CPU time.

    Args:
        setting: what is measured on.
    """
    # How torch and the C library are set up here must not change the rows that follow.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(_codecs, setting).result()


def _codecs(setting: Setting) -> list[Result]:
    torch.set_num_threads(1)
    cpu.keep_memory()  # as in training
    generator = torch.Generator().manual_seed(0)
    update = {"body": torch.randn(SMALL if setting.small else NUMBERS, generator=generator)}
    update["body"] *= 1e-3
    sides: dict[str, Callable[[], object]] = {"torch's clone": update["body"].clone}
    for name in CODECS:
        plain = Compression.of({"name": name, "error_feedback": False})
        fed_back = Compression.of({"name": name})
        message, _ = plain.encode(update, ())
        _, error = fed_back.encode(update, ())

        def pack(plain=plain):
            return plain.encode(update, ())

        def pack_with_error(fed_back=fed_back, error=error):
            return fed_back.encode(update, (), error)

        def unpack(plain=plain, message=message, name=name):
            return plain.decode(message, update, (), sender=name)

        sides[f"{name}, pack"] = pack
        sides[f"{name}, pack with error feedback"] = pack_with_error
        sides[f"{name}, unpack"] = unpack
    spent = alternate(
        *(lambda side=side: _cpu(side) for side in sides.values()), times=setting.times
    )
    gigabytes = update["body"].numel() * 4 / 1e9
    return [
        Result(name, [gigabytes / seconds for seconds in of_side], {"cpu_seconds": of_side})
        for name, of_side in zip(sides, spent, strict=True)
    ]


def _cpu(side: Callable[[], object], repeats: int = 3) -> float:
    """Mean CPU seconds of some calls after a first one."""
    side()
    began = time.thread_time()
    for _ in range(repeats):
        side()
    return (time.thread_time() - began) / repeats


ROWS = [
    Row(
        "codecs",
        "float32 packed and unpacked by a core",
        "a limit, and torch's clone of the same numbers",
        ">= 1 GB/s",
        codecs,
    )
]
