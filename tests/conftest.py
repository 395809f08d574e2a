"""What several test files need: a small corpus of real text, prepared by the real command."""

import os
import pydoc_data.topics
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
os.environ["HF_HUB_OFFLINE"] = "1"
# As the commands do, before torch is imported: sums depend on the number of threads, and runs in
# this process are compared with runs in others.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")

SEQUENCE_LENGTH = 32


@pytest.fixture(scope="session")
def prepared(tmp_path_factory) -> Path:
    """Root of a prepared corpus ``tiny``: manual, code, mail and tools, and ``held`` held out."""
    root = tmp_path_factory.mktemp("prepared")
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
