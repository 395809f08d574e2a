"""The private embeddings that a silo has chosen to share after training."""

from __future__ import annotations

from collections.abc import Collection

from dept.checkpoint.shared_embedding import SharedEmbedding
from dept.data.corpus import read_corpus
from dept.embeddings.token_strings import strings_of
from dept.method.variants import Role
from dept.training.run import Run


def embeddings_of(run: Run, outside: Collection[str]) -> dict[str, SharedEmbedding]:
    """The private embeddings of the sources that were trained, with the strings of their tokens.

    Args:
        run: the run of the silo.
        outside: sources that have left the federation, and are not shared.
    """
    slots, found = run.slots, {}
    by_token = slots.live.names(Role.TOKENS)
    for source, prepared in run.loader.prepared.items():
        if source in outside or not run.totals["rounds_trained"].get(source):
            continue
        root, corpus = prepared.directory.parents[3], prepared.directory.parents[1].name
        path = read_corpus(root, corpus).tokenizers[prepared.tokenizer].path
        strings = strings_of(path, prepared.vocab_size)
        held = [strings[i] for i in slots.vocabularies[source].token_ids.tolist()]
        found[source] = SharedEmbedding.of(held, slots.private_of(source), by_token)
    return found
