"""The update of a source as a coded message with a checksum, and error feedback between rounds.

A message is a sequence of coded blocks, then a CRC-32 of four bytes, lowest first. The parameters
that are averaged as a whole come first, in the order of their names, as one sequence of numbers
that is padded with zeros to whole blocks. The parameters averaged by token row follow by name, and
each row is a block (docs/compression.md has an example).
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dept.errors import ConfigError, NumericalFault, is_number, shown
from dept.method.codecs import WHERE, Codec, Float32, codec_of, of_rows

WHOLE = ""
"""Key of the error of all parameters averaged as a whole; other keys are parameter names."""

CHECKSUM = 4

AT_ONCE, ELSEWHERE = {"cpu": 1 << 19}, 1 << 26
"""How many numbers are coded at once: on a CPU what its caches hold, elsewhere what memory does."""


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
        device = next(iter(update.values())).device
        message = torch.empty(self.size(update, by_row), dtype=torch.uint8, device=device)
        payload, left = message[:-CHECKSUM], {}
        for name, codec, coded in self._coded(payload, update, by_row):
            before, count = (error or {}).get(name), len(coded)
            pieces = _pieces(count, codec.block, device)
            # With error feedback, numbers are coded in the place where their error is kept.
            most = count if self.decay or not count else pieces[0].stop
            room = torch.empty(most, codec.block, device=device)
            places = [room[p if self.decay else slice(p.stop - p.start)] for p in pieces]
            for rows, blocks in zip(pieces, _filled(places, name, update, by_row), strict=True):
                if before is not None:
                    earlier = before[rows].to(device)
                    blocks += earlier if self.decay == 1 else self.decay * earlier
                coded[rows] = codec.encode(blocks)
                if self.decay:
                    blocks -= codec.decode(coded[rows])
            if self.decay:
                left[name] = room.cpu()
        message[-CHECKSUM:] = _checksum(payload)
        return message, left

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
        decoded: dict[str, Tensor] = {}
        for name, codec, coded in self._coded(payload, like, by_row):
            values = torch.empty(len(coded), codec.block, device=message.device)
            for rows in _pieces(len(coded), codec.block, message.device):
                values[rows] = codec.decode(coded[rows])
            if name != WHOLE:
                width = like[name][0].numel() if len(coded) else 0
                decoded[name] = values[:, :width].reshape(like[name].shape)
                continue
            names = [n for n in sorted(like) if n not in by_row]
            sizes = [like[n].numel() for n in names]
            parts = values.flatten()[: sum(sizes)].split(sizes)
            decoded |= {n: part.view(like[n].shape) for n, part in zip(names, parts, strict=True)}
        return decoded

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
        parts = self._layout(like, by_row)
        return sum(count * codec.width for _, codec, count in parts) + CHECKSUM

    def _layout(
        self, like: Mapping[str, Tensor], by_row: Collection[str]
    ) -> list[tuple[str, Codec, int]]:
        """Name, codec, and number of blocks of each part of a message."""
        numbers = sum(value.numel() for name, value in like.items() if name not in by_row)
        layout = [(WHOLE, self.codec, -(-numbers // self.codec.block))] if numbers else []
        for name in sorted(by_row):
            rows = like[name].flatten(1)
            layout.append((name, of_rows(self.codec, rows.shape[1]), len(rows)))
        return layout

    def _coded(
        self, payload: Tensor, like: Mapping[str, Tensor], by_row: Collection[str]
    ) -> Iterator[tuple[str, Codec, Tensor]]:
        """Name, codec, and coded blocks of each part of a payload, as views of it."""
        first = 0
        for name, codec, count in self._layout(like, by_row):
            last = first + count * codec.width
            yield name, codec, payload[first:last].view(count, codec.width)
            first = last


def _pieces(count: int, block: int, device: torch.device) -> list[slice]:
    """Cut blocks into pieces that are coded one after another."""
    step = max(1, AT_ONCE.get(device.type, ELSEWHERE) // block)
    return [slice(at, min(at + step, count)) for at in range(0, count, step)]


def _filled(
    places: Iterable[Tensor], name: str, update: Mapping[str, Tensor], by_row: Collection[str]
) -> Iterator[Tensor]:
    """Fill each of ``places``, float32[n, block], with the next blocks of a part of an update."""
    if name != WHOLE:
        rest = update[name].flatten(1)
        for blocks in places:
            blocks[:, : rest.shape[1]] = rest[: len(blocks)]
            blocks[:, rest.shape[1] :] = 0.0
            rest = rest[len(blocks) :]
            yield blocks
        return
    numbers = (update[n].flatten() for n in sorted(update) if n not in by_row)
    rest = next(numbers)
    for blocks in places:
        free = blocks.view(-1)
        while len(free):
            taken = min(len(free), len(rest))
            free[:taken] = rest[:taken]
            free, rest = free[taken:], rest[taken:]
            if not len(rest):
                rest = next(numbers, torch.zeros((), device=free.device).expand(len(free)))
        yield blocks


LOSSLESS = Compression(Float32(), 0.0)
"""For updates that are gathered and not compressed: float32, with a checksum."""


def _checksum(payload: Tensor) -> Tensor:
    code = zlib.crc32(payload.cpu().numpy())
    parts = [code >> shift & 255 for shift in (0, 8, 16, 24)]
    return torch.tensor(parts, dtype=torch.uint8, device=payload.device)
