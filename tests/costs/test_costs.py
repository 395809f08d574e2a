"""The cost model: by hand, against what slots and optimizers hold, against the paper's table."""

import json
import subprocess
import sys
from io import StringIO

import pytest
import torch
from rich.console import Console
from tiny import TinyLM
from training import REPOSITORY, load

from dept.config import extends
from dept.costs import codings, paper
from dept.costs.__main__ import main, number
from dept.costs.experiment import costs_of
from dept.costs.memory import STATE, dept_memory, state_numbers
from dept.costs.parameters import mpt_parameters
from dept.errors import ConfigError
from dept.method.averaging import Share
from dept.method.live_model import LiveModel
from dept.method.moments import MomentAverages, limit_of
from dept.method.outer_optimizer import OUTER_OPTIMIZERS, OuterOptimizer
from dept.method.row_steps import PREFIX
from dept.method.source_state import Slots
from dept.method.variants import VARIANTS
from dept.method.vocabulary import VocabularyMap
from dept.transport.exchange import ExactReduction
from dept.transport.moment_exchange import average_moments
from dept.transport.reductions import Reductions
from dept.transport.topology import Place
from dept.transport.workers import Workers

MPT = {"name": "mpt_causal_lm", "d_model": 8, "n_heads": 2, "n_layers": 3, "max_seq_len": 16}


def costs(name, *overrides, **options):
    config = extends.resolve(extends.load(REPOSITORY / "yamls" / f"{name}.yaml", overrides))
    return costs_of(config, **options)


def test_a_model_by_hand():
    block = 4 * 8 * 8 + 2 * 8 * 32
    bare = mpt_parameters({**MPT, "no_bias": True, "attn_config": {"alibi": True}})
    assert bare.body == 3 * (block + 2 * 8) + 8
    assert (bare.per_token, bare.positions) == (8, 0)
    assert bare.total(10.5) == bare.body + 84
    biases = mpt_parameters(MPT)  # the defaults: biases and learned positions
    assert biases.body == 3 * (block + 2 * 16 + 4 * 8 + 32 + 8) + 16
    assert biases.positions == 16 * 8
    assert mpt_parameters({**MPT, "tie_word_embeddings": False}).per_token == 16


@pytest.mark.parametrize(
    "unknown",
    [
        {"name": "hf_causal_lm"},
        {"ffn_config": {"ffn_type": "mb_moe"}},
        {"attn_config": {"attn_type": "linear"}},
        {"norm_type": "groupnorm"},
        {"fc_type": {"name": "te"}},
        {"block_overrides": {"order": []}},
    ],
)
def test_a_model_that_the_formula_does_not_know_is_refused(unknown):
    with pytest.raises(ConfigError, match=f"does not cover model.{next(iter(unknown))}.* --build"):
        mpt_parameters({**MPT, **unknown})


def test_communication_by_hand():
    """The formulas of the paper's section on costs."""
    names = {variant: f"mc4/125m_{variant}" for variant in ("std", "glob", "trim", "spec")}
    learned = ["model.attn_config.alibi=false", "model.learned_pos_emb=true"]
    at = {v: costs(name, *learned, measured=False) for v, name in names.items()}
    everyone, held, length, width, steps = 250_112, 216_135, 2048, 768, 500
    whole = at["std"].total
    assert at["std"].per_step == whole and at["std"].reduction == 1
    assert at["glob"].per_step == whole / steps and at["glob"].reduction == pytest.approx(steps)
    assert at["trim"].per_step == (whole - (everyone - held) * width) / steps
    assert at["spec"].per_step == (whole - (everyone + length) * width) / steps
    assert at["trim"].total == at["spec"].total == whole - (everyone - held) * width
    averaged = [*learned, "algorithms.dept.inner_state=average", "max_duration=13ep"]
    moments = costs(names["trim"], *averaged, measured=False)
    assert moments.per_step == pytest.approx(at["trim"].per_step * (1 + 4 / 13 + 2 / 13))
    assert moments.message == pytest.approx(at["trim"].message * (1 + 4 / 13 + 2 / 13))
    shared, inner = at["glob"].communicated, costs(names["glob"], *averaged, measured=False).memory
    assert inner.averaged_state == 4 * 2 * shared and at["glob"].memory.averaged_state == 0


@pytest.mark.parametrize("name", STATE)
def test_optimizers_keep_what_the_table_says(name):
    always, by_option = STATE[name]
    kinds = [{}, *[{option: 0.9 if option == "momentum" else True} for option in by_option]]
    for options in kinds:
        assert state_numbers("optimizer", {"name": name, **options}) == always + len(options)
    if name not in OUTER_OPTIMIZERS:
        return  # Composer's, whose state is that of torch's optimizer of like name
    for options in kinds:
        parameter = torch.nn.Parameter(torch.ones(5))
        parameter.grad = torch.ones(5)
        optimizer = OUTER_OPTIMIZERS[name]([parameter], lr=0.1, **options)
        optimizer.step()
        held = [v for v in optimizer.state[parameter].values() if getattr(v, "shape", None) == (5,)]
        assert len(held) == always + len(options), (name, options)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("outer", ["fedavg", "nesterov", "fedadam"])
@pytest.mark.parametrize("inner_state", ["reset", "keep", "average"])
def test_memory_is_what_slots_and_the_outer_optimizer_hold(variant, outer, inner_state):
    model = TinyLM(30, tied=True, positions=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    held = torch.tensor([0, 3, 4, 7]) if variant in ("trim", "spec") else torch.arange(30)
    maps = {source: VocabularyMap.build(held, vocab_size=30, unknown_id=0) for source in ("a", "b")}
    moments = None
    if inner_state == "average":
        moments = MomentAverages({"exp_avg": 1, "exp_avg_sq": 1}, limit_of(optimizer))
    slots = Slots(
        LiveModel(model, optimizer),
        VARIANTS[variant],
        maps,
        inner_state=inner_state,
        seed=1,
        moments=moments,
    )
    reduction = ExactReduction(slots.start)
    local = 0
    for source in ("a", "b"):
        slots.begin(source)
        local = sum(p.numel() for p in model.parameters())
        optimizer.zero_grad()
        model.loss(torch.randint(len(held), (2, 9))).backward()
        optimizer.step()
        shared = slots.finish(1)
        reduction.add(source, shared, Share(1.0, slots.rows(source)))
    memory = dept_memory(
        shared=sum(value.numel() for value in slots.start.values()),
        private=local - slots.communicated("a"),
        local=local,
        slots=3,  # it counts two that have ended
        optimizer={"name": "adamw"},
        outer_optimizer={"name": outer},
        inner_state=inner_state,
    )
    assert memory["start"] == size_of(slots.start)
    assert memory["sums"] == size_of(reduction._sums)
    assert memory["finished"] == 2 * (size_of(shared) + size_of(slots.finished.get("a", {})))
    kept = size_of(slots.private.get("a", {}))
    kept += sum(size_of(state) for state in slots.inner["a"].values())
    assert memory["kept_per_source"] == kept
    if moments is not None:
        shares = [{source: Share(1.0, slots.rows(source)) for source in ("a", "b")}]
        reductions, here = Reductions(None), Workers(Place())
        moments.take(*average_moments(slots, reductions, here, shares, 1, stage=""), 1)
    averaged = moments.values.values() if moments is not None else ()
    assert memory["averaged_state"] == sum(map(size_of, averaged))
    stepper = OuterOptimizer(outer)
    stepper.step(slots.start, reduction.averages())
    by_element = [
        {key: value for key, value in state.items() if not key.startswith(PREFIX)}
        for state in stepper.state.values()
    ]
    assert memory["outer_state"] == sum(map(size_of, by_element))


def size_of(tensors):
    """Bytes of tensors by name; counts of steps are none of a parameter."""
    return sum(t.numel() * t.element_size() for t in tensors.values() if t is not None and t.dim())


def test_sizes_are_measured_where_the_corpus_is_prepared(prepared):
    config = extends.resolve(load(prepared, "dept_trim"))
    stats = [
        json.loads((prepared / f"data/tiny/{name}/global/stats.json").read_text())
        for name in ("manual", "code", "mail", "tools")
    ]
    sizes = costs_of(config).vocabulary
    assert sizes.held == sum(s["local_vocab_size"] for s in stats) / 4
    assert (sizes.everyone, sizes.origin) == (1200, "measured")
    own = costs_of(extends.resolve(load(prepared, "dept_spec_opt"))).vocabulary
    assert own.held == (700 + 700 + 600 + 700) / 4
    config["variables"]["vocabulary"] = {"global": 9000, "trimmed": 5000.5}
    stated = costs_of(config, measured=False).vocabulary
    assert (stated.held, stated.everyone, stated.origin) == (5000.5, 9000, "stated")
    config["model"]["vocab_size"] = 9216  # goes over the tokenizer's, as in training
    assert costs_of(config, measured=False).vocabulary.everyone == 9216
    del config["variables"]["vocabulary"]["trimmed"]
    with pytest.raises(ConfigError, match=r"prepare corpus tiny, or add variables.vocabulary.trim"):
        costs_of(config, measured=False)


def test_the_papers_figures_agree_or_have_a_note():
    figures = {name: row for name, _, row in paper.compare()}
    assert len(figures) == 15
    assert all(figure.note != "" for row in figures.values() for figure in row)
    other = {name: [f.ours for f in row if f.note] for name, row in figures.items()}
    assert other == {
        "mc4/125m_std": ["277M", "277M"],
        "mc4/125m_glob": ["277M", "0.55M"],
        "mc4/125m_trim": ["251M"],
        "mc4/125m_spec": ["251M"],
        "mc4/125m_spec_opt": ["124M"],
        "mc4/1b_std": ["1.72B", "1.72B"],
        "mc4/1b_spec_opt": [],
        "pile/125m_std": ["124M", "124M"],
        "pile/125m_glob": ["124M"],
        "pile/125m_trim": ["120M"],
        "pile/125m_spec": ["120M"],
        "pile/350m_std": ["51.5M", "354M", "354M"],
        "pile/350m_glob": ["51.5M", "354M"],
        "pile/350m_trim": ["348.7M", "0.70M"],
        "pile/350m_spec": ["348.7M"],
    }
    assert paper.compare_reduction().ours == "712"


def test_what_the_notes_say_of_biases_is_so():
    for size, body in paper.BODIES.items():
        counted = costs(f"pile/{size}_std", "model.no_bias=false").parameters.body
        said = body.note.split("(")[1].split(" with biases")[0]
        assert paper.to_digits_of(said, counted) == said


@pytest.mark.parametrize(
    ("what", "value"),
    [
        ("TABLE", paper.TABLE.replace("166M    252M    0.5M", "166M    252M    0.6M")),
        ("TABLE", paper.TABLE.replace("51.4M   350M    350M", "51.4M   351M    350M")),
        ("REDUCTION", ("mc4/1b_spec_opt", "715")),
        ("YAMLS", None),
    ],
)
def test_a_figure_that_drifts_is_noticed(monkeypatch, tmp_path, what, value):
    if what == "YAMLS":  # a body of other size: agreement with the nominal one is no excuse
        (tmp_path / "pile").mkdir()
        for name in [line.split()[0] for line in paper.TABLE.split("\n")[1:-1]]:
            path = tmp_path / f"{name}.yaml"
            path.parent.mkdir(exist_ok=True)
            more = "model: {n_layers: 13}" if name == "pile/125m_std" else ""
            path.write_text(f"extends: {REPOSITORY}/yamls/{name}.yaml\n{more}")
        value = tmp_path
    written = StringIO()
    assert paper.show(Console(file=written, width=120)) == 0
    monkeypatch.setattr(paper, what, value)
    assert paper.show(Console(file=written, width=120)) == 1
    assert "(?)" in written.getvalue() and "without a note" in written.getvalue()


def test_bytes_of_each_codec_by_hand(capsys):
    """A body of numbers and rows of tokens, by the table of docs/compression.md alone."""
    path = str(REPOSITORY / "yamls/mc4/1b_spec_opt.yaml")
    found = codings.costs_by_codec(extends.resolve(extends.load(path)), measured=False)
    body = found["none"].message / 4
    blocks = {"bf16": (1024, 2048), "int8": (512, 516), "int4": (1024, 516), "topk": (4096, 116)}
    for name, (block, width) in blocks.items():
        assert found[name].message == -(-body // block) * width + 4
    path = str(REPOSITORY / "yamls/pile/350m_trim.yaml")
    found = codings.costs_by_codec(extends.resolve(extends.load(path)), measured=False)
    body = found["none"].message / 4 - 45_554 * 1024
    rows = {"int8": 1028, "int4": 516, "topk": 4 + 16 * (10 + 2) // 8}  # of 1024 numbers each
    for name, width in rows.items():
        block, whole = blocks[name]
        assert found[name].message == -(-body // block) * whole + 45_554 * width + 4
    assert main(["--codecs", path]) == 0
    assert "int4" in capsys.readouterr().out
    assert main(["--codecs", str(REPOSITORY / "yamls/mc4/1b_std.yaml")]) == 2


def test_the_command_imports_nothing_slow():
    program = (
        "import sys; from dept.costs.__main__ import main; status = main(sys.argv[1:]);"
        "slow = {'torch', 'composer', 'llmfoundry', 'streaming'} & set(sys.modules);"
        "sys.exit(f'imported {slow}' if slow else status)"
    )
    for arguments in (["yamls/mc4/1b_spec_opt.yaml", "--json"], ["--paper"]):
        command = [sys.executable, "-c", program, *arguments]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        if "--json" in arguments:
            (figures,) = json.loads(done.stdout).values()
            assert figures["parameters"]["body"] == 1_208_059_904
            assert figures["memory_bytes"]["training"] == 16 * figures["parameters"]["total"]
            assert figures["communication"]["parameters_per_step"] == 1_208_059_904 / 500


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["yamls/nowhere.yaml"], "does not exist"),
        (["yamls/dept.yaml", "variables.method=x"], "no section model: name an experiment"),
        (["yamls/pile/350m.yaml"], "variables.method"),
        (
            ["yamls/dept_spec_llama.yaml", "variables.vocabulary={global: 8192, trimmed: 2000}"],
            "give --build",
        ),
        (["yamls/pile/1b_spec.yaml", "optimizer.name=adafactor"], "state has an unknown size"),
        (["yamls/pile/1b_spec.yaml", "algorithms.dept.variant=specs"], "glob, trim, spec"),
    ],
)
def test_what_has_no_costs_is_refused(capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(REPOSITORY)
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_numbers_have_four_digits():
    assert [number(n) for n in (0, 12, 26_252.8, 1_208_059_904)] == ["0", "12", "26.25k", "1.208B"]
    assert number(20.98e9, "B") == "20.98 GB"
