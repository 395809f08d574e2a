"""Rows of `make bench` about training: a step, a round, vocabularies, workers, sources."""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import fits
import synthetic
from measure import REPOSITORY, Result, Row, Setting, Spent, alternate, quotients, ratios

from dept.config import extends

GLOB, SPEC, SPEC_OPT, STD = (
    f"yamls/{n}.yaml" for n in ["dept_glob", "dept_spec", "dept_spec_opt", "std"]
)
NO_EVALUATION = ["eval_interval=0"]
WARM = 5  # batches at the start of a training that are not counted


@contextmanager
def corpus(
    *, sources: int, length: int, vocabularies: Mapping[str, int], samples: int = 64
) -> Iterator[list[str]]:
    """Write a corpus of random tokens; the overrides that train on it.

    Args:
        sources: number of sources.
        length: tokens of a sample.
        vocabularies: ids of each tokenizer.
        samples: samples of each training split.
    """
    with tempfile.TemporaryDirectory() as root:
        arguments = (root, "random", sources, length, samples, dict(vocabularies))
        fits.run(synthetic.write_corpus, *arguments)
        yield [
            "variables.corpus=random",
            f"train_loader.root={root}",
            f"tokenizer.name={root}/tokenizers/random/global",
            f"max_seq_len={length}",
        ]


def two_sources(setting: Setting) -> list[str]:
    """Overrides that train on the first two sources of the prepared corpus.

    Args:
        setting: what is measured on.
    """
    return [*setting.overrides, f"train_loader.sources=[{','.join(setting.sources[:2])}]"]


def glob_128(setting: Setting) -> list[Result]:
    """Real text, the model of the demo.

    Args:
        setting: what is measured on.
    """
    steps = 4 if setting.small else 40
    overrides = [*two_sources(setting), f"variables.local_steps={steps}"]
    return _glob(setting, overrides, setting.shards(setting.sources[:2]), 2 * steps)


def glob_2048(setting: Setting) -> list[Result]:
    """Random tokens, a body six times as large, sequences of 2 048 tokens.

    Args:
        setting: what is measured on.
    """
    steps, length = 4, 64 if setting.small else 2048
    with corpus(sources=2, length=length, vocabularies={"global": 8192}) as overrides:
        root = overrides[1].split("=")[1]
        shards = {s: Path(root, "data/random", s, "global/train") for s in ("s0", "s1")}
        overrides = [*overrides, f"variables.local_steps={steps}", "variables.worker_batch=1"]
        if not setting.small:
            overrides += ["model.d_model=256", "model.n_layers=6"]
        return _glob(setting, overrides, shards, 2 * steps)


def _glob(
    setting: Setting, overrides: list[str], shards: dict[str, Path], batches: int
) -> list[Result]:
    """GLOB against llm-foundry, in seconds of a batch; both read the same shards."""
    fits.prepare()
    warm = min(WARM, batches // 4)
    overrides = [*overrides, *NO_EVALUATION, "max_duration=1ep"]
    config = fits.plain_config(GLOB, overrides, shards, batches)
    mine, theirs = alternate(
        lambda: fits.a_batch(fits.ours(GLOB, overrides, warm=warm)[0], warm),
        lambda: fits.a_batch(fits.plain(config, warm=warm), warm),
        times=setting.times,
    )
    return ratios(theirs, mine)


def vocabulary(setting: Setting) -> list[Result]:
    """SPEC-OPT with a vocabulary of its own against STD with a large one, between outer steps.

    Args:
        setting: what is measured on.
    """
    large, own = (2000, 500) if setting.small else (250_000, 50_000)
    steps, width = 6, 32 if setting.small else 256
    with corpus(sources=1, length=128, vocabularies={"global": large, "s0": own}) as overrides:
        fits.prepare()
        overrides = [*overrides, *NO_EVALUATION, "max_duration=1ep", f"model.d_model={width}"]
        overrides += [f"variables.local_steps={steps}", "global_train_batch_size=4"]

        def steps_of(experiment: str) -> Spent:
            found = fits.ours(experiment, overrides, warm=1)[0] | {"rounds": []}
            found["cpu"] = found["last_cpu"]
            return fits.a_batch(found, 1)

        mine, theirs = alternate(
            lambda: steps_of(SPEC_OPT), lambda: steps_of(STD), times=setting.times
        )
    return ratios(theirs, mine)


def composer_loop(setting: Setting) -> list[Result]:
    """Composer's trainer and ours in it, against the same step in a loop of torch.

    Args:
        setting: what is measured on.
    """
    fits.prepare()
    steps = 4 if setting.small else 40
    overrides = [*two_sources(setting), f"variables.local_steps={steps}"]
    overrides += [*NO_EVALUATION, "max_duration=1ep"]
    shards = setting.shards(setting.sources[:2])
    config = fits.plain_config(GLOB, overrides, shards, 2 * steps)
    warm = min(WARM, steps // 2)
    loop, composer, mine = alternate(
        lambda: _bare(config, warm),
        lambda: fits.a_batch(fits.plain(config, warm=warm), warm),
        lambda: fits.a_batch(fits.ours(GLOB, overrides, warm=warm)[0], warm),
        times=setting.times,
    )
    return [*ratios(composer, loop, "llm-foundry's train"), *ratios(mine, loop, "GLOB")]


def _bare(config: dict[str, Any], warm: int) -> Spent:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "spent")
        fits.run(bare_loop, config, warm, str(file))
        return Spent(**json.loads(file.read_text()))


def bare_loop(config: dict[str, Any], warm: int, file: str) -> None:
    """Train in a loop of torch, and write the mean time of a batch.

    Args:
        config: a yaml of llm-foundry.
        warm: batches at the start that are not counted.
        file: file to write.
    """
    import torch
    from composer.utils import get_device
    from llmfoundry.data.dataloader import build_dataloader
    from llmfoundry.utils import builders

    device = get_device(None)
    name, batches = config["tokenizer"]["name"], int(config["max_duration"][:-2])
    tokenizer = builders.build_tokenizer(name, config["tokenizer"].get("kwargs", {}))
    model_options, optimizer_options = dict(config["model"]), dict(config["optimizer"])
    model = device.module_to_device(
        builders.build_composer_model(
            name=model_options.pop("name"), tokenizer=tokenizer, cfg=model_options
        )
    )
    optimizer = builders.build_optimizer(model, optimizer_options.pop("name"), optimizer_options)
    loader = build_dataloader(config["train_loader"], tokenizer, config["global_train_batch_size"])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, batches)
    clip = config["algorithms"]["gradient_clipping"]["clipping_threshold"]

    def now() -> tuple[float, float]:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter(), time.process_time()

    began, losses = now(), []
    for number, batch in zip(range(batches), loader.dataloader, strict=False):
        if number == warm:
            began = now()
        batch = device.batch_to_device(batch)
        with torch.autocast("cuda", torch.bfloat16, enabled="amp" in config["precision"]):
            loss = model.loss(model(batch), batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
    wall, cpu = ((b - a) / (batches - warm) for a, b in zip(began, now(), strict=True))
    Path(file).write_text(json.dumps({"wall": wall, "cpu": cpu}))


def between_steps(local_steps: int) -> Callable[[Setting], list[Result]]:
    """Measure swaps and outer step of each round, as shares of the round.

    Args:
        local_steps: steps of a slot.
    """

    def measure(setting: Setting) -> list[Result]:
        fits.prepare()
        steps = 2 if setting.small else local_steps
        overrides = [*two_sources(setting), f"variables.local_steps={steps}"]
        overrides += [*NO_EVALUATION, f"max_duration={setting.times + 1}ep"]
        pairs = list(pairwise(fits.ours(SPEC, overrides)[0]["rounds"]))
        swaps = [after["between_steps"] - before["between_steps"] for before, after in pairs]
        whole = [after["seconds"] - before["seconds"] for before, after in pairs]
        shares = [100 * share for share in quotients(swaps, whole)]
        return [Result("", shares, {"swap_seconds": swaps, "round_seconds": whole})]

    return measure


def evaluation(setting: Setting) -> list[Result]:
    """Evaluation of all sources in the demo, as often as its yaml has it, without checkpoints.

    Here each round is evaluated, to time it several times.

    Args:
        setting: what is measured on.
    """
    fits.prepare()
    demo = extends.resolve(extends.load(REPOSITORY / SPEC))
    rounds, every = (int(demo[key].removesuffix("ep")) for key in ("max_duration", "eval_interval"))
    often = math.ceil(rounds / every)  # the last round is evaluated too
    overrides = [*setting.overrides, f"max_duration={setting.times + 1}ep"]
    if setting.small:
        overrides = [*two_sources(setting), "variables.local_steps=2", "max_duration=2ep"]
    found = fits.ours(SPEC, [*overrides, "eval_interval=1ep"])[0]
    # The evaluation of a round comes after the end of the round on this clock.
    totals = [r["evaluation"] for r in found["rounds"]]
    times = [r["seconds"] for r in found["rounds"]]
    evaluated = [b - a for a, b in pairwise(totals)]
    whole = [b - a for a, b in pairwise(times)]
    shares = [
        100 * often * evaluation / (rounds * (both - evaluation) + often * evaluation)
        for evaluation, both in zip(evaluated, whole, strict=True)
    ]
    return [Result("", shares, {"evaluation_seconds": evaluated, "round_seconds": whole})]


def sources(setting: Setting) -> list[Result]:
    """Two sources a round for three rounds, out of K; and the memory when all K have been trained.

    Args:
        setting: what is measured on.
    """
    counts = (2, 3) if setting.small else (2, 8, 32, 64)
    steps = 2 if setting.small else 25
    with corpus(sources=counts[-1], length=128, vocabularies={"global": 8192}) as base:
        fits.prepare()

        def fit(count: int, more: list[str]) -> dict[str, Any]:
            names = ",".join(f"s{number}" for number in range(count))
            overrides = [*base, *NO_EVALUATION, f"train_loader.sources=[{names}]", *more]
            return fits.ours(SPEC, overrides)[0]

        def both(count: int) -> Callable[[], dict[str, float]]:
            def measure() -> dict[str, float]:
                drawn = ["algorithms.dept.sources_per_round=2", "max_duration=3ep"]
                some = fit(count, [f"variables.local_steps={steps}", *drawn])
                every = fit(count, ["variables.local_steps=1", "max_duration=1ep"])
                rounds = [r["seconds"] for r in some["rounds"]]
                return {
                    "time of a token": rounds[-1] - rounds[0],
                    "CPU time of a token": some["rounds"][-1]["cpu"] - some["rounds"][0]["cpu"],
                    "start-up": some["warm"] - some["start"],
                    "memory, two a round": some["memory"] - some["baseline"],
                    "memory, all trained": every["memory"] - every["baseline"],
                }

            return measure

        found = alternate(*map(both, counts), times=setting.times)
    return [
        Result(
            f"K = {count}: {what}",
            [one[what] / two[what] for one, two in zip(of, found[0], strict=True)],
            {"ours": [one[what] for one in of], "against": [two[what] for two in found[0]]},
        )
        for count, of in zip(counts[1:], found[1:], strict=True)
        for what in found[0][0]
    ]


ROWS = [
    Row(
        "glob-128",
        "tokens/s of GLOB, one worker, 128 tokens, batch 4",
        "llm-foundry's train",
        ">= 1.00",
        glob_128,
    ),
    Row(
        "glob-2048",
        "tokens/s of GLOB, one worker, 2 048 tokens, batch 1, a larger body",
        "llm-foundry's train",
        ">= 1.00",
        glob_2048,
    ),
    Row(
        "vocabulary",
        "tokens/s of SPEC-OPT with 50 000 ids, d = 256",
        "STD with 250 000 ids",
        ">= 2",
        vocabulary,
    ),
    Row(
        "composer-loop",
        "time of a step in Composer's trainer",
        "the same step in a loop of torch",
        "<= 1.05",
        composer_loop,
    ),
    *(
        Row(
            f"swaps-{steps}",
            f"swaps and outer step of SPEC, N = {steps}",
            "the round of two slots",
            "<= 0.5 %",
            between_steps(steps),
        )
        for steps in (40, 500)
    ),
    Row(
        "evaluation",
        "evaluation of eight sources in the demo",
        "the demo with its evaluations",
        "<= 10 %",
        evaluation,
    ),
    Row(
        "sources",
        "time of a token, start-up after imports and memory with K sources",
        "K = 2",
        "<= 1.05",
        sources,
    ),
]
