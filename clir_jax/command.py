"""What all commands share: a mistake is one sentence and exit status 2, never a traceback."""

import sys
from collections.abc import Callable


def carry_out(work: Callable[[], int], when_stopped: str = "stopped") -> int:
    """Do a command's work.

    Args:
      work: returns the exit status. ``ValueError`` and ``OSError`` from it, other libraries'
        too, are taken for mistakes in what was given, ``ImportError`` for an optional package that
        is not installed, ``RuntimeError`` of our own for a run that cannot go on; anything else is
        a fault of this program and keeps its traceback.
      when_stopped: what to say when the user interrupts it.

    Returns:
      The exit status; 2 for a mistake, 1 for a run that cannot go on, 130 when interrupted.
    """
    try:
        return work()
    except (ValueError, OSError, ImportError) as error:
        if type(error).__module__.startswith("jax"):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if not type(error).__module__.startswith("clir_jax"):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(when_stopped, file=sys.stderr)
        return 130
