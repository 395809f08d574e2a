"""Models in use: a body with one embedding and its tokenizer, as a model of transformers."""
