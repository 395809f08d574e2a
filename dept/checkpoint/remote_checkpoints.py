"""Checkpoints at a remote address: the newest complete one is fetched before training."""

from __future__ import annotations

from collections.abc import Iterable

from dept.checkpoint import durable
from dept.checkpoint.reader import read_trained
from dept.checkpoint.remote_folder import RemoteFolder
from dept.checkpoint.run_folder import CHECKPOINT, numbered_checkpoints, progress, recover
from dept.checkpoint.source_files import FOLDER, SourceFiles, name_of, read_by, states_among
from dept.errors import ConfigError


def checkpoints_among(names: Iterable[str]) -> list[str]:
    """Names of checkpoints, in the order of training."""
    return sorted((n for n in names if CHECKPOINT.fullmatch(n)), key=progress)


def states_at(remote: RemoteFolder, source: str) -> list[tuple[int, int]]:
    """The states of a source at the remote address, ascending.

    Args:
        remote: the remote folder of checkpoints.
        source: name of the source.

    Returns:
        Round (from 0) and local steps of each state.

    Raises:
        ConfigError: the remote folder cannot be listed.
    """
    inside = (name.removeprefix(f"{FOLDER}/") for name in remote.names if "/" in name)
    return states_among(inside, source)


def bring(remote: RemoteFolder, *, with_sources: bool) -> list[str]:
    """Fetch the newest complete checkpoint for ``autoresume``, unless a local one is as new.

    Args:
        remote: remote folder of the run; :func:`recover` must have repaired the local one.
        with_sources: whether to fetch the files of its sources too.

    Returns:
        A sentence for each checkpoint that is left out, and for the one that was fetched.

    Raises:
        ConfigError: the address cannot be used.
    """
    said: list[str] = []
    for left in remote.folder.glob("*.fetched"):  # left by a killed process
        left.unlink()
    here = max((progress(p.name) for *_, p in numbered_checkpoints(remote.folder)), default=None)
    for name in reversed(checkpoints_among(remote.names)):
        if here is not None and progress(name) <= here:
            break
        reason = _bring(remote, name, with_sources)
        if reason is None:
            recover(remote.folder)
            return [*said, f"{remote.address}/{name} was fetched to {remote.folder}"]
        said.append(f"{remote.address}/{name} is left out: {reason}")
    return said


def bring_states(remote: RemoteFolder, source: str, round_index: int) -> bool:
    """Fetch the files of a source that a checkpoint in ``round_index`` may read.

    Args:
        remote: the remote folder of checkpoints. Files that its local folder has whole are not
            fetched.
        source: name of the source.
        round_index: round of the checkpoint, from 0.

    Returns:
        Whether all of them are complete.

    Raises:
        ConfigError: a file cannot be fetched, or the remote folder cannot be listed.
    """
    for state in read_by(states_at(remote, source), round_index):
        name = f"{FOLDER}/{name_of(source, state)}"
        path = remote.folder / name
        if not (path.is_file() and durable.is_whole(path)):
            path = remote.fetch(name)
        if not durable.is_whole(path):
            path.unlink()
            return False
    return True


def _bring(remote: RemoteFolder, name: str, with_sources: bool) -> str | None:
    """Fetch a checkpoint, which gets its name last; returns why it is incomplete, if it is."""
    round_index, _ = progress(name)
    sources = {n.split("/")[1] for n in remote.names if n.startswith(f"{FOLDER}/")}
    for source in sorted(sources) if with_sources else ():
        if not bring_states(remote, source, round_index):
            return f"a file of {source} was cut short or altered"
    path = remote.fetch(name, as_name=f"{name}.fetched")
    try:
        if not durable.is_whole(path):
            return "it was cut short or altered"
        try:
            trained = read_trained(path)
        except ConfigError as error:
            return str(error)
        files = SourceFiles(remote.folder / FOLDER)
        for source in trained.tokens_trained if with_sources else ():
            if not read_by(files.states(source), round_index):
                return f"the files of {source} are not there"
        path.rename(path.with_name(name))
    finally:
        path.unlink(missing_ok=True)
    return None
