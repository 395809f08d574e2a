"""How a CPU multiplies and keeps memory, against float64 and what the system counts."""

import subprocess
import sys

import pytest
import torch

from dept.transport import cpu


@pytest.fixture
def precision():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.usefixtures("precision")
@pytest.mark.parametrize("rows", [1, 60, 512])
def test_products_are_those_of_float32(rows):
    draw = torch.Generator().manual_seed(rows)
    left, right = (torch.randn(n, 256, generator=draw) for n in (rows, 384))
    exact = left.double() @ right.double().T
    with_mkl = (left @ right.T - exact).abs().max()
    cpu.multiply_with_onednn()
    with_onednn = (left @ right.T - exact).abs().max()
    in_bfloat16 = (left.bfloat16().double() @ right.bfloat16().double().T - exact).abs().max()
    assert with_onednn < 10 * with_mkl < in_bfloat16 / 30


@pytest.mark.usefixtures("precision")
def test_a_cpu_that_would_round_to_bfloat16_and_a_choice_are_left_alone(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    cpu.multiply_with_onednn()
    assert torch.get_float32_matmul_precision() == "highest"
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    torch.set_float32_matmul_precision("high")
    cpu.multiply_with_onednn()
    assert torch.get_float32_matmul_precision() == "high"


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_memory_that_is_freed_is_used_again_without_new_pages():
    count = (
        "import resource, torch; from dept.transport import cpu; {}; pages = []\n"
        "torch.ones(64 * 2**20)\n"  # four times as much, which later ones find room in
        "for _ in range(6):\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    torch.ones(16 * 2**20)\n"
        "    pages.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)\n"
        "print(min(pages))"
    )
    pages = [
        int(subprocess.check_output([sys.executable, "-c", count.format(call)], text=True))
        for call in ("pass", "cpu.keep_memory()")
    ]
    assert pages[0] > 10_000 and pages[1] < 10  # 64 MiB are 16,384 pages
