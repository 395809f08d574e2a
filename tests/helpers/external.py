"""A model from elsewhere: a small GPT-NeoX with a byte-level tokenizer, saved by transformers."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

CONTEXT = 24
END = "<|endoftext|>"


def neox_tokenizer(text: str) -> PreTrainedTokenizerFast:
    """Made as GPT-NeoX's: bytes, pairs merged, and offsets without the space before a word."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([text], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, bos_token=END, unk_token=END
    )


def save_neox(folder: Path, text: str, steps: int) -> None:
    """Train a few steps on the text, and save."""
    torch.manual_seed(0)
    tokenizer = neox_tokenizer(text)
    config = GPTNeoXConfig(
        vocab_size=416,  # padded, as GPT-NeoX's is
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=CONTEXT,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = GPTNeoXForCausalLM(config)
    ids = torch.tensor(tokenizer(text).input_ids)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(steps):
        starts = torch.randint(len(ids) - CONTEXT, (16, 1))
        batch = ids[starts + torch.arange(CONTEXT)]
        optimizer.zero_grad()
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def plain_nats(model, ids: list[int], context: int) -> list[float]:
    """Nats of ``ids[1:]``, a window at a time, in plain torch."""
    nats = []
    for begin in range(0, len(ids) - 1, context - 1):
        window = torch.tensor(ids[begin : begin + context])
        with torch.no_grad():
            logits = model(input_ids=window[:-1].unsqueeze(0)).logits[0]
        loss = torch.nn.functional.cross_entropy(logits, window[1:], reduction="none")
        nats += loss.tolist()
    return nats
