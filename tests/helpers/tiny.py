"""A language model of a few hundred parameters, with what the method asks of a model."""

from types import SimpleNamespace

import torch
from torch import nn


class TinyLM(nn.Module):
    """Embedding, learned positions if asked for, one layer, and a tied or untied head."""

    def __init__(self, vocab_size: int, *, tied: bool, positions: bool, width: int = 4) -> None:
        super().__init__()
        self.config = SimpleNamespace(vocab_size=vocab_size)
        self.wte = nn.Embedding(vocab_size, width)
        self.wpe = nn.Embedding(16, width) if positions else None
        self.layer = nn.Linear(width, width)
        self.head = nn.Linear(width, vocab_size, bias=False)
        if tied:
            self.head.weight = self.wte.weight

    def get_input_embeddings(self) -> nn.Module:
        return self.wte

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def _init_weights(self, module: nn.Module) -> None:
        nn.init.normal_(module.weight, std=0.5)
        if getattr(module, "bias", None) is not None:
            nn.init.zeros_(module.bias)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        x = self.wte(input_ids)
        if self.wpe is not None:
            x = x + self.wpe.weight[: input_ids.shape[1]]
        return self.head(x + torch.tanh(self.layer(x)))

    def loss(self, input_ids: torch.Tensor) -> torch.Tensor:
        logits = self(input_ids)[:, :-1]
        return nn.functional.cross_entropy(
            logits.reshape(-1, logits.shape[-1]), input_ids[:, 1:].reshape(-1)
        )
