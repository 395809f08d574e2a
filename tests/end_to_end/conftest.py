"""What test files of federations share."""

import shutil

import pytest


@pytest.fixture(scope="module")
def parties(prepared, tmp_path_factory):
    """Silos with their parts of ``tiny``; the server runs in this process."""
    from parties import Parties  # Flower, which it imports, may not be installed

    parties = Parties(prepared, tmp_path_factory.mktemp("parties"))
    yield parties
    parties.close()
    shutil.rmtree(parties.sockets)
