"""What a run tells while it works: a progress line, JSON lines and TensorBoard."""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

import jax
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from clir_jax.data.reading import Report
from clir_jax.files import write_text

# Plain output goes to files and continuous-integration logs, where a line every step is noise.
_PLAIN_SECONDS = 10.0


class StageLog:
    """The log of one stage: ``metrics.jsonl``, TensorBoard, and a line with an ETA for people.

    Only the first process writes and prints. What an earlier attempt logged beyond ``start`` is cut
    off, so the file of a resumed stage is that of an undisturbed one.

    Args:
      directory: of the stage.
      title: shown before the bar, ``stage 2/2 distil`` for instance.
      steps: of the stage.
      start: the step from which it goes on.
      console: where people read; None is standard output.
      clock: seconds; tests bring their own.
    """

    def __init__(
        self,
        directory: Path,
        title: str,
        steps: int,
        start: int,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._first = jax.process_index() == 0
        self._title, self._steps, self._start, self._clock = title, steps, start, clock
        self._began = self._printed = clock()
        self._step, self._waiting, self._told = start, False, False
        self._shown: dict[str, str] = {}
        self._reported: set[str] = set()
        self._console = console = console or Console(highlight=False, soft_wrap=True)
        self._bar: Progress | None = None
        if not self._first:
            return
        directory.mkdir(parents=True, exist_ok=True)
        file = directory / "metrics.jsonl"
        _cut(file, start)
        self._rows = file.open("a", encoding="utf-8")
        # Imported late: it brings torch along where that is installed, and takes seconds.
        from tensorboardX import SummaryWriter

        # What earlier attempts told of later steps, TensorBoard forgets.
        purge = start + 1 if start else None
        self._board = SummaryWriter(
            str(directory / "tensorboard"), purge_step=purge, filename_suffix=f".{time.time_ns()}"
        )
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=20),
                MofNCompleteColumn(),
                TextColumn("{task.fields[values]}"),
                TimeElapsedColumn(),
                TextColumn("ETA"),
                TimeRemainingColumn(),
                console=console,
            )
            self._task = self._bar.add_task(title, total=steps, completed=start, values="")

    def __enter__(self) -> "StageLog":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._waiting and kind is None:
            self._line(self._clock())
        if self._first:
            self._rows.close()
            self._board.close()

    def begin(self) -> None:
        """Training begins: what took time before it says nothing about the time left."""
        self._began = self._clock()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Record the mean metrics of the steps since the last call; ``step`` of them are done."""
        self._record(step, values)
        self._shown["loss"] = f"loss {values['loss']:.4g}"
        self._show(step)

    def evaluation(self, step: int, values: Mapping[str, float], shown: str) -> None:
        """Record an evaluation, by ``"metric collection"``; ``shown`` is the one people see."""
        self._record(step, values)
        self._shown["best"] = f"{shown} {values[shown]:.3f}"
        self._show(step, always=True)

    def passages(self, system: str, done: int, total: int) -> None:
        """Show how many of the passages to search a system has encoded."""
        if not self._first:
            return
        text = f"{system}: {done:,}/{total:,} passages"
        if self._bar is not None:
            values = [*self._shown.values(), *([text] if done < total else [])]
            self._bar.update(self._task, values="  ".join(values))
        elif self._due():
            self._console.print(f"{self._title}  {text}", markup=False)

    def opened(self, what: str, report: Report) -> None:
        """Tell what was left out when data were opened: nothing if nothing, and nothing twice."""
        if not report.skipped:
            return
        reasons = ", ".join(f"{count:,} x {reason}" for reason, count in report.skipped.items())
        text = f"{what}: {report.read:,} records to read; left out: {reasons}"
        for line in (text, *(f"  {place}" for place in report.places)):
            if line not in self._reported:
                self._reported.add(line)
                self.say(line)

    def say(self, text: str) -> None:
        """Print a line of its own."""
        if self._first:
            self._console.print(text, markup=False)

    def _record(self, step: int, values: Mapping[str, float]) -> None:
        if not self._first:
            return
        self._rows.write(json.dumps({"step": step, **values}) + "\n")
        self._rows.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def _show(self, step: int, always: bool = False) -> None:
        if not self._first:
            return
        self._step = step
        if self._bar is not None:
            self._bar.update(self._task, completed=step, values="  ".join(self._shown.values()))
            return
        # The first figures come at once: they tell that everything works.
        if self._due() or always or not self._told:
            self._line(self._clock())
        else:
            self._waiting = True

    def _due(self) -> bool:
        now = self._clock()
        if now - self._printed < _PLAIN_SECONDS:
            return False
        self._printed = now
        return True

    def _line(self, now: float) -> None:
        self._printed, self._waiting, self._told = now, False, True
        spent = now - self._began
        left = spent / max(1, self._step - self._start) * (self._steps - self._step)
        values = "  ".join(self._shown.values())
        self._console.print(
            f"{self._title}  {self._step}/{self._steps}  {values}  "
            f"{_minutes(spent)}  ETA {_minutes(left)}",
            markup=False,
        )


class WorkLog:
    """The log of one work: lines, and a bar or now and then a line with an ETA.

    Args:
      title: shown before the bar, ``stage 2/3 mined`` for instance.
      console: where people read.
      clock: seconds; tests bring their own.
    """

    def __init__(
        self, title: str, console: Console, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._title, self._console, self._clock = title, console, clock
        self._began = self._printed = clock()
        self._start: int | None = None
        self._bar: Progress | None = None

    def __enter__(self) -> "WorkLog":
        if self._console.is_terminal and jax.process_index() == 0:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=20),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("ETA"),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._task = self._bar.add_task(self._title, total=None)
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, text: str) -> None:
        """Print a line of its own."""
        if jax.process_index() == 0:
            self._console.print(f"{self._title}  {text}", markup=False)

    def progress(self, done: int, total: int) -> None:
        """Tell how far the work is; an earlier attempt may have done a part."""
        if self._start is None:
            self._start = done
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total)
            return
        now = self._clock()
        if now - self._printed >= _PLAIN_SECONDS:
            self._printed = now
            spent, new = now - self._began, done - self._start
            eta = f"  ETA {_minutes(spent / new * (total - done))}" if new else ""
            self.say(f"{done:,}/{total:,}  {_minutes(spent)}{eta}")


def _cut(path: Path, start: int) -> None:
    """Drop the rows after ``start``; a kill on the way leaves the file as it was."""
    if not path.exists():
        return
    # A kill may have cut the last line.
    whole = [row for row in path.read_bytes().splitlines(keepends=True) if row.endswith(b"\n")]
    kept: list[str] = []
    for number, row in enumerate(whole, start=1):
        try:
            step = int(json.loads(row)["step"])
        except (ValueError, TypeError, KeyError):
            raise ValueError(
                f"{path}:{number}: this is no row of the log; remove the line, and training goes on"
            ) from None
        kept += [row.decode()] if step <= start else []
    write_text(path, "".join(kept))


def _minutes(seconds: float) -> str:
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    text = f"{rest // 60}:{rest % 60:02d}"
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else text
