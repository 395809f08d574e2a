"""Embeddings that silos share through the server."""

import pytest
import torch
from expected_model import SOURCES, assert_model, expected, three
from silos import serve

from dept.checkpoint.shared_embedding import SharedEmbedding, read_all
from dept.transport.flower.messages import Parcel


def sharing(silo, sources, at_round):
    """A silo that sends embeddings of ``sources`` after ``at_round`` rounds."""
    values = {"wte": torch.arange(6.0).view(3, 2)}
    shared = SharedEmbedding.of(["c", "a", "b"], values, ["wte"])

    def change(parcel):
        if parcel.fields["round"] != at_round:
            return parcel
        fields = {name: parcel.fields[name] for name in ("round", "nonce", "silo")}
        arrays = {n: a for source in sources for n, a in shared.arrays(source).items()}
        return Parcel("embeddings", fields | {"sources": sources}, {"bee/loss": 2.0}, arrays)

    silo.change = change
    return silo


def test_embeddings_that_a_silo_shares_are_written_for_others(tmp_path):
    silos = three()
    sharing(silos[0], ["bee"], 2)
    server, _, said = serve(silos, tmp_path, rounds=2, variant="spec")
    found = read_all(tmp_path)
    assert list(found) == ["bee"] and found["bee"].tokens == ("a", "b", "c")
    assert found["bee"].values["wte"].tolist() == [[2, 3], [4, 5], [0, 1]]
    assert server.state.latest["bee"]["loss"] == 2.0
    assert any("silo x shares the embedding of bee" in line for line in said)
    assert_model(server, expected(2, lambda index: SOURCES))


@pytest.mark.parametrize(
    ("sources", "at_round", "variant", "why"),
    [
        (["bee"], 1, "spec", "a late reply of silo x is dropped"),
        (["eel"], 2, "spec", "it shares embeddings of sources that are not its own"),
        (["bee"], 2, "glob", "glob has no private embeddings"),
    ],
)
def test_embeddings_at_another_time_or_of_others_are_refused(
    tmp_path, sources, at_round, variant, why
):
    silos = three()
    sharing(silos[0], sources, at_round)
    _, _, said = serve(silos, tmp_path, rounds=2, variant=variant)
    assert any(why in line for line in said) and not (tmp_path / "embeddings").exists()
