"""Messages on stderr: plain, once, and also where a user of logging wants them."""

import errno
import io
import logging
import sys

import pytest

from dept.log import log


@pytest.fixture
def root():
    logger, before = logging.getLogger(), list(logging.getLogger().handlers)
    yield logger
    logger.handlers = before


def test_a_message_is_one_plain_line(capsys):
    log.info("a checkpoint of 100 % was fetched")
    log.warning(ValueError("it could not be written: training continues"))
    log.debug("not shown")
    assert capsys.readouterr().err.splitlines() == [
        "a checkpoint of 100 % was fetched",
        "it could not be written: training continues",
    ]


def test_handlers_of_the_user_get_it_too(capsys, tmp_path, root):
    root.addHandler(logging.FileHandler(tmp_path / "log"))
    log.warning("a sentence")
    assert (tmp_path / "log").read_text() == capsys.readouterr().err == "a sentence\n"


def test_it_is_not_shown_twice_where_the_user_shows_it(capsys, root):
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)s: %(name)s: %(message)s"))
    root.addHandler(handler)
    log.warning("a sentence")
    assert capsys.readouterr().err == "WARNING: dept: a sentence\n"


def test_a_full_disk_that_holds_the_output_ends_nothing(monkeypatch):
    class Full(io.StringIO):
        def flush(self):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sys, "stderr", Full())
    log.error("a sentence")
    assert sys.stderr.getvalue() == "a sentence\n"  # and no traceback
