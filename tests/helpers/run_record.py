"""Hand-made records of runs for tests of what is reported of them, and what a table shows."""

import math

from dept.evaluation.report.names import METHODS

BASELINES = tuple(name for name, method in METHODS.items() if method.budget)


def evaluated(perplexity, bits=None):
    loss = math.log(perplexity)
    bits = bits if bits is not None else loss
    return {
        "eval": {"loss": loss, "perplexity": perplexity, "bits_per_byte": bits, "unigram_ce": 6.0}
    }


def record(method, perplexities, stage="cpt_random", seed=17, source=None, held_out=None, **more):
    name = "-".join(filter(None, ["c", stage, method, source, str(more.get("learning_rate", ""))]))
    drawn = "" if more.get("draw") is None else f"-d{more['draw']}"
    points = [4.0, 3.0, 2.0]
    return {
        "run": f"{name}-s{seed}{drawn}",
        "corpus": "c",
        "stage": stage,
        "method": method,
        "baseline": method in BASELINES,
        "seed": seed,
        "learning_rate": 0.008,
        "source": source,
        "tokens": 3000,
        "steps": 60,  # batches, of two sources that take turns
        "rounds": 3,
        "local_steps": 10,
        "sources": {n: evaluated(p) for n, p in perplexities.items()},
        "held_out": {n: evaluated(p) for n, p in (held_out or {}).items()},
        "average": {"bits_per_byte": 2.0},
        "communication": {"parameters_per_step": 100 if method in BASELINES else 2},
        "timing": {"train_seconds": 12.25},
        "curves": {
            "tokens": [1000, 2000, 3000],
            "steps": [10, 20, 30],
            "average": {"perplexity": points, "bits_per_byte": points},
            "sources": {},
        },
    } | more


def fine_tuned(
    method, value, task="movies", seed=17, init="pretrained", metric="accuracy", transfer=None
):
    return {
        "run": f"c-downstream-{method}-{task}-{init}-s{seed}",
        "corpus": "c",
        "stage": "downstream",
        "method": method,
        "baseline": method in BASELINES,
        "seed": seed,
        "source": None,
        "setting": task if init == "pretrained" else f"{task}-untrained",
        "task": task,
        "metric": metric,
        "init": init,
        "learning_rate": 1e-3,
        "baselines": {"majority": 0.5, "bag_of_words": 0.8} if metric == "accuracy" else {},
        "test": {metric: value},
        "transfer": {name: {metric: score} for name, score in (transfer or {}).items()},
    }


def everything():
    """Records of every stage and method, with a name that HTML must not take for its own."""
    records = []
    for method in METHODS:
        for seed in (17, 18):
            for stage in ("pretrain", "cpt_random", "cpt_pretrained", "cpt_merged"):
                norms = {"steps": [1, 2], "activations": [3.0, 4.0], "parameters": [5.0, 6.0]}
                by_source = {"en": 90.0 + seed, "a<b|c": 40.0}
                run = record(method, by_source, stage, seed, held_out={"el": 1e3}, norms=norms)
                records.append(run)
            for draw in (0, 1):
                more = {"draw": draw, "local_steps": 40}
                by_source = {"en": 80.0 + draw, "a<b|c": 40.0}
                records.append(record(method, by_source, "cpt_random_long", seed, **more))
                for stage in ("plasticity", "plasticity_long"):
                    run = record(method, {"el": 80.0 + draw}, stage, seed, source="el", **more)
                    records.append(run)
        records.append(record(method, {}, "tuning"))
        rate = {"setting": "random 4.0e-3", "learning_rate": 0.004}
        records.append(record(method, {}, "tuning_cpt", average={"perplexity": 50.0}, **rate))
        records.append(fine_tuned(method, 0.75))
    return records


def cells(table):
    return {row[0].text: [cell.text for cell in row[1:]] for row in table.rows}


def bold(table):
    return {(row[0].text, place) for row in table.rows for place, c in enumerate(row[1:]) if c.best}


def by_title(found):
    return {table.title: table for table in found}
