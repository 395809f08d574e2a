"""The update of a source as a coded message with a checksum, and error feedback between rounds.

A message is a sequence of coded blocks, then a CRC-32 of four bytes, lowest first. The parameters
that are averaged as a whole come first, in the order of their names, as one sequence of numbers
that is padded with zeros to whole blocks. The parameters averaged by token row follow by name, and
each row is a block (docs/compression.md has an example).
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dept.errors import ConfigError, NumericalFault, is_number, shown
from dept.method.codecs import WHERE, Codec, Float32, codec_of, of_rows

WHOLE = ""
"""Key of the error of all parameters averaged as a whole; other keys are parameter names."""

CHECKSUM = 4


@dataclass(frozen=True)
class Compression:
    """A codec with its error feedback.

    Args:
        codec: codes blocks of numbers.
        decay: factor of the errors of earlier rounds; 0 drops them (no error feedback).
    """

    codec: Codec
    decay: float

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Compression | None:
        """The compression of ``algorithms.dept.compression``; ``None`` for ``{name: none}``.

        Raises:
            ConfigError: the name or an option is unknown, or a value is out of range.
        """
        if options["name"] == "none":
            if extra := ", ".join(key for key in options if key != "name"):
                raise ConfigError(f"{WHERE}.name none takes no options: remove {extra}")
            return None
        own = {k: v for k, v in options.items() if k not in ("error_feedback", "decay")}
        feedback = options.get("error_feedback", True)
        decay = options.get("decay", 0.95 if own["name"] == "topk" else 1.0)
        if not isinstance(feedback, bool):
            raise ConfigError(
                f"{WHERE}.error_feedback is {shown(feedback)}: set it to true or false"
            )
        if not (is_number(decay) and 0 < decay <= 1):
            raise ConfigError(f"{WHERE}.decay is {shown(decay)}: set it above 0, and to 1 at most")
        return cls(codec_of(**own), float(decay) if feedback else 0.0)

    @torch.no_grad()
    def encode(
        self,
        update: Mapping[str, Tensor],
        by_row: Collection[str],
        error: Mapping[str, Tensor] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Code an update plus the decayed error of earlier messages of the same sender.

        Args:
            update: float32 by name. A parameter averaged by token row has only the rows to send.
            by_row: names of the parameters averaged by token row.
            error: the error that the previous call returned; ``None`` in the first round.

        Returns:
            The message, uint8[n], and the new error by name. The error is on the CPU, and empty
            without error feedback.
        """
        codes, left = [], {}
        for name, codec, blocks in self._blocks(update, by_row):
            if error and name in error:
                blocks = blocks + self.decay * error[name].to(blocks.device)
            coded = codec.encode(blocks)
            codes.append(coded.flatten())
            if self.decay:
                left[name] = (blocks - codec.decode(coded)).cpu()
        payload = torch.cat(codes)
        return torch.cat([payload, _checksum(payload)]), left

    @torch.no_grad()
    def decode(
        self, message: Tensor, like: Mapping[str, Tensor], by_row: Collection[str], *, sender: str
    ) -> dict[str, Tensor]:
        """Decode a message to an update.

        Args:
            message: uint8[n].
            like: tensors with the names and shapes of the update.
            by_row: names of the parameters whose rows are blocks.
            sender: name of the sender, for the error message.

        Returns:
            The update by name, float32.

        Raises:
            NumericalFault: the message is not as it was sent.
        """
        payload = message[:-CHECKSUM]
        if len(message) != self.size(like, by_row) or not torch.equal(
            message[-CHECKSUM:], _checksum(payload)
        ):
            raise NumericalFault(
                f"the coded update of {sender} was cut or altered in transit, and the global model "
                f"is unchanged: check the network, and resume from the last checkpoint"
            )
        update: dict[str, Tensor] = {}
        for name, codec, (count, _) in self._layout(like, by_row):
            coded, payload = payload.split(
                [count * codec.width, len(payload) - count * codec.width]
            )
            values = codec.decode(coded.view(count, codec.width))
            if name != WHOLE:
                width = like[name][0].numel() if count else 0
                update[name] = values[:, :width].reshape(like[name].shape)
                continue
            names = [n for n in sorted(like) if n not in by_row]
            sizes = [like[n].numel() for n in names]
            parts = values.flatten()[: sum(sizes)].split(sizes)
            update |= {n: part.view(like[n].shape) for n, part in zip(names, parts, strict=True)}
        return update

    def bytes_of(self, numbers: int, rows: float, width: int) -> float:
        """Bytes of a message, from counts.

        Args:
            numbers: how many numbers are averaged as a whole.
            rows: how many token rows are sent; may be a mean over sources.
            width: numbers of a row.
        """
        whole = -(-numbers // self.codec.block) * self.codec.width
        return whole + (rows * of_rows(self.codec, width).width if rows else 0) + CHECKSUM

    def size(self, like: Mapping[str, Tensor], by_row: Collection[str]) -> int:
        """The exact bytes of a message, from the shapes of the update.

        Args:
            like: tensors with the names and shapes of the update.
            by_row: names of the parameters whose rows are blocks.
        """
        blocks = [count * codec.width for _, codec, (count, _) in self._layout(like, by_row)]
        return sum(blocks) + CHECKSUM

    def _layout(
        self, like: Mapping[str, Tensor], by_row: Collection[str]
    ) -> list[tuple[str, Codec, tuple[int, int]]]:
        """Name, codec, and the number of blocks and of numbers in each."""
        numbers = sum(value.numel() for name, value in like.items() if name not in by_row)
        whole = (-(-numbers // self.codec.block), self.codec.block)
        layout = [(WHOLE, self.codec, whole)] if numbers else []
        for name in sorted(by_row):
            rows = like[name].flatten(1)
            codec = of_rows(self.codec, rows.shape[1])
            layout.append((name, codec, (len(rows), codec.block)))
        return layout

    def _blocks(
        self, update: Mapping[str, Tensor], by_row: Collection[str]
    ) -> list[tuple[str, Codec, Tensor]]:
        found = []
        for name, codec, (count, block) in self._layout(update, by_row):
            if name == WHOLE:
                names = [n for n in sorted(update) if n not in by_row]
                flat = torch.cat([update[n].flatten().float() for n in names])
                blocks = torch.nn.functional.pad(flat, (0, count * block - len(flat)))
                found.append((name, codec, blocks.view(count, block)))
            else:
                rows = update[name].flatten(1).float()
                found.append(
                    (name, codec, torch.nn.functional.pad(rows, (0, block - rows.shape[1])))
                )
        return found


LOSSLESS = Compression(Float32(), 0.0)
"""For updates that are gathered and not compressed: float32, with a checksum."""


def _checksum(payload: Tensor) -> Tensor:
    code = zlib.crc32(payload.cpu().numpy())
    parts = [code >> shift & 255 for shift in (0, 8, 16, 24)]
    return torch.tensor(parts, dtype=torch.uint8, device=payload.device)
