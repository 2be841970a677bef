"""Checkpoints of a stage: asynchronous, complete, restored onto whatever mesh there is.

Orbax does the work behind this file, so that its changes of interface end here. A checkpoint is the
train state and a small JSON: the step is also the position in the data, because batches are a
function of the step.
"""

import contextlib
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from clir_jax.training.step import TrainState
from clir_jax.tree import paths

_STATE, _ABOUT = "state", "meta"


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; its text is one sentence for a person."""


class Checkpoints:
    """The checkpoints of one stage; a context manager that waits for the last write.

    What a kill left half written is removed when they are opened, and never taken for a checkpoint.

    Args:
      directory: made if absent.
      keep: how many of the latest stay; the best stays besides.
    """

    def __init__(self, directory: str | Path, keep: int = 2) -> None:
        self.directory = epath.Path(directory)
        self._keep = keep
        self._manager = ocp.CheckpointManager(
            self.directory.resolve(),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=None,
                preservation_policy=_Preserve(self),
                enable_async_checkpointing=True,
                cleanup_tmp_directories=True,
            ),
        )
        self._metrics: dict[int, float | None] = {}
        for step in self._manager.all_steps():
            self._metrics[step] = self._about(step)["metric"]

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._manager.wait_until_finished()
        self._manager.close()

    @property
    def latest(self) -> int | None:
        """The newest checkpoint's step, complete once ``wait`` returned; None where none is."""
        step: int | None = self._manager.latest_step()
        return step

    @property
    def best(self) -> int | None:
        """The first step with the highest metric; None where no checkpoint has one."""
        return self._best(self._manager.all_steps())

    def wait(self) -> None:
        """Return when every checkpoint begun is complete; raise what went wrong in writing it."""
        self._manager.wait_until_finished()

    def save(
        self, step: int, state: TrainState, meta: dict[str, Any], metric: float | None
    ) -> None:
        """Begin to write; returns as soon as the state is copied, so it may be donated.

        Args:
          step: its name; saving a step again replaces nothing and is skipped.
          state: the train state.
          meta: JSON values that belong to it.
          metric: the selection metric measured at this step, higher is better; None where not.
        """
        if step in self._metrics:
            return
        self._metrics[step] = None if metric is None else float(metric)
        about = {"meta": meta, "metric": self._metrics[step], "shapes": _shapes(state)}
        arguments = ocp.args.Composite(
            **{_STATE: ocp.args.StandardSave(state), _ABOUT: ocp.args.JsonSave(about)}
        )
        self._manager.save(step, args=arguments)

    def restore(self, step: int, target: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """Read a checkpoint onto the shapes, dtypes and shardings of ``target``.

        Args:
          step: which.
          target: arrays or ``jax.ShapeDtypeStruct`` with shardings of this run's mesh; the mesh
            that wrote the checkpoint may have been another.

        Returns:
          The state and the JSON saved with it.

        Raises:
          CheckpointError: if the checkpoint holds other parameters than the target, or is damaged.
        """
        about = self._about(step)
        self._compare(step, about["shapes"], _shapes(target))
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, target)
        restored = self._read(step, _STATE, ocp.args.StandardRestore(abstract))
        return restored, about["meta"]

    def _about(self, step: int) -> dict[str, Any]:
        about: Any = self._read(step, _ABOUT, ocp.args.JsonRestore())
        if not isinstance(about, dict) or not {"meta", "metric", "shapes"} <= about.keys():
            raise self._damaged(step)
        return about

    def _read(self, step: int, item: str, argument: Any) -> Any:
        with _one_error():
            try:
                arguments = ocp.args.Composite(**{item: argument})
                return self._manager.restore(step, args=arguments)[item]
            except (OSError, ValueError, KeyError) as error:
                raise self._damaged(step) from error

    def _damaged(self, step: int) -> CheckpointError:
        return CheckpointError(
            f"{self.directory}/{step}: this checkpoint cannot be read, so a file of it is damaged "
            "or missing; remove it, and the run goes on from the checkpoint before"
        )

    def _compare(self, step: int, saved: dict[str, Any], wanted: dict[str, Any]) -> None:
        different = sorted(p for p in saved.keys() | wanted.keys() if saved.get(p) != wanted.get(p))
        if different:
            path = different[0]
            raise CheckpointError(
                f"{self.directory}: checkpoint {step} does not fit this stage: {path} is "
                f"{saved.get(path, 'absent')} there and {wanted.get(path, 'absent')} here "
                f"({len(different)} differ); go on with the configuration that wrote it, or choose "
                "another --run-dir"
            )

    def _best(self, steps: Sequence[int]) -> int | None:
        measured = [step for step in sorted(steps) if self._metrics[step] is not None]
        # The first of equals: more steps that gained nothing are no better. max keeps the first.
        return max(measured, key=lambda step: self._metrics[step] or 0.0, default=None)

    def _stay(self, steps: Sequence[int]) -> list[bool]:
        """Which of these steps are kept."""
        latest = sorted(steps)[-self._keep :]
        return [step in latest or step == self._best(steps) for step in steps]


class _Preserve(ocp.checkpoint_managers.PreservationPolicy):  # type: ignore[misc]
    """Orbax's question which checkpoints to keep, handed on to ``Checkpoints``."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        self._checkpoints = checkpoints

    def should_preserve(self, checkpoints: Any, *, context: Any) -> list[bool]:
        return self._checkpoints._stay([info.step for info in checkpoints])


def _shapes(state: TrainState) -> dict[str, list[int]]:
    return {path: list(leaf.shape) for path, leaf in paths(state).items()}


@contextlib.contextmanager
def _one_error() -> Iterator[None]:
    """Keep to ourselves what Orbax's other reads say when one of them has failed.

    It abandons them, and each prints a traceback when it ends: by and by, in threads whose event
    loop is closed, so after an error this lasts.
    """
    before, logger = sys.unraisablehook, logging.getLogger("asyncio")

    def unraisable(told: Any) -> None:
        if str(told.exc_value) != "Event loop is closed":
            before(told)

    def heard(record: logging.LogRecord) -> bool:
        return "orbax" not in record.getMessage()

    sys.unraisablehook = unraisable
    logger.addFilter(heard)
    yield
    sys.unraisablehook = before
    logger.removeFilter(heard)
