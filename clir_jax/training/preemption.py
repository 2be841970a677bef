"""SIGTERM: what schedulers send before they take a machine away."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

from clir_jax.processes import anywhere

STATUS = 128 + signal.SIGTERM
"""With which a run ends that SIGTERM has stopped, and its scheduler is to start it again."""


class Preemption:
    """Ends a run at SIGTERM: after the step that is under way, or at once outside of training.

    A context manager; only the main thread hears signals.
    """

    def __init__(self) -> None:
        self._heard = self._training = False
        self._before: Any = None

    def __enter__(self) -> "Preemption":
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._hear)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self._heard = True
        # Works and measurements go on where they were, as after any kill: nothing is to be saved.
        if not self._training:
            raise SystemExit(STATUS)

    @contextlib.contextmanager
    def after_steps(self) -> Iterator[None]:
        """While training: wait for ``reached``."""
        self._training = True
        try:
            yield
        finally:
            self._training = False
        if self._heard:  # after the last step, which is saved
            raise SystemExit(STATUS)

    def reached(self) -> bool:
        """Whether any process was told to stop; all of them ask after the same step."""
        return anywhere(self._heard)
