"""All places where a library is changed, or used beyond its public interface.

Each patch is here because no hook, subclass or registry of the library serves the purpose. Its
docstring names the version it was written for and the problem. The packages that use this module
(configuration, training, evaluation, data preparation) import it; it imports a library only when a
function is called.
"""

from __future__ import annotations

import atexit
import functools
import importlib.machinery
import importlib.util
import os
import pickle
import platform
import shutil
import sys
import tarfile
import tempfile
import types
from collections.abc import Callable
from types import ModuleType
from typing import Any

from dept.errors import ConfigError


def unpickle_metadata_with(unpickler: type[pickle.Unpickler]) -> None:
    """Make torch read ``.metadata`` of sharded checkpoints with ``unpickler``.

    torch 2.7.0: ``FileSystemReader.read_metadata`` calls ``pickle.load``, and ``weights_only`` does
    not reach it. A subclass of the reader would not be used: Composer makes its own from a path.
    https://github.com/pytorch/pytorch/issues/127525 and 189308.
    """
    from torch.distributed.checkpoint import filesystem

    _load_with(filesystem, unpickler)


def unpickle_resumption_with(unpickler: type[pickle.Unpickler]) -> None:
    """Make ``composer.checkpoint.load.load_resumption_checkpoint`` read with ``unpickler``.

    Composer 0.32.1: it calls ``pickle.load`` on a path, and accepts no reader.
    https://github.com/mosaicml/composer/pull/3937, merged and not released, restricts it.
    """
    from composer.checkpoint import load

    _load_with(load, unpickler)


def _load_with(module: ModuleType, unpickler: type[pickle.Unpickler]) -> None:
    """Replace ``pickle`` in ``module`` by a namespace whose loading uses ``unpickler``."""
    names = {**vars(pickle), "load": lambda file, **options: unpickler(file, **options).load()}
    module.pickle = types.SimpleNamespace(**names)  # type: ignore[attr-defined]


def refuse_archives() -> None:
    """Refuse to unpack tar archives if this Python cannot keep files inside the target folder.

    Python below 3.10.12 or 3.11.4, such as that of Debian 12, lacks ``tarfile.data_filter``
    (CVE-2007-4559, PEP 706), and Composer 0.32.1 unpacks checkpoints with ``extractall``.
    """

    def refuse(archive: tarfile.TarFile, *_: Any, **__: Any) -> None:
        raise ConfigError(
            f"{archive.name} is an archive, which Python {platform.python_version()} cannot unpack "
            f"safely: use Python 3.10.12, 3.11.4, 3.12 or unpack it"
        )

    tarfile.TarFile.extractall = refuse  # type: ignore[method-assign]


def copy_tasks_to_own_folder() -> None:
    """Make llm-foundry copy files of in-context-learning tasks to a folder of this job.

    llm-foundry 0.22.0: ``build_icl_evaluators`` copies them to the working directory, where it
    first removes those of other jobs and workers. A yaml cannot set its ``destination_dir``, and
    ``build_evaluators`` does not pass it. The registry of data sets cannot help: tasks with
    categories are split in that directory before it is used. No issue of this is known.
    """
    from llmfoundry.utils import builders

    build = builders.build_icl_evaluators
    if not hasattr(build, "__wrapped__"):
        builders.build_icl_evaluators = functools.wraps(build)(_in_a_folder(build))


def _in_a_folder(build: Callable[..., Any]) -> Callable[..., Any]:
    def build_icl_evaluators(*arguments: Any, **options: Any) -> Any:
        from composer.utils import dist

        folder = [tempfile.mkdtemp(prefix="icl-") if dist.get_global_rank() == 0 else ""]
        dist.broadcast_object_list(folder)  # all ranks read the files that the first one copies
        os.makedirs(folder[0], exist_ok=True)
        atexit.register(shutil.rmtree, folder[0], ignore_errors=True)
        return build(*arguments, **{"destination_dir": folder[0], **options})

    return build_icl_evaluators


def remember_words(encoder: Any, count: int) -> None:
    """Enlarge the cache of words of a tokenizer.

    tokenizers 0.21: the size can only be set in the constructor, and a tokenizer that is read from
    a file is already constructed. No issue of this is known.

    Args:
        encoder: a ``tokenizers.Tokenizer``; models without such a cache are unchanged.
        count: number of words.
    """
    if hasattr(encoder.model, "_resize_cache"):
        encoder.model._resize_cache(count)


def run_exit_functions() -> None:
    """Run the functions registered with ``atexit``, at the end of a forked process.

    Python 3.10 to 3.12: ``multiprocessing`` ends such a process without running them, and
    ``atexit`` has no public function that does. Composer and Streaming clean up there.
    https://github.com/python/cpython/issues/83856, solved in Python 3.13.
    """
    atexit._run_exitfuncs()


class _StandIn(types.ModuleType):
    """A package without content: every name in it is ``None``."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
        self.__path__: list[str] = []

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


def stand_in_for_missing() -> None:
    """Let Composer and llm-foundry be imported where mlflow or mosaicml-cli is not installed.

    composer 0.32.1 and llm-foundry 0.22.0 import both at their start, and use them only for the
    logger ``mlflow`` and on Mosaic's platform. With what they need they are larger than all else
    that a machine with torch lacks (docs/gpu.md).
    """
    for package, modules in (
        ("mlflow", ("mlflow.data", "mlflow.transformers")),
        ("mcli", ()),
    ):
        if importlib.util.find_spec(package) is None:
            for name in (package, *modules):
                sys.modules[name] = _StandIn(name)
