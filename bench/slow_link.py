"""Measure the exchange of two workers over a slow link: DDP at every step, and outer steps.

    python bench/slow_link.py [--rates 10,100,1000] [--repeats 3]

The link joins two network namespaces, and the kernel's token bucket (`tc ... tbf`) limits each
direction to a rate in Mbit/s; this needs root. Every method exchanges the same parameters of a
transformer, with its embedding, by the code that training uses. Printed are

- the bytes that left both interfaces in an exchange, beside the cost model's (dept/costs);
- the median seconds of an exchange, from the end of the last local step until every worker has the
  average, coding included; for DDP of a backward pass that averages the gradients of one step;
- the seconds of those in which the first worker computed, on a processor: other processes of the
  machine lengthen the seconds, and hardly these;
- the seconds of exchange in a round of 500 local steps, and their share of the round. The local
  step is one of the same transformer here, in seconds of one processor, without the link.

A record with all repetitions is written to results/bench/slow_link.json. Of an earlier call with
the same settings it keeps the rates that are not measured again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from dept.checkpoint import durable
from dept.costs.transport import coded_step_bytes, every_step_bytes, outer_step_bytes
from dept.method.averaging import Share
from dept.method.compression import Compression
from dept.transport import process_group
from dept.transport.reductions import Reductions
from dept.transport.topology import Place

REPOSITORY = Path(__file__).parent.parent
RECORD = REPOSITORY / "results" / "bench" / "slow_link.json"
EVERY_STEP, LOCAL_STEPS = "ddp", 500
METHODS = (EVERY_STEP, "none", "bf16", "int8", "int4", "topk")
WIDTH, LAYERS, HEADS, TOKENS, BATCH, LENGTH = 256, 4, 4, 8192, 8, 128
SOURCES = ("first", "second")
INTERFACES = ("deptlink0", "deptlink1")


class Decoder(nn.Module):
    """A transformer with a tied embedding: 3.2 million parameters of the body, 2.1 of phi."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(TOKENS, WIDTH)
        block = nn.TransformerEncoderLayer(
            WIDTH, HEADS, 4 * WIDTH, dropout=0.0, batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, LAYERS, enable_nested_tensor=False)

    def forward(self, ids: Tensor) -> Tensor:
        """The loss of the next token, for ids int64[batch, length]."""
        mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1])
        hidden = self.blocks(self.embedding(ids), mask=mask, is_causal=True)
        logits = hidden[:, :-1] @ self.embedding.weight.T
        return nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


class Sum(nn.Module):
    """The parameters of a decoder with a loss that costs next to nothing."""

    def __init__(self, parameters: dict[str, Tensor]) -> None:
        super().__init__()
        self.held = nn.ParameterList(nn.Parameter(value.clone()) for value in parameters.values())

    def forward(self) -> Tensor:
        """A loss with a gradient for every parameter."""
        return torch.stack([value.sum() for value in self.held]).sum()


# --- the parent: the link and the table ----------------------------------------------------------


def main() -> None:
    """Command line: measure every rate, print the table, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rates", default="10,100,1000", help="Mbit/s of each direction")
    parser.add_argument("--repeats", type=int, default=3, help="exchanges of each method and rate")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        json.dump(work(options.worker, options.repeats), sys.stdout)
        return
    if os.geteuid() or not shutil.which("tc") or not shutil.which("ip"):
        sys.exit("bench/slow_link.py needs root, tc and ip to limit the rate of a link")
    rates = [int(rate) for rate in options.rates.split(",")]
    found = {}
    for rate in rates:
        with link(rate) as spaces:
            found[str(rate)] = measured(spaces, options.repeats)
        show(rate, found[str(rate)])
    settings = {"width": WIDTH, "layers": LAYERS, "tokens": TOKENS, "batch": BATCH}
    settings |= {"length": LENGTH, "local_steps": LOCAL_STEPS, "repeats": options.repeats}
    settings |= {"torch": torch.__version__, "cores": os.cpu_count()}
    earlier = json.loads(RECORD.read_text()) if RECORD.is_file() else {}
    if earlier.get("settings") == settings:  # keep the rates that were not measured now
        found = earlier["mbit_per_second"] | found
    record = {"settings": settings, "mbit_per_second": found}
    durable.write(RECORD, json.dumps(record, indent=1) + "\n")


@contextmanager
def link(rate: int) -> Iterator[list[str]]:
    """Two network namespaces joined by a link of ``rate`` Mbit/s in each direction."""
    spaces = [f"dept-{os.getpid()}-{end}" for end in range(2)]

    def call(*command: str, check: bool = True) -> None:
        subprocess.run(command, check=check, capture_output=not check)

    try:
        for space in spaces:
            call("ip", "netns", "add", space)
        ends = [
            ("name", name, "netns", space) for name, space in zip(INTERFACES, spaces, strict=True)
        ]
        call("ip", "link", "add", *ends[0], "type", "veth", "peer", *ends[1])
        for end, (name, space) in enumerate(zip(INTERFACES, spaces, strict=True)):
            call("ip", "-n", space, "address", "add", f"10.77.0.{end + 1}/24", "dev", name)
            for device in (name, "lo"):
                call("ip", "-n", space, "link", "set", device, "up")
            limits = ("rate", f"{rate}mbit", "burst", "128kb", "latency", "100ms")
            call("tc", "-n", space, "qdisc", "replace", "dev", name, "root", "tbf", *limits)
        yield spaces
    finally:
        for space in spaces:
            call("ip", "netns", "delete", space, check=False)


def measured(spaces: list[str], repeats: int) -> dict:
    """What the first of two workers measured, one in each namespace."""
    workers = []
    for end, space in enumerate(spaces):
        place = {"RANK": end, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}
        place |= {"MASTER_ADDR": "10.77.0.1", "MASTER_PORT": 29400}
        place |= {"GLOO_SOCKET_IFNAME": INTERFACES[end], "OMP_NUM_THREADS": 1}
        environment = os.environ | {key: str(value) for key, value in place.items()}
        command = ["ip", "netns", "exec", space, sys.executable, __file__, "--worker", str(end)]
        command += ["--repeats", str(repeats)]
        workers.append(
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        )
    printed = [worker.communicate()[0] for worker in workers]
    if any(worker.returncode for worker in workers):
        sys.exit("a worker failed: its error is above")
    return json.loads(printed[0])


def show(rate: int, found: dict) -> None:
    """Print a row for each method."""
    step = statistics.median(found["local_step_seconds"])
    print(f"\n{rate} Mbit/s; {found['parameters']:,} parameters; a local step takes {step:.3f} s")
    print(
        f"{'':6}{'bytes':>14}{'cost model':>14}{'ratio':>8}{'seconds (least, most)':>30}"
        f"{'computed':>10}{'s a round':>12}{'share':>8}"
    )
    for method, row in found["methods"].items():
        seconds = statistics.median(row["seconds"])
        crossed = statistics.median(row["bytes"])
        of_round = seconds * (LOCAL_STEPS if method == EVERY_STEP else 1)
        computed = statistics.median(row["computed"])
        spread = f"({min(row['seconds']):.3f}, {max(row['seconds']):.3f})"
        print(
            f"{method:6}{crossed:14,.0f}{row['cost_model']:14,}{crossed / row['cost_model']:8.3f}"
            f"{seconds:12.3f} {spread:>17}{computed:10.3f}{of_round:12.2f}"
            f"{of_round / (of_round + LOCAL_STEPS * step):8.1%}",
            flush=True,
        )


# --- a worker ------------------------------------------------------------------------------------


def work(rank: int, repeats: int) -> dict:
    """Exchange by every method; returns what was measured, complete on the first worker alone."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    decoder = Decoder()
    start = {name: value.detach() for name, value in decoder.named_parameters()}
    generator = torch.Generator().manual_seed(rank)
    local = {
        name: value + 1e-3 * torch.randn(value.shape, generator=generator)
        for name, value in start.items()
    }
    workers = process_group.join(Place.of(os.environ, 1), timeout=600)
    # DDP has its own group, on the same interface.
    torch.distributed.init_process_group(
        "gloo",
        store=torch.distributed.PrefixStore("ddp", workers.store),
        rank=rank,
        world_size=2,
    )
    model = nn.parallel.DistributedDataParallel(Sum(start))
    shares = [{source: Share()} for source in SOURCES]

    def exchange(method: str) -> None:
        if method == EVERY_STEP:
            model().backward()
            return
        reduction = Reductions(Compression.of({"name": method})).open(start, SOURCES)
        reduction.add(SOURCES[rank], local, shares[rank][SOURCES[rank]])
        reduction.averages(workers, shares)

    counter = Path(f"/sys/class/net/{INTERFACES[rank]}/statistics/tx_bytes")
    rows: dict[str, dict] = {
        method: {
            "seconds": [],
            "computed": [],
            "bytes": [],
            "cost_model": cost_model(method, start, shares),
        }
        for method in METHODS
    }
    for repeat in range(repeats + 1):  # the first is not counted: buckets and buffers are made
        for method in METHODS:
            workers.wait_for_all("the start of an exchange")
            before, began = int(counter.read_text()), time.perf_counter()
            busy = time.process_time()
            exchange(method)
            busy = time.process_time() - busy
            workers.wait_for_all("the end of an exchange")
            seconds = time.perf_counter() - began
            sent = workers.gather(int(counter.read_text()) - before, stage="the count")
            if repeat:
                rows[method]["seconds"].append(seconds)
                rows[method]["computed"].append(busy)
                rows[method]["bytes"].append(sum(sent))
    torch.distributed.destroy_process_group()
    parameters = sum(value.numel() for value in start.values())
    steps = local_steps(decoder) if rank == 0 else []
    return {"parameters": parameters, "local_step_seconds": steps, "methods": rows}


def cost_model(method: str, start: dict[str, Tensor], shares: list[dict[str, Share]]) -> int:
    """Bytes of one exchange of both workers, by the formulas of dept/costs/transport.py."""
    if method == EVERY_STEP:
        return every_step_bytes(sum(value.numel() for value in start.values()), 2, 1)
    compression = Compression.of({"name": method})
    if compression is None:
        shapes = {name: value.shape for name, value in start.items()}
        return outer_step_bytes(shapes, {}, [[], []], slots_per_worker=1)
    return coded_step_bytes(compression, start, shares)


def local_steps(decoder: Decoder, count: int = 5) -> list[float]:
    """Processor seconds of local steps on this machine, by one thread, after a first one."""
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=1e-4)
    seconds = []
    for _ in range(count + 1):
        began = time.process_time()
        optimizer.zero_grad()
        decoder(torch.randint(TOKENS, (BATCH, LENGTH))).backward()
        optimizer.step()
        seconds.append(time.process_time() - began)
    return seconds[1:]


if __name__ == "__main__":
    main()
