"""Composer callbacks and loggers that are also useful without DEPT."""
