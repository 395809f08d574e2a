"""The experiments among the yamls, and stand-ins for what some leave to the command line."""

from pathlib import Path

from omegaconf import OmegaConf
from training import REPOSITORY

from dept.config import extends

YAMLS = REPOSITORY / "yamls"


def names() -> list[str]:
    """Yamls that have a model and data; the others are parts of them."""
    found = []
    for path in sorted(YAMLS.rglob("*.yaml")):
        config = extends.load(path)
        if "model" in config and "train_loader" in config:
            found.append(str(path.relative_to(YAMLS).with_suffix("")))
    return found


NAMES = names()


def stand_ins(name: str, folder: Path) -> list[str]:
    """Overrides for the values that an experiment cannot do without, of the corpus ``tiny``.

    Args:
        name: of the experiment.
        folder: where a checkpoint is pretended to be.
    """
    checkpoint = folder / "ep1-ba1-rank0.pt"
    checkpoint.touch()
    source = "held" if name == "plasticity" else "code"
    known = {"variables.checkpoint": checkpoint, "variables.source": source}
    missing = OmegaConf.missing_keys(extends.load(YAMLS / f"{name}.yaml"))
    found = [f"{key}={value}" for key, value in known.items() if key in missing]
    if name.startswith("federation/"):
        section = "algorithms.dept.federation"
        found += [f"{section}.silo=x", f"{section}.sources=[manual,code,mail,tools]"]
    return found


def resolved(name: str, folder: Path, *overrides: str):
    """An experiment with stand-ins and overrides."""
    return extends.load(YAMLS / f"{name}.yaml", [*stand_ins(name, folder), *overrides])
