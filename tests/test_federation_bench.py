"""What the bench of killed federations counts, and that it ends when nothing happens."""

import argparse
import zipfile
from types import SimpleNamespace

import pytest
from federation import SILOS
from federation_faults import VICTIMS, Fire, Kill, goodput_of, victim_of

from dept.checkpoint.source_files import SourceFiles


class Standing:
    """A federation in which nothing happens."""

    def __init__(self, folder):
        self.folder = folder
        self.processes = {f"{silo}/trainer": SimpleNamespace(exitcode=None) for silo in SILOS}

    def log(self, party, name):
        return f"first\n{party} has said this last\n" if name == "trainer" else ""


@pytest.fixture
def fire(tmp_path):
    chosen = argparse.Namespace(kills=3, victims=["trainer"], seed=0, patience=0.0)
    return Fire(Standing(tmp_path), tmp_path / "x.yaml", [], chosen)


def test_the_bench_ends_with_what_each_process_has_said_last(fire):
    server = SimpleNamespace(poll=lambda: None)
    fire._watch(server)
    with pytest.raises(SystemExit, match="round 1 has not advanced for 0 s after no kill") as found:
        fire._watch(server)
    assert "the trainer of north: north has said this last" in str(found.value)
    assert "the supernode of north: nothing" in str(found.value)
    fire.federation.processes["east/trainer"].exitcode = 2
    with pytest.raises(SystemExit, match="the trainer of east has ended with status 2"):
        fire._watch(server)


def test_a_trainer_resumes_after_its_checkpoint_and_its_finished_slots(fire):
    checkpoints = fire.federation.folder / "north" / "runs" / "demo" / "checkpoints"
    files = SourceFiles(checkpoints / "sources")
    assert fire._kept("north") == 0
    files.write("en", 0, 20, {})
    assert fire._kept("north") == 20  # of the first round, without a checkpoint
    for name in ("ep1-ba60-rank0.pt", "ep2-ba120-rank0.pt"):
        with zipfile.ZipFile(checkpoints / name, "w"):
            pass
    files.write("en", 2, 0, {})
    files.write("ru", 1, 20, {})
    assert fire._kept("north") == 120
    files.write("ga", 2, 20, {})
    assert fire._kept("north") == 140
    (checkpoints / "ep2-ba120-rank0.pt").write_bytes(b"torn")
    files.remove("ga", (2, 20))
    assert fire._kept("north") == 80  # 60 and the slot of ru


def test_goodput_is_the_share_of_steps_that_reached_the_global_model():
    history = [{"averaged": ["en", "it"]}, {"averaged": ["en"]}, {"averaged": []}]
    kills = [Kill("trainer", "north", 1, 15, 9.0), Kill("superlink", "", 2, 0, 9.0)]
    assert goodput_of(kills, history, 20) == pytest.approx(60 / 75)
    assert goodput_of([], history, 20) == 1.0


def test_every_victim_comes_as_often_as_others():
    drawn = [victim_of(index, VICTIMS, 3) for index in range(50)]
    assert drawn == [victim_of(index, VICTIMS, 3) for index in range(50)]
    assert all(sum(v == victim for v, _ in drawn) == 10 for victim in VICTIMS)
    assert len({tuple(drawn[i : i + 5]) for i in range(0, 50, 5)}) > 5
    assert {silo for _, silo in drawn} == {*SILOS}
