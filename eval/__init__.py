"""Evaluation: comparing runs, what is written of them, and trained models in use."""
