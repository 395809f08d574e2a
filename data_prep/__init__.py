"""Text to tokenizers, MDS shards and statistics: `python data_prep/prepare.py <corpus yaml>`."""
