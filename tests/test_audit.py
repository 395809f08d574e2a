"""What `make lint` says of known vulnerabilities."""

import importlib.util
import re

import pytest
from training import REPOSITORY

specification = importlib.util.spec_from_file_location("audit", REPOSITORY / ".ci/audit.py")
audit = importlib.util.module_from_spec(specification)
specification.loader.exec_module(audit)

REPORT = {
    "dependencies": [
        {"name": "a", "version": "1", "vulns": [{"id": "P-1", "aliases": ["CVE-1"]}]},
        {"name": "b", "version": "2", "vulns": [{"id": "P-2", "fix_versions": ["2.1"]}]},
        {"name": "c", "version": "3", "vulns": []},
        {"name": "d", "skip_reason": "is not there"},
    ]
}


def test_what_is_not_accepted_is_told_with_its_mend():
    assert audit.unaccepted(REPORT, {}) == [
        "a 1: P-1 CVE-1; fixed in no version",
        "b 2: P-2; fixed in 2.1",
    ]
    assert audit.unaccepted(REPORT, {"CVE-1": "x", "b==2": "y"}) == []
    assert len(audit.unaccepted(REPORT, {"b==1": "y"})) == 2


def test_what_is_accepted_has_a_reason_and_is_pinned():
    with pytest.raises(ValueError, match="CVE-1 is accepted without a reason"):
        audit.accepted("# all\nCVE-1\n")
    known = audit.accepted((audit.HERE / "accepted-vulnerabilities.txt").read_text())
    pins = set(re.findall(r"^[a-z0-9-]+==[^ ;]+", audit.REQUIREMENTS.read_text(), re.M))
    assert known and {key for key in known if "==" in key} <= pins
