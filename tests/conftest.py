"""Fixtures for every test."""

from __future__ import annotations

import multiprocessing
import os
import runpy
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from typer.testing import CliRunner, Result

from semisparse.cli import app

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


@pytest.fixture(scope="session")
def invoke() -> Callable[..., Result]:
    """Runs a command in this process, `invoke("run", path, code=0)`, and asserts its exit code."""

    def run(*arguments: object, code: int = 0) -> Result:
        result = CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "200"})
        assert result.exit_code == code, result.output
        return result

    return run


@pytest.fixture(scope="session")
def refused(invoke) -> Callable[..., str]:
    """Runs a command that cannot do what it is asked to, and returns the one line of its error."""

    def run(*arguments: object) -> str:
        result = invoke(*arguments, code=1)
        assert "Traceback" not in result.output
        (line,) = result.stderr.strip().splitlines()
        return str(line)

    return run


class _PowerCutError(Exception):
    pass


@pytest.fixture(scope="session")
def train_until() -> Callable[..., None]:
    """Trains until the power fails at a step: `train_until(settings, out, step)`."""
    from rich.progress import Progress

    from semisparse.training import run

    class Fuse(Progress):
        def __init__(self, step: int) -> None:
            super().__init__(disable=True)
            self.step = step

        def update(self, task_id: Any, **fields: Any) -> None:
            if fields.get("completed") == self.step:
                raise _PowerCutError
            super().update(task_id, **fields)

    def train(settings: Any, out: Path, step: int) -> None:
        with pytest.raises(_PowerCutError):
            run.train(settings, out, progress=Fuse(step))

    return train
