"""Known vulnerabilities of the packages that requirements.txt pins; part of `make lint`.

    python .ci/audit.py

runs pip-audit. Vulnerabilities listed in `accepted-vulnerabilities.txt`, beside this file, are not
reported; any other makes the exit status 1. If the package index serves no such data, it prints one
line about that.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
REQUIREMENTS = HERE.parent / "requirements.txt"
PROBE = "torch"  # it is audited first, alone, to see whether there is an answer
PATIENCE = 300  # seconds


def accepted(text: str) -> dict[str, str]:
    """Identifiers, or `package==version`, with their reasons; `#` begins a remark."""
    lines = (line.split("#")[0].split(maxsplit=1) for line in text.splitlines())
    found = {}
    for parts in filter(None, lines):
        if len(parts) < 2:
            raise ValueError(f"{parts[0]} is accepted without a reason: write one after it")
        found[parts[0]] = parts[1]
    return found


def unaccepted(report: Mapping[str, Any], known: Mapping[str, str]) -> list[str]:
    """A line for each vulnerability in a report of pip-audit that is not accepted."""
    lines = []
    for package in report["dependencies"]:
        if f"{package['name']}=={package.get('version')}" in known:
            continue
        for found in package.get("vulns", ()):
            if not {found["id"], *found.get("aliases", ())} & set(known):
                fix = ", ".join(found.get("fix_versions") or ()) or "no version"
                names = " ".join([found["id"], *found.get("aliases", ())])
                lines.append(f"{package['name']} {package['version']}: {names}; fixed in {fix}")
    return lines


def audit(requirements: str) -> dict[str, Any] | None:
    """The report of pip-audit on pinned requirements; `None` if it gets no answer."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(requirements)
        file.flush()
        command = [sys.executable, "-m", "pip_audit", "--requirement", file.name, "--no-deps"]
        command += ["--format", "json", "--disable-pip", "--progress-spinner", "off"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
            report = json.loads(done.stdout)
        except (subprocess.TimeoutExpired, ValueError):
            return None
    return report if any("vulns" in package for package in report["dependencies"]) else None


def main() -> int:
    """Command line; returns the exit status."""
    pinned = REQUIREMENTS.read_text().replace("\\\n", " ").splitlines()
    probe = [line for line in pinned if line.startswith(f"{PROBE}==")]
    report = audit(probe[0]) and audit("\n".join(pinned))
    if report is None:
        print("audit: the package index serves no data on vulnerabilities; nothing was checked")
        return 0
    known = accepted((HERE / "accepted-vulnerabilities.txt").read_text())
    lines = unaccepted(report, known)
    for line in lines:
        print(f"{line}: take that version, or accept it in .ci/accepted-vulnerabilities.txt")
    if not lines:
        count = sum(len(package.get("vulns", ())) for package in report["dependencies"])
        print(
            f"audit: {len(report['dependencies'])} packages, {count} vulnerabilities, all accepted"
        )
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
