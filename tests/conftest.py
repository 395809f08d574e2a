"""What several test files need: a small corpus of real text, prepared by the real command."""

import importlib.util
import logging
import os
import pydoc_data.topics
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from progress import Progress

REPOSITORY = Path(__file__).parent.parent
os.environ["HF_HUB_OFFLINE"] = "1"
# As the commands do, before torch is imported: sums depend on the number of threads, and runs in
# this process are compared with runs in others.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")

SEQUENCE_LENGTH = 32

# Flower needs Python 3.11.
collect_ignore_glob = [] if importlib.util.find_spec("flwr") else ["*/test_federation*.py"]


@pytest.hookimpl(trylast=True)  # after the plugin that makes the reporter
def pytest_configure(config) -> None:
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    is_worker = hasattr(config, "workerinput")  # of xdist, and prints nothing
    if terminal and config.get_verbosity() <= 0 and not is_worker:
        config.pluginmanager.register(Progress(terminal))


def pytest_collection_modifyitems(items) -> None:
    """Files that take minutes come first, or the last one would keep one process of two waiting."""
    long = {item.path for item in items if item.get_closest_marker("end_to_end")}
    items.sort(key=lambda item: item.path not in long)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Take back what a training in this process sets for all of it.

    Where a yaml has a ``python_log_level``, llm-foundry and Composer send all records, down to
    those of debugging, to the standard error of that test, which is closed after it; a trainer that
    is collected later would log to it. And how a trainer multiplies matrices is its own choice.
    """
    loggers = [logging.getLogger(name) for name in (None, "composer", "llmfoundry", "streaming")]
    before = [(logger, logger.level, logger.handlers[:]) for logger in loggers]
    try:
        return (yield)
    finally:
        for logger, level, handlers in before:
            logger.setLevel(level)
            logger.handlers[:] = handlers
        if "torch" in sys.modules:
            sys.modules["torch"].set_float32_matmul_precision("highest")


@pytest.fixture
def registries(monkeypatch) -> None:
    """Forgets after the test what it registers with llm-foundry."""
    import catalogue

    monkeypatch.setattr(catalogue, "REGISTRY", dict(catalogue.REGISTRY))


@pytest.fixture(scope="module")
def prepared(tiny, tmp_path_factory):
    """A copy of ``tiny`` for each test file, so that no two have a run of the same name."""
    root = tmp_path_factory.mktemp("prepared")
    shutil.copytree(tiny, root, dirs_exist_ok=True)
    yield root
    shutil.rmtree(root, ignore_errors=True)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """Root of a prepared corpus ``tiny``: manual, code, mail and tools, and ``held`` held out."""
    root = tmp_path_factory.mktemp("tiny")
    library = Path(os.__file__).parent
    manual = "\n\n".join(pydoc_data.topics.topics.values())[:150_000]
    mail = "\n\n".join(p.read_text() for p in sorted((library / "email").glob("*.py")))[:100_000]
    texts = {
        "manual": manual,
        "code": (library / "argparse.py").read_text(),
        "mail": mail,
        "tools": "\n\n".join(p.read_text() for p in sorted((library / "json").glob("*.py")))
        + (library / "difflib.py").read_text(),
        "held": (library / "ast.py").read_text()[:40_000],
    }
    for name, text in texts.items():
        (root / f"{name}.txt").write_text(text)
    (root / "tiny.yaml").write_text(
        f"corpus: tiny\nsequence_length: {SEQUENCE_LENGTH}\n"
        "split: {val_samples: 20}\n"
        "tokenizers: {global: {vocab_size: 1200}, own: {vocab_size: 700}}\n"
        "sources:\n  manual: {files: manual.txt}\n  code: {files: code.txt}\n"
        "  mail: {files: mail.txt, tokenizer: {vocab_size: 600}}\n"
        "  tools: {files: tools.txt}\n"
        "held_out:\n  held: {files: held.txt}\n"
    )
    command = [sys.executable, "data_prep/prepare.py", str(root / "tiny.yaml"), "--root", str(root)]
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True)
    return root
