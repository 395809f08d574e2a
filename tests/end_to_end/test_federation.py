"""Real SuperLink, SuperNodes and trainers on loopback learn the numbers of one job, bit for bit."""

import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from fleet import Fleet, learned
from flower_processes import APP, REPOSITORY, Federation, free_port, split_corpus, wait_until
from training import DEPT, MPT, ROUNDS

from dept.checkpoint.source_files import SourceFiles
from dept.training.federation.server_files import ServerFiles
from dept.transport.flower.keys import make_silo

pytestmark = pytest.mark.end_to_end

SILOS = {"left": ["manual", "code"], "middle": ["mail"], "right": ["tools"]}
SOURCES = [source for sources in SILOS.values() for source in sources]
LEARNED = ["model.attn_config.alibi=false", "model.learned_pos_emb=true"]
UNTIED = ["model.tie_word_embeddings=false"]
NESTEROV = ["algorithms.dept.outer_optimizer.name=nesterov"]
HALF = ["algorithms.dept.sources_per_round=2"]
COMMON = ["variables.corpus=tiny", "max_seq_len=32", f"max_duration={ROUNDS}ep", *MPT, *DEPT]


@pytest.fixture(scope="module")
def federation(prepared, tmp_path_factory):
    """A SuperLink, and for each silo a folder with its own text and a SuperNode."""
    sockets = Path(tempfile.mkdtemp(prefix="silos"))  # paths of sockets must be short
    folder = tmp_path_factory.mktemp("federation")
    federation = Federation(folder, SILOS, sockets)
    for silo, sources in SILOS.items():
        split_corpus(prepared, "tiny", sources, folder / silo)
    federation.superlink()
    for silo in SILOS:
        federation.register(silo)
        federation.supernode(silo)
    yield federation
    federation.close()
    shutil.rmtree(sockets)


@pytest.fixture(scope="module")
def fleet():
    fleet = Fleet(1)
    yield fleet
    fleet.close()


def options(name, *more):
    return [*COMMON, f"algorithms.dept.federation.sources=[{','.join(SOURCES)}]", *more, name]


def run(federation, experiment, name, *more, seconds=900):
    """Train a federation until its ServerApp ends; returns the state of the server."""
    yaml = REPOSITORY / "yamls" / "federation" / f"{experiment}.yaml"
    given = options(f"run_name={name}", *more)
    for silo in SILOS:
        federation.trainer(silo, yaml, *given)
    server = federation.serve(yaml, *given)
    wait(lambda: server.poll() is not None, seconds, federation)
    state = ServerFiles(federation.folder / "server" / "runs" / name / "server").load()
    assert state is not None and state.round == ROUNDS, federation.log("server", "run")[-5000:]
    for silo in SILOS:
        wait(
            lambda silo=silo: not federation.processes[f"{silo}/trainer"].is_alive(),
            300,
            federation,
        )
        assert federation.processes[f"{silo}/trainer"].exitcode == 0, federation.log(
            silo, "trainer"
        )
    return state


def wait(condition, seconds, federation):
    for _ in range(seconds * 2):
        if condition():
            return
        time.sleep(0.5)
    logs = [federation.log("server", "run")]
    logs += [federation.log(silo, "trainer") for silo in SILOS]
    pytest.fail("\n".join(log[-3000:] for log in logs))


def of_silos(federation, name, state):
    """All that a federation has learned, from its files: as ``fleet.learned`` has it."""
    found = {f"global/{key}": value.numpy() for key, value in state.theta.items()}
    for silo, sources in SILOS.items():
        files = SourceFiles(federation.folder / silo / "runs" / name / "checkpoints" / "sources")
        for source in sources:
            if not files.states(source):
                continue  # it was never drawn
            newest = files.load(source, files.states(source)[-1])
            for key, value in (newest["slots"]["private"] or {}).items():
                found[f"{source}/{key}"] = value.numpy()
    return found


@pytest.mark.parametrize(
    ("experiment", "more"),
    [
        ("dept_spec", [*NESTEROV, *LEARNED, *UNTIED, "algorithms.dept.sources_per_round=3"]),
        ("dept_trim", ["algorithms.dept.compression={name: topk}", *HALF, *NESTEROV]),
    ],
    ids=["spec", "trim"],
)
def test_a_federation_learns_the_bits_of_one_job(prepared, federation, fleet, experiment, more):
    name = f"same-{experiment}-{len(more)}"
    state = run(federation, experiment, name, *more)
    job = fleet.train(prepared, experiment, f"run_name={name}", *more, processes=1)
    ours, theirs = of_silos(federation, name, state), learned(job)
    drawn = {source for line in state.history for source in line["averaged"]}
    wanted = {k: v for k, v in theirs.items() if k.partition("/")[0] in {"global", *drawn}}
    assert len(drawn) > 2 and any(k.startswith("global/") for k in wanted)
    for key, value in wanted.items():
        assert np.array_equal(ours[key], value), key
    lines = (prepared / "runs" / name / "metrics.jsonl").read_text().splitlines()
    last = {k: v for line in map(json.loads, lines) for k, v in line.items()}
    for source in SOURCES:
        for metric in ("loss", "bits_per_byte"):
            assert state.latest[source][metric] == last[f"eval/{source}/{metric}"]
    for silo, sources in SILOS.items():
        summary = federation.folder / silo / "runs" / name / "summary.json"
        assert json.loads(summary.read_text())["sources"].keys() == set(sources)


def test_a_superlink_that_dies_loses_no_round(prepared, federation, fleet):
    """The SuperNodes connect again by themselves; the operator's command resumes the run."""
    name = "superlink-dies"
    more = [*NESTEROV, "algorithms.dept.federation.grace=600"]
    yaml = REPOSITORY / "yamls" / "federation" / "dept_spec.yaml"
    given = options(f"run_name={name}", *more)
    for silo in SILOS:
        federation.trainer(silo, yaml, *given)
    server = federation.serve(yaml, *given)
    folder = federation.folder / "server" / "runs" / name / "server"
    wait(lambda: (folder / "metrics.jsonl").is_file(), 600, federation)  # after the first round
    superlink = federation.processes["server/superlink"]
    superlink.kill()  # its other processes notice it
    superlink.wait()
    federation.superlink()
    wait(lambda: server.poll() is not None, 600, federation)
    for _ in range(10):  # the run of the dead SuperLink may hold the folder for a while
        again = federation.serve(yaml, *given)
        wait(lambda again=again: again.poll() is not None, 600, federation)
        if (folder / "summary.json").is_file():
            break
    for silo in SILOS:
        trainer = federation.processes[f"{silo}/trainer"]
        trainer.join(300)
        assert trainer.exitcode == 0, federation.log(silo, "trainer")
        assert federation.processes[f"{silo}/supernode"].poll() is None
    state = ServerFiles(folder).load()
    assert [line["missing"] for line in state.history] == [[]] * (ROUNDS + 1)
    job = fleet.train(prepared, "dept_spec", f"run_name={name}", *more[:1], processes=1)
    ours = of_silos(federation, name, state)
    for key, value in learned(job).items():
        assert np.array_equal(ours[key], value), key


def test_a_node_without_a_registered_key_is_refused(federation):
    """And one without TLS: neither gets as far as a number of its own."""
    folder = federation.folder / "stranger"
    make_silo("stranger", folder / "keys")
    key = ["--auth-supernode-private-key", str(folder / "keys" / "stranger.key")]
    known = ["--root-certificates", str(federation.authority)]
    silo = next(iter(SILOS))
    for name, options in (("unregistered", [*known, *key]), ("keyless", known)):
        command = [sys.executable, "-m", "dept.transport.flower.supernode", *options]
        command += ["--superlink", federation.address(silo), "--max-retries", "1"]
        command += ["--host", "127.0.0.1", "--port", str(free_port())]
        process = federation.start(name, command, "stranger")
        assert wait_until(lambda process=process: process.poll() is not None)
        log = federation.log("stranger", name)
        assert process.returncode and "SuperNode ID" not in log, log


def test_a_silo_refuses_another_app_of_the_server(federation, tmp_path):
    """An app that the server's operator has written is not run in a silo."""
    app = tmp_path / "other"
    app.mkdir()
    text = (
        (APP / "pyproject.toml").read_text().replace('serverapp = "dept.training', 'serverapp = "x')
    )
    text = text.replace('"x.federation.server_app:app"', '"other:server"')
    (app / "pyproject.toml").write_text(
        text.replace('"dept.transport.flower.client_app:app"', '"other:client"')
    )
    proof = tmp_path / "proof"
    (app / "other.py").write_text(
        "import time\n"
        "from flwr.app import Message, RecordDict\n"
        "from flwr.clientapp import ClientApp\n"
        "from flwr.serverapp import ServerApp\n"
        "server = ServerApp()\n"
        "client = ClientApp()\n"
        "@client.train()\n"
        "def train(message, context):\n"
        f"    open({str(proof)!r}, 'w').close()\n"
        "    return Message(RecordDict({}), reply_to=message)\n"
        "@server.main()\n"
        "def main(grid, context):\n"
        "    nodes = list(grid.get_node_ids())\n"
        "    grid.push_messages([Message(RecordDict({}), dst_node_id=n, message_type='train')"
        " for n in nodes])\n"
        "    time.sleep(300)\n"
    )
    before = {silo: len(federation.log(silo, "supernode")) for silo in SILOS}
    process = federation.serve(Path("none.yaml"), app=app)
    refusal = "the server wants to run app"

    def all_refuse():
        return all(refusal in federation.log(silo, "supernode")[at:] for silo, at in before.items())

    assert wait_until(all_refuse), federation.log("server", "run")
    process.kill()
    assert not proof.exists()
