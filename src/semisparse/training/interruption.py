"""Ctrl-C as a request that a run grants where it can go on from."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from typing_extensions import override


class StopRequest(Callback):
    """Notes SIGINT and SIGTERM while a model is fitted; a second one interrupts at once.

    What grants the request is `LastCheckpoint`, which asks at the end of every batch.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._requested: float | None = None

    def granted(self, trainer: Trainer) -> bool:
        """Whether any rank was asked to stop; all ranks call this together."""
        return trainer.strategy.reduce_boolean_decision(self._requested is not None, all=False)

    # Not in setup: Lightning puts a handler of SIGTERM in place after that, which broadcasts amid
    # whatever the ranks are exchanging. It restores the handlers it found when fitting ends.
    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> Any:
        now = time.monotonic()
        if self._requested is None:
            self._requested = now
            self._console.print("stopping after this batch; once more stops at once")
        # A launcher passes on what the terminal has sent to every process already.
        elif now - self._requested > 1:
            raise KeyboardInterrupt
