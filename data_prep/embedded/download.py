"""Archives of packages: downloaded once, by the ordinary client of each index, checked by hash.

pip, apt-get and npm use the indexes, mirrors and proxies that the user has configured for them.
Nothing is installed, and no script of a package is run, save the build backend of a Python source
archive (see SELECTION).
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

# Wheels are taken for one fixed platform, whatever this machine is: they are read, not run, and so
# have one hash. pip asks a source archive for its metadata, and so runs its build backend;
# --require-hashes keeps an archive with another content from being run.
SELECTION = {
    "wheel": (
        "--only-binary=:all:",
        "--python-version=3.13.9",
        "--implementation=cp",
        "--platform=manylinux2014_x86_64",
        "--platform=manylinux_2_28_x86_64",
    ),
    "sdist": ("--no-binary=:all:",),
}
QUIETLY = [
    "--no-deps",
    "--no-input",
    "--disable-pip-version-check",
    "--progress-bar=off",
    "--quiet",
]
PYTHON = r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)==(?P<version>[A-Za-z0-9.!+_-]+)"
DEBIAN = r"(?P<name>[a-z0-9][a-z0-9+.-]+)=(?P<version>[A-Za-z0-9.+:~-]+)"
NPM = r"(?P<name>(?:@[a-z0-9][a-z0-9._-]*/)?[a-z0-9][a-z0-9._-]*)@(?P<version>\d[A-Za-z0-9.+-]*)"
INDEX = r"(?P<name>[a-z][a-z0-9-]*)/(?P<component>[a-z-]+)/i18n/Translation-(?P<version>[\w@]+)"


class Kind(NamedTuple):
    """A kind of archive: how its packages are named, and what downloads them.

    Attributes:
        pattern: what a requirement looks like.
        form: the same in words, for messages.
        download: called with the match of the requirement, the folder that takes the file, and the
            sha256 or None.
    """

    pattern: str
    form: str
    download: Callable[[re.Match, Path, str | None], None]


def fetch(
    requirement: str, cache: Path, *, kind: str | None = None, sha256: str | None = None
) -> Path:
    """Downloads one package archive from the configured index, unless the cache has it.

    Args:
        requirement: `name==version` of a Python package, `name=version` of a Debian package,
            `name@version` of an npm package, `suite/component/i18n/Translation-xx` of an index of
            Debian.
        cache: folder for archives; each has its own folder, which appears at once or not
            at all.
        kind: a key of KINDS, or None for a wheel.
        sha256: hash of the archive in hexadecimal; verified before anything else, and again
            on each later use.

    Returns:
        Path of the archive.

    Raises:
        ValueError: the requirement is not pinned, the kind is unknown, or the hash differs.
        RuntimeError: the client is missing or could not download the archive.
    """
    kind = kind or "wheel"
    if kind not in KINDS:
        raise ValueError(
            f"kind {kind!r} of package {requirement} is unknown: write {' or '.join(SELECTION)}."
        )
    pinned = re.fullmatch(KINDS[kind].pattern, requirement)
    if not pinned:
        raise ValueError(
            f"package {requirement!r} is not pinned: write {KINDS[kind].form}, so that everyone "
            "reads one text."
        )
    if kind in ("sdist", "index") and not sha256:
        why = {
            "sdist": "which pip runs code of when it downloads it",
            "index": "which has no version",
        }
        raise ValueError(
            f"package {requirement} is an {kind}, {why[kind]}, and has no sha256: give the one of "
            "an archive that you have looked at."
        )
    folder = Path(cache) / _folder(pinned, kind)
    if not folder.is_dir():
        _publish(functools.partial(KINDS[kind].download, pinned, sha256=sha256), folder)
    archives = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    if len(archives) != 1:
        raise ValueError(
            f"{folder} holds {len(archives)} files instead of one archive: delete the folder to "
            "download it again."
        )
    found = sha256_of(archives[0]) if sha256 else None
    if found != sha256:
        raise ValueError(
            f"{archives[0]} has the sha256 {found}, and the corpus yaml wants {sha256}: delete the "
            "folder it is in to download it again, or correct sha256 if the package was changed on "
            "purpose."
        )
    return archives[0]


def _folder(pinned: re.Match, kind: str) -> str:
    name = "-".join(pinned.groups()[:-1]).lower()
    return urllib.parse.quote(f"{name}-{pinned['version']}-{kind}", safe="+~@")


def sha256_of(path: Path) -> str:
    """The hash of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _publish(download: Callable[[Path], None], folder: Path) -> None:
    """Downloads into a temporary folder, which then becomes `folder`."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".download-") as temporary:
        target = Path(temporary) / "archive"
        target.mkdir()
        download(target)
        try:
            target.replace(folder)
        except OSError:
            if not folder.is_dir():  # otherwise another process has published the same file
                raise


def _pip() -> list[str]:
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    found = shutil.which("pip") or shutil.which("pip3")  # any pip will do: nothing is installed
    if not found:
        raise RuntimeError(
            f"pip, which downloads the text, is not installed for {sys.executable}: "
            "run `python -m ensurepip`, or `uv pip install pip`."
        )
    return [found]


class MissingClient(RuntimeError):
    """A command that is not installed."""


def client(name: str, fix: str) -> str:
    """Path of a command.

    Args:
        name: the command.
        fix: how to come by it, for the error.

    Raises:
        MissingClient: it is not installed.
    """
    found = shutil.which(name)
    if not found:
        raise MissingClient(f"{name}, which this text needs, is not installed: {fix}.")
    return found


def _reason(output: str, marks: tuple[str, ...], number: int = -1) -> str:
    errors = [line for line in output.splitlines() if line.startswith(marks)]
    return errors[number % len(errors)][:200] if errors else "no reason given"


def _of_python(kind: str, pinned: re.Match, target: Path, sha256: str | None) -> None:
    requirement, wanted = pinned[0], target.parent / "requirements.txt"
    wanted.write_text(requirement + (f" --hash=sha256:{sha256}" if sha256 else "") + "\n")
    hashes = ("--require-hashes",) if sha256 else ()
    paths = (f"--dest={target}", f"--requirement={wanted}")
    command = [*_pip(), "download", "--quiet", *QUIETLY, *SELECTION[kind], *hashes, *paths]
    done = subprocess.run(command, capture_output=True, text=True)
    if "DO NOT MATCH THE HASHES" in done.stderr:
        got = re.findall(r"Got\s+([0-9a-f]{64})", done.stderr)
        raise ValueError(
            f"the {kind} of {requirement} has the sha256 "
            f"{got[0] if got else 'of another file'}, and the corpus yaml wants "
            f"{sha256}: correct sha256, or kind if it names the wrong archive."
        )
    if done.returncode:
        raise RuntimeError(
            f"pip could not download the {kind} of {requirement} "
            f"({_reason(done.stderr, ('ERROR',))}): "
            "check the network and the package index that `pip config list` shows."
        )


def _in_english() -> dict[str, str]:
    return {**os.environ, "LC_ALL": "C"}


def _apt() -> str:
    return client("apt-get", "prepare this corpus on Debian or Ubuntu, or copy data/packages")


def _of_debian(pinned: re.Match, target: Path, sha256: str | None) -> None:
    command = [_apt(), "download", "--quiet", pinned[0]]
    done = subprocess.run(command, cwd=target, capture_output=True, text=True, env=_in_english())
    if done.returncode:
        raise RuntimeError(
            f"apt-get could not download {pinned[0]} ({_reason(done.stderr, ('E:',))}): run "
            f"`apt-get update`; if `apt-cache policy {pinned['name']}` then shows another version, "
            "write it with its sha256 into the corpus yaml."
        )


def _of_index(pinned: re.Match, target: Path, sha256: str | None) -> None:
    """The index is fetched by `apt-get update` into folders of its own, so nothing of the system
    changes, and no rights are needed; apt checks the signature of the archive."""
    state, cache = target.parent / "state", target.parent / "cache"
    (state / "lists/partial").mkdir(parents=True)
    (cache / "archives/partial").mkdir(parents=True)
    options = {
        "Dir::State": state,
        "Dir::Cache": cache,
        "Dir::State::status": "/dev/null",
        "APT::Sandbox::User": "root",  # another user may not see the folders
        "Acquire::Languages": pinned["version"],
        "Acquire::GzipIndexes": "false",
        "Acquire::IndexTargets::deb::Packages::DefaultEnabled": "false",
        "Acquire::IndexTargets::deb-src::Sources::DefaultEnabled": "false",
    }
    command = [_apt(), *(f"--option={key}={value}" for key, value in options.items())]
    wanted = {
        "Created-By": "Translations",
        "Codename": pinned["name"],
        "Component": pinned["component"],
        "Language": pinned["version"],
    }
    filters = [f"{key}: {value}" for key, value in wanted.items()]
    done, found = (
        subprocess.run([*command, *more], capture_output=True, text=True, env=_in_english())
        for more in (["update", "--quiet"], ["indextargets", "--format=$(FILENAME)", *filters])
    )
    files = [Path(line) for line in found.stdout.splitlines() if Path(line).is_file()]
    if not files:
        raise RuntimeError(
            f"apt-get could not fetch {pinned[0]} ({_reason(done.stderr, ('E:', 'W:'))}): check "
            f"the network, that /etc/apt/sources.list names {pinned['name']} "
            f"{pinned['component']}, and that Debian has this language."
        )
    files[0].replace(target / f"Translation-{pinned['version']}")


def _of_npm(pinned: re.Match, target: Path, sha256: str | None) -> None:
    npm = client("npm", "install Node.js, or copy data/packages from a machine that has it")
    command = [npm, "pack", "--ignore-scripts", "--loglevel=error", pinned[0]]
    done = subprocess.run(command, cwd=target, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(
            f"npm could not download {pinned[0]} "
            f"({_reason(done.stderr, ('npm error', 'npm ERR!'), 1)}): check the network, and the "
            "registry that `npm config get registry` shows."
        )


KINDS = {
    "wheel": Kind(PYTHON, "name==version", functools.partial(_of_python, "wheel")),
    "sdist": Kind(PYTHON, "name==version", functools.partial(_of_python, "sdist")),
    "deb": Kind(DEBIAN, "name=version", _of_debian),
    "npm": Kind(NPM, "name@version", _of_npm),
    "index": Kind(INDEX, "suite/component/i18n/Translation-xx", _of_index),
}
"""By what `kind` of fetch names."""
