"""``metrics.jsonl`` on a disk that takes no more: nothing raised, nothing lost."""

import json
import resource
from types import SimpleNamespace

import pytest

from dept.errors import NotSaved
from dept.training.jsonl_logger import JsonlLogger


def logger_of(tmp_path):
    logger = JsonlLogger(str(tmp_path / "{run_name}" / "metrics.jsonl"))
    logger.init(SimpleNamespace(run_name="run"), None)
    return logger


def log(logger, *batches):
    for batch in batches:
        logger.log_metrics({"loss": batch / 2})
        time = SimpleNamespace(epoch=SimpleNamespace(value=0), batch=SimpleNamespace(value=batch))
        logger.batch_end(SimpleNamespace(timestamp=time), None)


def batches_in(logger):
    return [json.loads(line)["batch"] for line in logger.path.read_text().splitlines()]


@pytest.fixture
def full_disk():
    """A switch: no file of this process may become longer than 1000 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def switch(on):
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]) if on else before)

    yield switch
    switch(False)


def test_lines_that_the_disk_does_not_take_are_written_when_it_does(tmp_path, full_disk, capfd):
    logger = logger_of(tmp_path)
    logger.fit_start(None, None)
    full_disk(True)
    log(logger, *range(1, 41))
    written = batches_in(logger)  # and no part of a line
    assert 0 < len(written) < 40 and written == list(range(1, len(written) + 1))
    assert capfd.readouterr().err.count("its lines are kept in memory, make room") == 1
    full_disk(False)
    log(logger, 41)
    assert batches_in(logger) == list(range(1, 42))
    assert capfd.readouterr().err == ""


def test_a_checkpoint_holds_the_lines_that_wait(tmp_path, full_disk):
    logger = logger_of(tmp_path)
    logger.fit_start(None, None)
    full_disk(True)
    log(logger, *range(1, 41))
    state = logger.state_dict()
    log(logger, 41)
    end = SimpleNamespace(
        timestamp=SimpleNamespace(epoch=SimpleNamespace(value=1), batch=SimpleNamespace(value=41))
    )
    with pytest.raises(NotSaved, match=r"lines of .*metrics.jsonl could not be written"):
        logger.fit_end(end, None)
    full_disk(False)
    again = logger_of(tmp_path)
    again.load_state_dict(state)
    again.fit_start(None, None)
    log(again, 41)
    assert batches_in(again) == list(range(1, 42))


def test_an_evaluation_before_training_is_the_first_line_whatever_was_there(tmp_path):
    logger = logger_of(tmp_path)
    logger.path.parent.mkdir()
    logger.path.write_text('{"batch": 7, "loss": 0}\n')  # of a killed run without a checkpoint
    log(logger, 0)
    logger.fit_start(None, None)
    log(logger, 1, 2)
    assert batches_in(logger) == [0, 1, 2]
