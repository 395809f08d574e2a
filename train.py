"""Pre-train from a yaml: `composer train.py yamls/dept_spec.yaml [key=value ...]`.

One process: the same with `python train.py`. Every yaml is an llm-foundry yaml; `extends: FILE`
merges it over another, and `algorithms.dept` and `train_loader: {name: sources}` are ours.
"""

import sys

from omegaconf import OmegaConf

from dept import config as configs


def main(arguments: list[str]) -> int:
    """Run one experiment; returns the exit status."""
    if not arguments or arguments[0] in {"-h", "--help"}:
        print(__doc__)
        return 0 if arguments else 2
    try:
        config = configs.load(arguments[0], arguments[1:])
        configs.check(OmegaConf.to_container(config, resolve=True))
    except ValueError as error:
        print(f"{arguments[0]}: {error}", file=sys.stderr)
        return 2

    import callbacks.registration
    import dept.registration  # noqa: F401  (both fill llm-foundry's registries)
    from llmfoundry.command_utils import train

    train(config)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
