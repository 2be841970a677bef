"""Several processes of one run: how they join, what they agree on, what only the first one does."""

import itertools
import os
import re
import signal
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

AUTO = "auto"

_JOIN_SECONDS = 1800  # cold pods of TPUs take minutes until all of their hosts are up
_LEAVE_SECONDS = 30  # for the others to come to their end too; after an error they never do
_STARTERS = {"SLURM_STEP_NUM_TASKS": "srun", "OMPI_COMM_WORLD_SIZE": "mpirun"}
_WAIT_MILLISECONDS = 14 * 24 * 3600 * 1000  # works may take days; a lost process ends it earlier
_T = TypeVar("_T")
_waits = itertools.count()


def join(
    coordinator: str | None = None, processes: int | None = None, process: int | None = None
) -> None:
    """Join the other processes of this run; call it before anything asks for a device.

    Args:
      coordinator: ``HOST:PORT`` of process 0; ``"auto"`` reads it, and the rest, from what TPU VMs,
        SLURM and MPI tell; None for a run of one process.
      processes: how many there are, with ``HOST:PORT``.
      process: which of them this is, from 0.

    Raises:
      ValueError: if these do not fit together, or nothing tells about other processes.
    """
    if coordinator is None or coordinator == AUTO:
        if (processes, process) != (None, None):
            raise ValueError(
                "--processes and --process go with --coordinator HOST:PORT; write that too, or "
                "leave them out"
            )
        if coordinator is None:
            _refuse_alone()
            return
        try:
            _initialize(initialization_timeout=_JOIN_SECONDS)
        except ValueError as error:
            raise ValueError(
                "--coordinator auto: neither a TPU VM nor SLURM nor MPI tells here which processes "
                "there are; write --coordinator HOST:PORT --processes N --process I"
            ) from error
        return
    if not re.fullmatch(r"[^:\s]+:\d+", coordinator):
        raise ValueError(
            f"--coordinator {coordinator}: write HOST:PORT of process 0, as in localhost:29500, "
            "or auto"
        )
    if processes is None or process is None or not 0 <= process < processes:
        raise ValueError(
            f"--coordinator {coordinator} comes with --processes {processes} and --process "
            f"{process}; write how many there are, and which this is, from 0 to one less"
        )
    _initialize(coordinator_address=coordinator, num_processes=processes, process_id=process)


def anywhere(flag: bool) -> bool:
    """Whether it is so in any process; all of them ask."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.asarray(flag)).any())


def by_first(work: Callable[[], _T]) -> _T | None:
    """Let the first process do something while the others wait, however long it takes.

    Args:
      work: computes on devices of its own process only.

    Returns:
      What it returns; None in other processes.

    Raises:
      SystemExit: in the others, if it fails; the first process tells why.
    """
    if jax.process_count() == 1:
        return work()
    done, status = None, 0
    try:
        if jax.process_index() == 0:
            status = 1
            done = work()
            status = 0
    finally:
        # Imported late: commands of one process start without it.
        import orbax.checkpoint as ocp

        # A barrier of the coordinator: those of the devices end in errors after a while.
        barrier = ocp.multihost.get_barrier_sync_fn()
        barrier(key=f"by_first {next(_waits)}", timeout_ms=_WAIT_MILLISECONDS)
        status = int(multihost_utils.broadcast_one_to_all(np.int32(status)))
    if status:
        raise SystemExit(status)
    return done


def _initialize(**options: Any) -> None:
    before = signal.getsignal(signal.SIGTERM)
    jax.distributed.initialize(shutdown_timeout_seconds=_LEAVE_SECONDS, **options)
    # JAX has begun to note SIGTERM for a service that no run asks, and nothing would come of it.
    signal.signal(signal.SIGTERM, before)


def _refuse_alone() -> None:
    for variable, program in _STARTERS.items():
        tasks = os.environ.get(variable, "1")
        if tasks != "1":
            raise ValueError(
                f"{program} started {tasks} tasks of this command, which would each train alone in "
                "one --run-dir; add --coordinator auto, or start one task"
            )
