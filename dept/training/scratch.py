"""A temporary folder for each job, so that the files of a killed job can be identified.

StreamingDataset, which llm-foundry's own loaders use, keeps lock files in the temporary folder and
segments of shared memory with the same numbers. Neither has the name of its job, and SIGKILL leaves
both behind.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

_LOCK = re.compile(r"(\d{6})_.*_filelock")


def enter() -> Path:
    """Make and use this job's folder, and remove the folders of jobs that no longer exist.

    The processes of a launcher share one folder. It is removed when the first of them ends.
    """
    base = Path(tempfile.gettempdir())
    launched = "LOCAL_RANK" in os.environ
    job = os.getppid() if launched else os.getpid()
    folder = base / f"dept-{job}"
    folder.mkdir(exist_ok=True)
    if not launched or os.environ["LOCAL_RANK"] == "0":
        for left in _left(base, job):
            _remove_segments(left)
            shutil.rmtree(left, ignore_errors=True)
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["TMPDIR"] = str(folder)
    tempfile.tempdir = None  # so that it is read from the environment again
    return folder


def _left(base: Path, job: int) -> Iterator[Path]:
    """Folders of jobs of this user whose process no longer exists."""
    for folder in base.glob("dept-*"):
        number = folder.name.removeprefix("dept-")
        if not number.isdigit() or int(number) == job or not Path("/proc/self").exists():
            continue
        with contextlib.suppress(FileNotFoundError):  # another job has removed it meanwhile
            if folder.stat().st_uid == os.getuid() and not Path("/proc", number).exists():
                yield folder


def _remove_segments(folder: Path, memory: Path = Path("/dev/shm")) -> None:
    """Remove shared memory that no process has mapped, by the numbers of locks in ``folder``."""
    locks = (_LOCK.fullmatch(path.name) for path in folder.glob("*"))
    numbers = {match[1] for match in locks if match}
    segments = [path for number in numbers for path in memory.glob(f"{number}_*")]
    if segments:
        used = _mapped()
        for path in segments:
            if str(path) not in used:
                path.unlink(missing_ok=True)


def _mapped() -> str:
    """The files that any process has mapped or open, as one text."""
    texts = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            texts.append((process / "maps").read_text())
        except OSError:  # the process has ended, or is of another user
            continue
    return "\n".join(texts)
