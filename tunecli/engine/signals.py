"""SIGTERM and Ctrl-C ask the run to save and end after the step that is being computed."""

from __future__ import annotations

import signal
from types import FrameType


class StopSignal:
    """Remembers the first signal. A second Ctrl-C ends the process at once, without a checkpoint."""

    def __init__(self, *, announce: bool = False) -> None:
        self.announce = announce
        self.requested = False
        self.number = 0

    def install(self) -> StopSignal:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._receive)
        return self

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            raise KeyboardInterrupt
        if self.announce and not self.requested:
            print("\nstopping: saves after this step (Ctrl-C again: ends at once, unsaved)", flush=True)
        self.requested = True
        self.number = number
