"""Evaluation: comparison of runs, its report, and use of trained models."""
