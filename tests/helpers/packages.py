"""Packages made by hand, and clients that stand for apt-get and npm."""

import io
import os
import stat
import tarfile
from pathlib import Path


def tar_of(files: dict[str, bytes], compression: str = "", *more: tarfile.TarInfo) -> bytes:
    """A tar of files, and of members without content."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=f"w:{compression}") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for info in more:
            archive.addfile(info)
    return out.getvalue()


def deb_of(data: bytes, suffix: str = "", scripts: dict[str, bytes] | None = None) -> bytes:
    """A .deb, which is an archive of ar: a version, the control files, the files."""
    control = {"./control": b"Package: p\nVersion: 1\nArchitecture: all\nMaintainer: a <a@b.c>\n"}
    parts = {
        "debian-binary": b"2.0\n",
        "control.tar": tar_of({**control, **(scripts or {})}),
        f"data.tar{suffix}": data,
    }
    out = b"!<arch>\n"
    for name, content in parts.items():
        head = f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n"
        out += head.encode() + content + b"\n" * (len(content) % 2)
    return out


def stand_in(folder: Path, name: str, script: str) -> str:
    """A client that is a shell script; returns a PATH that has it, and the system's tools."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text("#!/bin/sh\n" + script)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return f"{folder}{os.pathsep}/usr/bin{os.pathsep}/bin"
