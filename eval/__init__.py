"""Evaluation: comparing runs, and what is written of them."""
