"""Pre-train from a yaml: `composer train.py yamls/dept_spec.yaml [key=value ...]`.

One process: the same with `python train.py`. Every yaml is an llm-foundry yaml; `extends: FILE`
merges it over another, and `algorithms.dept` and `train_loader: {name: sources}` are ours.
"""

import os
import sys
import warnings
from pathlib import Path

# Before torch is imported: threads that wait by spinning make a CPU that other work shares up to
# eight times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from omegaconf import OmegaConf

from callbacks.summary import read_summary, show
from dept import config as configs
from dept import run_folder

# What the pinned libraries say of themselves at import, or of each other, on every run.
NOISE = (
    "pkg_resources is deprecated",
    "alibi or rope is turned on",
    "Cannot split tensor of length",
)
NOISE += ("To copy construct from a tensor",)


def main(arguments: list[str]) -> int:
    """Run one experiment; returns the exit status."""
    if not arguments or arguments[0] in {"-h", "--help"}:
        print(__doc__)
        return 0 if arguments else 2
    try:
        config = configs.load(arguments[0], arguments[1:])
        plain = OmegaConf.to_container(config, resolve=True)
        configs.check(plain)
        folder = run_folder.folder_of(plain)
        finished = prepare_folder(plain, folder)
    except ValueError as error:
        print(f"{arguments[0]}: {error}", file=sys.stderr)
        return 2
    if finished is not None:
        print(f"{folder} is finished; another run_name trains anew", file=sys.stderr)
        show(finished, folder)
        return 0
    pretrain(config)
    return 0


def prepare_folder(config: dict, folder: Path) -> dict | None:
    """Look at what an earlier process left; the summary if the run is finished."""
    if not config.get("autoresume") or "://" in str(config.get("save_folder")):
        return None
    run_folder.refuse_other_settings(configs.complete(dict(config)), folder / "config.yaml")
    if os.environ.get("RANK", "0") == "0":
        for path in run_folder.recover(config["save_folder"]):
            print(f"{path} was cut short by a kill and is left aside", file=sys.stderr)
    summary = read_summary(folder / "summary.json")
    return summary if summary and f"{summary['rounds']}ep" == str(config["max_duration"]) else None


def pretrain(config) -> None:
    """Train with llm-foundry, with our names in its registries."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    for message in NOISE:
        warnings.filterwarnings("ignore", message=f".*{message}")
    from llmfoundry.command_utils import train

    import callbacks.registration
    import dept.registration

    callbacks.registration.register()
    dept.registration.register()
    train(config)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
