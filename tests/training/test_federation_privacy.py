"""What a silo with local privacy sends, and its ledger of it."""

import json
import math

import numpy as np
import pytest
import torch

from dept.errors import ConfigError
from dept.method.averaging import Share
from dept.method.compression import Compression
from dept.method.local_privacy import LocalPrivacy
from dept.training.federation.privacy_ledger import PrivacyLedger
from dept.transport.flower.updates import Updates

PRIVACY = LocalPrivacy(clip_update_norm=1.0, noise_multiplier=2.0)


def start(seed=0):
    draw = np.random.default_rng(seed)
    return {"body": torch.from_numpy(draw.normal(size=(30, 20))).float()}


def sent(ledger, local, compression=None, round_index=0):
    updates = Updates(
        start(), compression, {}, lambda s, update: ledger.protect(s, round_index, update)
    )
    updates.add("en", local, Share(1.0, {}))
    arrays = updates.arrays(["en"])
    ledger.enter(round_index, ["en"], arrays)
    return arrays


@pytest.mark.parametrize("name", ["none", "bf16", "int8"])
def test_what_is_sent_has_noise_on_a_clipped_update(tmp_path, name):
    """By all that the server receives, the update has the norm of noise, not that of the text."""
    compression = Compression.of({"name": name})
    local = {"body": start()["body"] - 50 * torch.ones(30, 20)}
    arrays = sent(PrivacyLedger(PRIVACY, tmp_path), local, compression)
    if compression is None:
        update = start()["body"].numpy() - arrays["en/body"]
    else:
        message = torch.from_numpy(arrays["en"])
        update = compression.decode(message, start(), {}, sender="en")["body"].numpy()
    noise = update - 1 / math.sqrt(600)  # all numbers of the clipped update are equal
    assert np.std(noise) == pytest.approx(2.0, rel=0.15) and abs(np.mean(noise)) < 0.4


def test_the_ledger_counts_what_may_have_left_and_nothing_twice(tmp_path):
    ledger = PrivacyLedger(PRIVACY, tmp_path)
    first = sent(ledger, start(1))
    again = sent(PrivacyLedger(PRIVACY, tmp_path), start(1))  # after a kill
    assert np.array_equal(first["en/body"], again["en/body"])
    ledger = PrivacyLedger(PRIVACY, tmp_path)
    assert ledger.summary()["sources"]["en"]["updates"] == 1
    sent(ledger, start(2))  # another update of the same round
    sent(ledger, start(2), round_index=1)
    found = json.loads((tmp_path / "ledger.json").read_text())
    assert [entry["round"] for entry in found["en"]] == [0, 0, 1]
    assert ledger.summary()["sources"]["en"]["updates"] == 3
    more = [PrivacyLedger(PRIVACY, tmp_path).epsilon("en"), ledger.epsilon("en")]
    assert more[0] == more[1] > 0


def test_the_secret_is_of_each_silo_alone(tmp_path):
    one, other = (PrivacyLedger(PRIVACY, tmp_path / name) for name in "xy")
    arrays = [sent(ledger, start(1))["en/body"] for ledger in (one, other)]
    assert not np.allclose(*arrays, atol=1.0)
    keys = [(tmp_path / name / "noise.key") for name in "xy"]
    assert keys[0].read_bytes() != keys[1].read_bytes() and len(keys[0].read_bytes()) == 32
    assert keys[0].stat().st_mode & 0o077 == 0


def test_a_run_whose_ledger_is_gone_does_not_continue(tmp_path):
    PrivacyLedger(PRIVACY, tmp_path).refuse_without_ledger(0)
    with pytest.raises(ConfigError, match=r"ledger.json is missing, and this silo has sent"):
        PrivacyLedger(PRIVACY, tmp_path).refuse_without_ledger(2)
    sent(PrivacyLedger(PRIVACY, tmp_path), start(1))
    PrivacyLedger(PRIVACY, tmp_path).refuse_without_ledger(2)
