"""Fixtures for every test."""

from __future__ import annotations

import multiprocessing
import os
import runpy
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from hypothesis import settings

# Threads of torch and OpenMP only compete with one another on the small arrays of the tests.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shared machine is slow at times, which says nothing about the code. The checks before a landing
# (CI is set) always try the same examples: new ones are searched where someone is there to look.
settings.register_profile("shared", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("shared")

_COMMAND = """
import os

for descriptor, name in ((1, "out"), (2, "err")):
    os.dup2(os.open(f"{log}.{name}", os.O_CREAT | os.O_WRONLY | os.O_TRUNC), descriptor)
os.chdir(folder)
os.environ.update(environment)
from semisparse.cli import app
app(arguments)
"""


@pytest.fixture(scope="session")
def launch(tmp_path_factory) -> Callable[..., BaseProcess]:
    """Starts a command in a process of its own, `launch(arguments, log, **environment)`.

    It runs in the folder of `log`, to which it prints as `.out` and `.err`. A process that has
    torch and Lightning imported forks, which saves each command six seconds.
    """
    script = tmp_path_factory.mktemp("launch") / "command.py"
    script.write_text(_COMMAND)
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["semisparse.training.run"])

    def start(arguments: list[str], log: Path, **environment: str) -> BaseProcess:
        names = {"arguments": arguments, "environment": environment}
        names |= {"log": str(log), "folder": str(log.parent)}
        process = processes.Process(
            target=runpy.run_path, args=(str(script),), kwargs={"init_globals": names}
        )
        process.start()
        return process

    return start
