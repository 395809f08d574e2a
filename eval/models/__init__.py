"""Trained models in use: a body with one embedding and its tokenizer, as a transformers model."""
