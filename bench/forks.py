"""Processes forked from one that has imported what a run needs: that is paid for once."""

import multiprocessing
import os
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path


def forks() -> ForkServerContext:
    """What to start such processes with; begins to import, while the caller does something else.

    Processes have the environment that this one had at the first call.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["run_imports"])
    folder = os.getcwd()
    os.chdir(Path(__file__).parent)  # where the server looks for it
    try:
        forkserver.ensure_running()
    finally:
        os.chdir(folder)
    return context
