"""Composer callbacks and loggers that are of use without DEPT too."""
