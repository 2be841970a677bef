"""SIGTERM: what schedulers send before they take a machine away."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

import jax

from clir_jax.processes import anywhere, by_first

STATUS = 128 + signal.SIGTERM
"""With which a run ends that SIGTERM has stopped, and its scheduler is to start it again."""

_TOLD = b"stopped by SIGTERM; the same command goes on from there\n"


class Preemption:
    """Ends a run at SIGTERM: after the step that is under way, or at once outside of training.

    A context manager; only the main thread hears signals. Works and measurements go on where they
    were, as after any kill: nothing is to be saved, and nobody is waited for.
    """

    def __init__(self) -> None:
        self._heard = self._training = False
        self._before: Any = None

    def __enter__(self) -> "Preemption":
        if threading.current_thread() is threading.main_thread():
            self._before = signal.getsignal(signal.SIGTERM)
            self._listen()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _listen(self) -> None:
        if self._before is None:
            return
        # Several processes wait for one another where no handler of Python runs, and one that left
        # in an orderly way would wait for them: the system ends each, which shells call 143 too.
        alone = jax.process_count() == 1
        heard = self._hear if self._training or alone else signal.SIG_DFL
        signal.signal(signal.SIGTERM, heard)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self._heard = True
        if self._training:
            return
        # Not an exception: raised in a callback of another library, it would be overlooked. And not
        # the system's way: it spares the first process of a container.
        os.write(2, _TOLD)
        os._exit(STATUS)

    @contextlib.contextmanager
    def after_steps(self) -> Iterator[None]:
        """While training: wait for ``reached``; what is inside has saved its last step itself.

        Raises:
          SystemExit: at the end, in every process, if any was told to stop behind its last step.
        """
        self._training = True
        self._listen()
        try:
            yield
        finally:
            self._training = False
            self._listen()
        if self.reached():
            by_first(lambda: os.write(2, _TOLD))
            raise SystemExit(STATUS)

    def reached(self) -> bool:
        """Whether any process was told to stop; all of them ask after the same step."""
        return anywhere(self._heard)
