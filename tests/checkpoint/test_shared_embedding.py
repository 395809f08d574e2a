"""Embeddings that silos share: their message, their file, and the folder of a server."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dept.checkpoint.reader import read_trained
from dept.checkpoint.shared_embedding import SharedEmbedding, read_all
from dept.errors import ConfigError

TOKENS = ["the", "\ufdd0</s>", " a", "zebra"]
VALUES = {"wte": torch.arange(8.0).view(4, 2), "wpe": torch.arange(6.0).view(3, 2)}


def shared():
    return SharedEmbedding.of(TOKENS, VALUES, ["wte"])


def assert_whole(found):
    """Every token has its row, positions are in their order."""
    rows = dict(zip(found.tokens, found.values["wte"], strict=True))
    assert {t: row.tolist() for t, row in rows.items()} == dict(
        zip(TOKENS, VALUES["wte"].tolist(), strict=True)
    )
    assert torch.equal(found.values["wpe"], VALUES["wpe"])


def test_rows_are_in_the_order_of_their_strings():
    assert list(shared().tokens) == sorted(TOKENS)
    assert_whole(shared())


def test_it_survives_a_message_and_a_file(tmp_path):
    arrays = shared().arrays("en") | {"it/wte": np.zeros((2, 2), np.float32)}
    assert {a.dtype.name for a in arrays.values()} == {"float32", "uint8"}
    found = SharedEmbedding.of_arrays(arrays, "en")
    assert_whole(found)
    found.write(tmp_path, "en", {"variant": "spec"})
    assert list(read_all(tmp_path)) == ["en"]
    assert_whole(read_all(tmp_path)["en"])


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"en/tokens": None}, "no token strings"),
        ({"en/tokens": b"{}"}, "no list of texts"),
        ({"en/tokens": b"\xff"}, "no list of texts"),
        ({"en/tokens": b'["a", 1]'}, "no list of texts"),
        ({"en/tokens": b'["a", "a", "b", "c"]'}, "one of them twice"),
        ({"en/tokens": b'["a", "b"]'}, "no matrix with a row for each of its 2 tokens"),
        ({"en/wpe": np.full((3, 2), np.nan, np.float32)}, "no matrix of finite float32"),
        ({"en/wpe": np.zeros(3, np.float32)}, "no matrix of finite float32"),
        ({"en/wpe": np.zeros((3, 2), np.uint8)}, "no matrix of finite float32"),
    ],
)
def test_what_is_no_embedding_is_refused(changes, why):
    arrays = shared().arrays("en")
    for name, value in changes.items():
        arrays[name] = np.frombuffer(value, np.uint8) if isinstance(value, bytes) else value
    arrays = {name: value for name, value in arrays.items() if value is not None}
    with pytest.raises(ValueError, match=why):
        SharedEmbedding.of_arrays(arrays, "en")


def test_a_file_that_is_no_embedding_is_refused(tmp_path):
    (tmp_path / "embeddings").mkdir()
    for number, content in enumerate((b"text", b"")):
        path = tmp_path / "embeddings" / f"x{number}.safetensors"
        path.write_bytes(content)
        with pytest.raises(ConfigError, match="is no shared embedding"):
            read_all(tmp_path)
        path.unlink()
    save_file({"wte": torch.zeros(2, 2)}, tmp_path / "embeddings" / "y.safetensors")
    with pytest.raises(ConfigError, match="is no shared embedding"):
        read_all(tmp_path)


def server(folder, **about):
    about = {"variant": "spec", "rounds": "7", "sources": '["en", "it"]', "tokenizer": "h"} | about
    (folder / "config.yaml").write_text("train_loader: {corpus: theirs}\n")
    save_file({"model.body": torch.ones(3)}, folder / "model.safetensors", about)


def test_the_folder_of_a_server_is_read_like_a_checkpoint(tmp_path):
    server(tmp_path)
    trained = read_trained(tmp_path)
    assert (trained.variant, trained.round, trained.folder) == ("spec", 7, tmp_path)
    assert trained.corpus is None and trained.tokenizer_hash == "h"
    assert torch.equal(trained.parameters["model.body"], torch.ones(3))
    with pytest.raises(ConfigError, match="no silo has set"):
        trained.private()
    shared().write(tmp_path, "en", {})
    private = read_trained(tmp_path).private()
    assert list(private) == ["en"] and private["en"].keys() == {"wte", "wpe"}


def test_another_file_of_that_name_is_refused(tmp_path):
    server(tmp_path)
    save_file({"x": torch.ones(3)}, tmp_path / "model.safetensors", {"variant": "spec"})
    with pytest.raises(ConfigError, match="cannot be read as the model of a federation"):
        read_trained(tmp_path)
