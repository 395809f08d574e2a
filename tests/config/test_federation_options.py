"""Options of a federation: what is refused before training, and what all parties must share."""

import pytest
from omegaconf import OmegaConf
from refusals import refusal
from training import load

from dept.config.federation_terms import difference, terms


def plain(config):
    return OmegaConf.to_container(config, resolve=True)


SILO = ["algorithms.dept.federation.silo=x"]
FEDERATED = [*SILO, "algorithms.dept.federation.sources=[tools,code,mail,manual]"]

OPEN = ["algorithms.dept.allow_source_changes=true"]
NOISE = "algorithms.dept.federation.local_privacy={clip_update_norm: 1, noise_multiplier: 1}"
METRICS = "algorithms.dept.federation.metrics=[]"
SHARE = "algorithms.dept.federation.share_embedding=true"
TRIM = "algorithms.dept.variant=trim"


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ([FEDERATED[1]], "federation.silo is null, as at the server"),
        (SILO, "would train manual, which algorithms.dept.federation.sources does not have"),
        ([*FEDERATED, "algorithms.dept.weighting=tokens"], "how much text a silo has"),
        ([*FEDERATED, "algorithms.dept.sampling=stratified"], "set it to uniform in a federation"),
        ([*FEDERATED, "algorithms.dept.sources_per_round=5"], "the federation has 4 sources"),
        ([*FEDERATED, "algorithms.dept.federation.min_sources=5"], "there are 4 sources"),
        ([*FEDERATED, "algorithms.dept.federation.metrics=[text]"], "one of train_loss"),
        ([*FEDERATED, "algorithms.dept.federation.gracious=1"], "has no key 'gracious'"),
        ([*FEDERATED, "algorithms.dept.federation.silo='a b'"], "use letters, digits"),
        ([*FEDERATED, "algorithms.dept.federation.round_timeout=0"], "round_timeout is 0"),
        ([*FEDERATED, "algorithms.dept.federation.leave=[code]"], "leave is set: set algorithms"),
        ([*FEDERATED, *OPEN, "algorithms.dept.federation.leave=[fly]"], "leave has fly, which"),
        ([*FEDERATED, f"{NOISE}", METRICS, f"{SHARE}"], "share_embedding would send what has no"),
        ([*FEDERATED, f"{NOISE}"], "federation.metrics would send what has no noise"),
        ([*FEDERATED, f"{NOISE}", TRIM], "trim sends the token rows of a source"),
        ([*FEDERATED, SHARE, TRIM], "trim has no private embeddings"),
        (
            [*FEDERATED, METRICS, "algorithms.dept.federation.local_privacy={clip_update_norm: 1}"],
            "local_privacy lacks noise_multiplier",
        ),
        ([*FEDERATED, "save_folder=null"], "set save_folder, and save_interval to 1ep"),
        ([*FEDERATED, "save_interval=5ba"], "set save_folder, and save_interval to 1ep"),
    ],
)
def test_a_silo_that_cannot_take_part_is_refused(prepared, capsys, monkeypatch, options, why):
    assert why in refusal(prepared, capsys, monkeypatch, "federation/dept_spec", *options)


def test_a_new_source_needs_the_option(prepared, capsys, monkeypatch):
    fewer = [*SILO, "algorithms.dept.federation.sources=[tools,code,mail]"]
    why = "to bring a new one, set algorithms.dept.allow_source_changes to true"
    assert why in refusal(prepared, capsys, monkeypatch, "federation/dept_spec", *fewer)
    load(prepared, "federation/dept_spec", *fewer, *OPEN, checked=False)


def test_the_terms_of_a_federation_leave_out_what_is_of_one_party(prepared):
    ours = plain(load(prepared, "federation/dept_spec", *FEDERATED, "run_name=a"))
    local = ["algorithms.dept.federation.silo=y", "run_name=b", "train_loader.sources=[mail]"]
    local += ["algorithms.dept.federation.grace=5", "save_num_checkpoints_to_keep=1"]
    local += [NOISE, METRICS, *OPEN, "algorithms.dept.federation.leave=[mail]"]
    theirs = plain(load(prepared, "federation/dept_spec", FEDERATED[1], *local))
    assert difference(terms(ours), terms(theirs)) is None
    text = " ".join([*terms(ours), *terms(ours).values()])
    assert str(prepared) not in text and "tiny" not in text
    for key, value in (
        ("model.d_model", 64),
        ("seed", 3),
        ("algorithms.dept.outer_optimizer.name", "nesterov"),
        ("max_duration", "4ep"),
        ("optimizer.lr", 0.5),
        ("algorithms.dept.federation.sources", "[code,tools,mail,manual]"),
    ):
        other = plain(load(prepared, "federation/dept_spec", *FEDERATED, f"{key}={value}"))
        assert difference(terms(ours), terms(other)).startswith(f"{key} is ")
