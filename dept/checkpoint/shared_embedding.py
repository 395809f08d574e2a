"""The private embedding of a source that its silo has chosen to share, and its file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dept.checkpoint import durable
from dept.errors import ConfigError

FOLDER = "embeddings"
"""Name of the folder of such files, beside the body that they belong to."""

_TOKENS = "tokens"


@dataclass(frozen=True)
class SharedEmbedding:
    """Private parameters of a source, whose rows are known by their strings alone.

    Rows are in the order of their strings, so that their order says nothing about the text: ids of
    a tokenizer are often in the order of frequency.

    Attributes:
        tokens: string of each row (``dept/embeddings/token_strings.py``), ascending.
        values: float32 by parameter name: ``[rows, d]`` of tokens, ``[length, d]`` of positions.
    """

    tokens: tuple[str, ...]
    values: Mapping[str, Tensor]

    @classmethod
    def of(
        cls, tokens: Sequence[str], values: Mapping[str, Tensor], by_token: Sequence[str]
    ) -> SharedEmbedding:
        """The embedding of a source, with its rows put in the order of their strings.

        Args:
            tokens: string of each row, all different.
            values: private parameters by name.
            by_token: names of those with a row for each token.
        """
        order = sorted(range(len(tokens)), key=tokens.__getitem__)
        ids = torch.tensor(order)
        return cls(
            tuple(tokens[i] for i in order),
            {
                name: (value[ids.to(value.device)] if name in by_token else value).float().cpu()
                for name, value in values.items()
            },
        )

    def arrays(self, source: str) -> dict[str, np.ndarray]:
        """As arrays of a message: ``<source>/<parameter>``, and the strings as JSON in uint8."""
        text = np.frombuffer(json.dumps(self.tokens).encode(), np.uint8)
        found = {f"{source}/{name}": value.numpy() for name, value in self.values.items()}
        return {f"{source}/{_TOKENS}": text, **found}

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, np.ndarray], source: str) -> SharedEmbedding:
        """Read the arrays of a source in a message.

        Args:
            arrays: all arrays of the message.
            source: whose to read.

        Raises:
            ValueError: they are no embedding.
        """
        mine = {
            name.removeprefix(f"{source}/"): array
            for name, array in arrays.items()
            if name.startswith(f"{source}/")
        }
        text = mine.pop(_TOKENS, None)
        if text is None or text.dtype != np.uint8:
            raise ValueError(f"the embedding of {source} has no token strings")
        values = {name: torch.from_numpy(array.copy()) for name, array in mine.items()}
        return _checked(_strings(text.tobytes(), source), values, source)

    def write(self, folder: Path, source: str, about: Mapping[str, str]) -> Path:
        """Write ``<folder>/embeddings/<source>.safetensors``.

        Args:
            folder: where the body is.
            source: name of the source.
            about: further facts, for the header of the file.
        """
        path = folder / FOLDER / f"{source}.safetensors"
        values = {name: value.contiguous() for name, value in self.values.items()}
        with durable.replacing(path) as temporary:
            save_file(values, temporary, {**about, _TOKENS: json.dumps(self.tokens)})
        return path


def read_all(folder: Path) -> dict[str, SharedEmbedding]:
    """The shared embeddings beside a body, by source.

    Args:
        folder: where the body is.

    Raises:
        ConfigError: a file is no shared embedding.
    """
    found = {}
    for path in sorted((folder / FOLDER).glob("*.safetensors")):
        try:
            with safe_open(path, "pt") as file:
                values = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                text = (file.metadata() or {}).get(_TOKENS, "")
            found[path.stem] = _checked(_strings(text.encode(), path.stem), values, path.stem)
        except (SafetensorError, ValueError, OSError) as error:
            raise ConfigError(f"{path} is no shared embedding ({error}): copy it again") from error
    return found


def _strings(text: bytes, source: str) -> list[str]:
    try:
        tokens = json.loads(text)
    except ValueError:
        tokens = None
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise ValueError(f"the token strings of {source} are no list of texts")
    return tokens


def _checked(tokens: list[str], values: Mapping[str, Tensor], source: str) -> SharedEmbedding:
    if not tokens or len(set(tokens)) != len(tokens):
        raise ValueError(f"{source} has no token strings, or one of them twice")
    if not any(value.ndim == 2 and len(value) == len(tokens) for value in values.values()):
        raise ValueError(f"{source} has no matrix with a row for each of its {len(tokens)} tokens")
    for name, value in values.items():
        if value.dtype != torch.float32 or value.ndim != 2 or not bool(value.isfinite().all()):
            raise ValueError(f"{name:.80} of {source} is no matrix of finite float32")
    return SharedEmbedding(tuple(tokens), dict(values))
