"""A work that a command carries out by itself, in no run: its records become one file."""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from clir_jax.config import Generate, Mine, Score
from clir_jax.config_types import require
from clir_jax.evaluation.retrieval import saved_at
from clir_jax.files import replacing
from clir_jax.mesh import make_mesh
from clir_jax.models import hub
from clir_jax.training.artifacts import Workplace, records_source
from clir_jax.training.blocks import RECORDS
from clir_jax.training.initial import load_model
from clir_jax.training.kinds import on_mesh
from clir_jax.training.logging import WorkLog
from clir_jax.training.works import carry_out


def write_records(label: str, work: Mine | Score | Generate, output: Path, seed: int = 0) -> None:
    """Carry out a work on all devices, and publish its records once they are whole.

    What is unfinished lies beside the output, in OUTPUT.unfinished; the same call goes on with it.
    A call with other settings is refused; a ``Generate`` may have another round trip.

    Args:
      label: of the progress.
      work: what to do; its models are names or directories, runs among them.
      output: the file to write.
      seed: of what is chosen by chance.

    Raises:
      ValueError: if the seed is out of range, another process writes the output or has just
        written it, or what is unfinished was begun with other settings.
    """
    require(0 <= seed < 2**31, "--seed", seed, "from 0 to 2147483647")
    with _claimed(output):
        _write(label, work, output, seed)


def _write(label: str, work: Mine | Score | Generate, output: Path, seed: int) -> None:
    console, mesh = Console(highlight=False, soft_wrap=True), make_mesh()
    unfinished = output.with_name(output.name + ".unfinished")
    with WorkLog(label, console) as log:
        place = Workplace(
            run=None,
            mesh=mesh,
            seed=seed,
            directory=unfinished / work.name,
            say=log.say,
            progress=log.progress,
            open_source=lambda source: source.open("."),
            load_model=lambda name, _: on_mesh(load_model(saved_at(str(name))), mesh),
            model_directory=lambda name: hub.locate(saved_at(str(name))),
            artifact_print=_no_artifact,
        )
        carry_out(work, place)
    language = records_source(place.directory).query_language
    with replacing(output) as file:
        shutil.copyfile(place.directory / RECORDS, file)
    shutil.rmtree(unfinished)
    console.print(f'{output}; read it with RankingJSONL("{output}", "{language}")', markup=False)


def _no_artifact(name: str) -> str:
    raise AssertionError(f"the files of a command name no artifact {name!r}")


@contextlib.contextmanager
def _claimed(output: Path) -> Iterator[None]:
    """Keep other processes from an output; a kill frees it too."""
    path = output.with_name(output.name + ".lock")
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # One that ended meanwhile has removed the file, and the next one locks another.
            ours = path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())
        except BlockingIOError:
            ours = False
        if not ours:
            raise ValueError(
                f"--output {output}: another process is writing it; wait until it has ended, or "
                "write another name"
            )
        try:
            if output.exists():
                raise ValueError(
                    f"--output {output}: another process has just written it; write another name"
                )
            yield
        finally:
            path.unlink()
