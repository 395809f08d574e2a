"""A silo that does not train: it sends the global model back, as the local model of its source.

python bench/stub_silo.py <yaml> <socket> <width> <layers> <vocabulary> [key=value ...]
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np

from dept.config import extends
from dept.config.federation_terms import difference, terms
from dept.transport.flower.link import Announcement, Link
from dept.transport.flower.messages import Parcel
from dept.transport.flower.theta import hash_of

SILO, SOURCE = "one", "en"


def shapes_of(width: int, layers: int, vocabulary: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters of an MPT model, whose embedding is tied.

    Args:
        width: `d_model`.
        layers: `n_layers`.
        vocabulary: rows of the embedding; 0 leaves it out.
    """
    inside = {
        "attn.Wqkv": (3 * width, width),
        "attn.out_proj": (width, width),
        "ffn.up_proj": (4 * width, width),
        "ffn.down_proj": (width, 4 * width),
        "norm_1": (width,),
        "norm_2": (width,),
    }
    found = {f"blocks.{i}.{n}": shape for i in range(layers) for n, shape in inside.items()}
    return found | ({"wte": (vocabulary, width)} if vocabulary else {})


def main(arguments: Sequence[str]) -> None:
    """Answer every round, until there is nothing to train."""
    yaml, socket, width, layers, vocabulary, *overrides = arguments
    draw = np.random.default_rng(0)
    shapes = shapes_of(int(width), int(layers), int(vocabulary))
    model = {name: draw.random(shape, dtype=np.float32) for name, shape in shapes.items()}
    link = Link(socket, terms(extends.resolve(extends.load(yaml, overrides))), difference)
    link.open()
    link.announce(Announcement(SILO, [SOURCE], "", hash_of(model), model))
    after, drawn = 0, [SOURCE]
    while drawn:
        message = link.next_round(after, lambda: False)
        assert message is not None
        drawn, after = message.fields["drawn"], int(message.fields["round"]) + 1  # type: ignore[assignment,arg-type]
        fields = {name: message.fields[name] for name in ("round", "nonce")}
        fields |= {"refusal": "", "silo": SILO, "sources": list(drawn), "left_out": []}
        arrays = {f"{s}/{n}": value for s in drawn for n, value in message.arrays.items()}
        link.answer(Parcel("update", fields, {}, arrays))
    link.close()


if __name__ == "__main__":
    main(sys.argv[1:])
