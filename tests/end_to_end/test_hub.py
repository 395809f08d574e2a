"""Exports that are sent to a hub: byte for byte what was written, or a sentence."""

import os
import subprocess
import sys

import pytest
from fleet import free_port
from hub import Hub
from training import REPOSITORY, train

from dept.evaluation.export import main

pytestmark = pytest.mark.end_to_end

PUSH = """
import sys
from pathlib import Path
from dept.evaluation.hub import NotPushed, push
try:
    print(push(Path(sys.argv[1]), sys.argv[2]))
except NotPushed as error:
    sys.exit(str(error))
"""


@pytest.fixture
def hub():
    with Hub() as serving:
        yield serving


def command(folder, endpoint, *arguments, token=None, **more):
    """Run Python as a process of its own: the client reads its environment once."""
    environment = {k: v for k, v in os.environ.items() if k not in ("HF_HUB_OFFLINE", "HF_TOKEN")}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(folder / "home"), **more}
    environment |= {} if token is None else {"HF_TOKEN": token}
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
    )


def files_of(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_what_was_exported_arrives_byte_for_byte(prepared, tmp_path, hub, capsys):
    train(prepared, "dept_spec", "run_name=sent", "max_duration=1ep")
    run, out = str(prepared / "runs/sent/checkpoints"), tmp_path / "out"
    arguments = ["--all", "--out", out, "--push-to", "me/model", "--private"]
    done = command(tmp_path, hub.address, "eval/export.py", run, *arguments, token="hf_writes")
    assert done.returncode == 0, done.stderr
    names = {source: f"me/model-{source}" for source in ("manual", "code", "mail", "tools")}
    sent = [f"{hub.address}/{name}" for name in names.values()]
    assert done.stdout.splitlines() == [*(str(out / source) for source in names), *sent]
    assert set(hub.repositories) == hub.private == set(names.values())
    for source, name in names.items():
        written = files_of(out / source)
        assert {"README.md", "config.json", "tokenizer.json", "model.safetensors"} <= set(written)
        assert hub.repositories[name] == written
    assert len(hub.large) == len(hub.commits) == 4

    # Before anything is written
    no = [run, "--source", "code", "--out", str(tmp_path / "no"), "--push-to", "model"]
    assert main(no) == 2 and not (tmp_path / "no").exists()
    assert "\nerror: 'model' is no name of a repository: " in "\n" + capsys.readouterr().err


@pytest.fixture
def export(tmp_path):
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "README.md").write_text("---\ntags: [dept]\n---\n# A card\n")
    (folder / "model.safetensors").write_bytes(bytes(range(256)))
    return folder


def test_a_second_push_goes_over_the_first(export, tmp_path, hub):
    for card in ("first", "second"):
        (export / "README.md").write_text(card)
        done = command(tmp_path, hub.address, "-c", PUSH, export, "me/model", token="hf_writes")
        assert done.returncode == 0, done.stderr
        assert hub.repositories == {"me/model": files_of(export)}
    assert len(hub.commits) == 2


@pytest.mark.parametrize(
    ("token", "answers", "message"),
    [
        (None, {}, "asks for a token: set HF_TOKEN to one that may write me/model; "),
        ("hf_other", {}, "does not take the token: set HF_TOKEN to a valid one; "),
        ("hf_reads", {}, "the token may not write me/model: set HF_TOKEN to one that may, or "),
        ("hf_writes", {"*/preupload/*": 403}, "the token may not write me/model: set HF_TOKEN"),
        ("hf_writes", {"/large/*": 403}, "the token may not write me/model: set HF_TOKEN"),
        ("hf_writes", {"*/commit/*": 507}, "failed (status 507): try later; "),
        ("hf_writes", {"*/commit/*": 422}, "refuses me/model (422 Client Error"),
    ],
)
def test_what_cannot_be_sent_is_said_and_stays(export, tmp_path, hub, token, answers, message):
    hub.answers |= answers
    before = files_of(export)
    done = command(tmp_path, hub.address, "-c", PUSH, export, "me/model", token=token)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    (error,) = [line for line in done.stderr.splitlines() if message in line]
    assert error.endswith(f"`huggingface-cli upload me/model {export}` sends it later")
    assert files_of(export) == before and not any(hub.repositories.values())


def test_without_a_network_it_is_said(export, tmp_path):
    nowhere = f"http://127.0.0.1:{free_port()}"
    done = command(tmp_path, nowhere, "-c", PUSH, export, "me/model", token="hf_writes")
    assert f"{nowhere} does not answer: look at the network, or at HF_ENDPOINT; " in done.stderr
    done = command(tmp_path, nowhere, "-c", PUSH, export, "me/model", HF_HUB_OFFLINE="1")
    assert done.stderr.startswith("HF_HUB_OFFLINE forbids to send anything: unset it; ")
