"""Coded updates: their bytes as docs/compression.md says, and what error feedback makes of them."""

import struct
import zlib

import numpy as np
import pytest
import torch

import dept.method.compression as of_compression
from dept.errors import ConfigError, NumericalFault
from dept.method.codecs import CODECS, codec_of
from dept.method.compression import Compression


def blocks_of(codec, count=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(count, codec.block, generator=generator) * 10 ** torch.arange(-3.0, 4)[:, None]
    )


def bits_of(data, bits, count):
    """Numbers of ``bits`` each, lowest bit first, by Python's own whole numbers."""
    whole = int.from_bytes(data, "little")
    return [whole >> (i * bits) & ((1 << bits) - 1) for i in range(count)]


def decoded_by_hand(name, codec, block):
    """A block's numbers, by the text of docs/compression.md alone."""
    data = bytes(block.tolist())
    if name == "bf16":
        halves = np.frombuffer(data, "<u2").astype("<u4") << 16
        return halves.view("<f4")
    (scale,) = struct.unpack("<f", data[:4])
    if name == "int8":
        return np.frombuffer(data[4:], "i1") * np.float32(scale)
    if name == "int4":
        return np.array([n - 8 for n in bits_of(data[4:], 4, codec.block)]) * np.float32(scale)
    kept, place_bits = round(codec.density * codec.block), (codec.block - 1).bit_length()
    end = 4 + -(-kept * place_bits // 8)
    places = bits_of(data[4:end], place_bits, kept)
    levels = np.array(bits_of(data[end:], codec.bits, kept))
    values = np.zeros(codec.block, np.float32)
    values[places] = (levels * 2 / (2**codec.bits - 1) - 1) * scale
    return values


@pytest.mark.parametrize("name", CODECS)
def test_a_block_is_read_by_a_decoder_of_its_own(name):
    codec = codec_of(name)
    blocks = blocks_of(codec)
    coded = codec.encode(blocks)
    assert coded.dtype == torch.uint8 and coded.shape == (len(blocks), codec.width)
    expected = np.stack([decoded_by_hand(name, codec, block) for block in coded])
    np.testing.assert_allclose(codec.decode(coded).numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("block", [2, 10, 64, 130, 1000, 8192, 1 << 16])
def test_numbers_of_any_width_are_read_by_the_decoder(block, bits):
    codec = codec_of("topk", density=0.5, block=block, bits=bits)
    blocks = torch.randn(3, block, generator=torch.Generator().manual_seed(0))
    coded = codec.encode(blocks)
    expected = np.stack([decoded_by_hand("topk", codec, block) for block in coded])
    np.testing.assert_allclose(codec.decode(coded).numpy(), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("density", [1 / 512, 1 / 64, 0.2, 0.9, 1.0])
@pytest.mark.parametrize("block", [24, 1000, 4096])
@pytest.mark.parametrize("values", ["many", "few", "one", "in a column"])
def test_the_largest_are_kept_and_of_equal_ones_the_first(values, block, density):
    """Against a stable sort of numpy, where magnitudes differ, are often equal, or all are."""
    generator = torch.Generator().manual_seed(1)
    blocks = torch.randn(20, block, generator=generator)
    if values in ("few", "one"):
        blocks = (blocks * (3 if values == "few" else 0)).round() + 1
    if values == "in a column":
        blocks[:, ::8] *= 100
    codec = codec_of("topk", density=density, block=block, bits=8)
    decoded = codec.decode(codec.encode(blocks)).numpy()  # 256 levels, none of which is 0
    order = np.argsort(-blocks.abs().numpy(), axis=1, kind="stable")[:, : codec.kept]
    np.testing.assert_array_equal([np.flatnonzero(row) for row in decoded], np.sort(order, axis=1))


def test_a_block_with_a_number_that_is_not_finite_is_coded_all_the_same():
    """Whether an update is finite is judged elsewhere, after it has been decoded too."""
    for name in CODECS:
        codec = codec_of(name)
        blocks = blocks_of(codec)
        blocks[1, 3], blocks[2, 5] = torch.nan, torch.inf
        coded = codec.encode(blocks)
        assert torch.equal(coded[3:], codec.encode(blocks[3:]))
        assert not codec.decode(coded)[1].isfinite().all()


@pytest.mark.parametrize(("name", "most"), [("bf16", 2**-8), ("int8", 1 / 254), ("int4", 1 / 14)])
def test_no_number_is_further_off_than_half_a_step(name, most):
    codec = codec_of(name)
    blocks = blocks_of(codec)
    scale = blocks.abs() if name == "bf16" else blocks.abs().amax(dim=1, keepdim=True)
    assert ((codec.decode(codec.encode(blocks)) - blocks).abs() <= most * scale * 1.0001).all()


def test_the_largest_numbers_are_kept_with_their_signs():
    codec = codec_of("topk", density=0.25, block=16, bits=8)
    block = torch.tensor([[0.1, -8, 0.2, 4, 0, 0, 0, 0, 0, 0, 0, -2, 0, 0, 6, 0]])
    decoded = codec.decode(codec.encode(block))
    assert decoded.nonzero()[:, 1].tolist() == [1, 3, 11, 14]
    assert decoded[0, [1, 3, 11, 14]].tolist() == pytest.approx([-8, 4, -2, 6], abs=8 / 255)


@pytest.mark.parametrize("name", CODECS)
def test_nothing_stays_nothing_and_no_block_depends_on_another(name):
    codec = codec_of(name)
    assert not codec.decode(codec.encode(torch.zeros(3, codec.block))).any()
    blocks = blocks_of(codec)
    alone = torch.cat([codec.encode(block[None]) for block in blocks])
    assert torch.equal(codec.encode(blocks), alone)


def update(seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"blocks.b": (30, 40), "blocks.a": (7,), "wte": (12, 6), "wpe": (5, 5)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@pytest.mark.parametrize("by_row", [(), ("wte",)])
@pytest.mark.parametrize("name", CODECS)
def test_a_message_holds_all_parameters_by_name(name, by_row):
    compression = Compression.of({"name": name, "block": 64, "error_feedback": False})
    sent = update()
    message, error = compression.encode(sent, by_row)
    assert error == {} and len(message) == compression.size(sent, by_row)
    assert struct.pack("<I", zlib.crc32(bytes(message[:-4].tolist()))) == bytes(
        message[-4:].tolist()
    )
    received = compression.decode(message, sent, by_row, sender="one")
    assert {n: v.shape for n, v in received.items()} == {n: v.shape for n, v in sent.items()}
    close = {"bf16": 0.01, "int8": 0.02, "int4": 0.3, "topk": 5.0}[name]
    assert all((received[n] - sent[n]).abs().max() < close for n in sent)
    shuffled = {n: sent[n] for n in reversed(sent)}
    assert torch.equal(compression.encode(shuffled, by_row)[0], message)


@pytest.mark.parametrize("by_row", [(), ("wpe", "wte")])
@pytest.mark.parametrize("name", CODECS)
def test_a_message_does_not_depend_on_how_much_is_coded_at_once(name, by_row, monkeypatch):
    coding = Compression.of({"name": name, "block": 8, "decay": 0.9})
    whole, error = [], None
    for seed in range(3):
        message, error = coding.encode(update(seed), by_row, error)
        whole.append((message, error, coding.decode(message, update(), by_row, sender="one")))
    for at_once in (1, 100):
        monkeypatch.setitem(of_compression.AT_ONCE, "cpu", at_once)
        error = None
        for seed, (message, left, decoded) in enumerate(whole):
            again, error = coding.encode(update(seed), by_row, error)
            assert torch.equal(again, message)
            assert all(torch.equal(error[n], left[n]) for n in left)
            received = coding.decode(again, update(), by_row, sender="one")
            assert all(torch.equal(received[n], decoded[n]) for n in decoded)


@pytest.mark.parametrize("name", CODECS)
def test_no_row_at_all_is_a_message_too(name):
    coding = Compression.of({"name": name})
    sent = {**update(), "wte": torch.empty(0, 6)}
    message, error = coding.encode(sent, ["wte"])
    assert error["wte"].shape == (0, 6)
    received = coding.decode(message, sent, ["wte"], sender="one")
    assert received["wte"].shape == (0, 6) and received["blocks.b"].any()


def test_a_message_that_was_cut_or_altered_is_refused():
    compression = Compression.of({"name": "int8"})
    sent = update()
    message, _ = compression.encode(sent, ())
    altered = message.clone()
    altered[100] ^= 1
    for wrong in (message[:-1], altered, torch.cat([message, message[:4]])):
        with pytest.raises(NumericalFault, match="the coded update of en was cut or altered"):
            compression.decode(wrong, sent, (), sender="en")


@pytest.mark.parametrize("by_row", [(), ("wte",)])
@pytest.mark.parametrize("name", CODECS)
def test_error_feedback_sends_in_the_end_what_was_to_be_sent(name, by_row):
    """The sum of what is decoded differs from the sum of what was sent by the last error alone."""
    compression = Compression.of({"name": name, "decay": 1.0})
    wanted, got, error = {}, {}, None
    for round_index in range(20):
        sent = update(round_index)
        message, error = compression.encode(sent, by_row, error)
        received = compression.decode(message, sent, by_row, sender="one")
        for n in sent:
            wanted[n] = wanted.get(n, 0) + sent[n].double()
            got[n] = got.get(n, 0) + received[n].double()
    left = {name: tensor.double() for name, tensor in error.items()}
    names = [n for n in sorted(wanted) if n not in by_row]
    missing = torch.cat([(wanted[n] - got[n]).flatten() for n in names])
    torch.testing.assert_close(missing, left[""].flatten()[: len(missing)], atol=1e-5, rtol=0)
    for n in by_row:
        torch.testing.assert_close(wanted[n] - got[n], left[n][:, :6], atol=1e-5, rtol=0)


def test_errors_of_earlier_rounds_fade_by_the_decay():
    compression = Compression.of({"name": "topk", "decay": 0.5})
    sent = {"w": torch.zeros(4096)}
    error = {"": torch.linspace(-1, 1, 4096)[None]}
    message, left = compression.encode(sent, (), error)
    received = compression.decode(message, sent, (), sender="one")["w"]
    torch.testing.assert_close(left[""][0], 0.5 * error[""][0] - received)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "int3"}, "compression.name is 'int3': set it to one of none, bf16, int8, int4"),
        ({"name": "none", "block": 4}, "compression.name none takes no options: remove block"),
        ({"name": "int8", "density": 0.1}, "compression has an option that int8 does not take"),
        ({"name": "int4", "block": 5}, "block is 5: set it to an even number"),
        ({"name": "topk", "density": 1.5}, "density is 1.5: set it above 0, and to 1 at most"),
        ({"name": "topk", "bits": 9}, "bits is 9: set it to 1 to 8"),
        ({"name": "int8", "error_feedback": "no"}, "error_feedback is 'no'"),
        ({"name": "int8", "decay": 0}, "decay is 0: set it above 0"),
    ],
)
def test_a_wrong_option_is_named(options, message):
    with pytest.raises(ConfigError, match=message):
        Compression.of(options)


def test_a_density_of_one_keeps_all():
    assert codec_of("topk", density=1, block=16).kept == 16


def test_sizes_at_the_defaults():
    """Against float32: a half, a quarter, an eighth, and a part in 141."""
    like = {"w": torch.empty(1 << 20, device="meta")}
    sizes = {n: Compression.of({"name": n}).size(like, ()) / (4 << 20) for n in CODECS}
    expected = {"bf16": 1 / 2, "int8": 1 / 4, "int4": 1 / 8, "topk": 1 / 141.2}
    assert sizes == pytest.approx(expected, rel=0.01)
