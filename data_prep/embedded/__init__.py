"""Corpora whose text comes in pinned packages of the Python index, or is made from a seed."""
