"""Text under models: bits per byte, spelling, validation text, routing, questions made of text."""
