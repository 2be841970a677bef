"""What a stage measures: baselines before it, itself along the way, the best of it at the end."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from clir_jax.config import Evaluate, Run, Stage
from clir_jax.data.collections import Collection, Pairs
from clir_jax.data.gold_alignment import OpenedGold
from clir_jax.evaluation.alignment import WordAligner, measure_gold
from clir_jax.evaluation.bitext import measure_pairs
from clir_jax.evaluation.reranking import bm25_candidates, measure_reranked, read_candidates
from clir_jax.evaluation.retrieval import Kept, Measured, TextEncoder, measure, measure_bm25
from clir_jax.evaluation.runs import write_run
from clir_jax.files import read_json, write_json
from clir_jax.models.formats import LoadedRetriever
from clir_jax.training.build import StageParts
from clir_jax.training.kinds import LoadedModel, pair_scorer
from clir_jax.training.logging import StageLog
from clir_jax.training.towers import passage_of

_BASELINES = "baselines"
# Of a stage that keeps its teacher's passages: their vectors, in memory between evaluations.
_KEPT_BYTES = 2**31


class StageEvaluation:
    """The evaluations of one stage; a stage without ``evaluate`` measures nothing.

    Args:
      run: the run, for its data root.
      stage: the stage.
      label: its name in rows of the summary.
      directory: of the stage; results go to its ``evaluation/``.
      mesh: the mesh.
      parts: the stage's models; the student's parameters are given with each call.
      log: where figures are told.
    """

    def __init__(
        self,
        run: Run,
        stage: Stage,
        label: str,
        directory: Path,
        mesh: Mesh,
        parts: StageParts,
        log: StageLog,
    ) -> None:
        self._stage, self._label, self._mesh, self._log = stage, label, mesh, log
        self._student, self._teachers = parts.student, parts.teachers
        self._kept = Kept(_KEPT_BYTES)
        self._said: set[str] = set()
        self._directory = directory / "evaluation"
        if stage.evaluate is not None:
            self._evaluate: Evaluate = stage.evaluate
            evaluate = stage.evaluate
            self._directory.mkdir(parents=True, exist_ok=True)
            self._opened = {
                name: collection.open(run.data_root)
                for name, collection in stage.evaluate.collections.items()
            }
            for name, opened in self._opened.items():
                log.opened(f"{label}: evaluation of {name}", opened.report)
            opened_all = self._opened.items()
            self._pairs = {n: c for n, c in opened_all if isinstance(c, Pairs)}
            self._retrieval = {n: c for n, c in opened_all if isinstance(c, Collection)}
            self._candidates = {  # read now rather than after the first steps
                name: read_candidates(path, run.data_root, self._retrieval[name], evaluate.depth)
                for name, path in evaluate.candidates.items()
            }
            self._gold = {n: c for n, c in opened_all if isinstance(c, OpenedGold)}
            for gold in self._gold.values():  # refused now rather than after the first steps
                assert isinstance(self._student, LoadedRetriever)  # Stage has checked it.
                WordAligner.of(self._student, gold.options.layer, mesh)

    def baselines(self, params: Any) -> None:
        """Measure the systems to compare with, before training; an earlier attempt may have."""
        if self._stage.evaluate is None or self._file(_BASELINES).exists():
            return
        rows: list[dict[str, Any]] = []
        for system in self._evaluate.baselines:
            for name, measured in self._baseline(system, params).items():
                if measured:
                    self._log.say(self._sentence(name, measured))
                rows += self._rows(name, measured)
        self._write(_BASELINES, rows)

    def measure(self, step: int, params: Any) -> float:
        """Measure the student after ``step`` steps; returns the metric that selects checkpoints."""
        measured = self._run(self._student, params, "student", f"{step:07d}")
        values = {
            f"{metric} {name}": value
            for name, result in measured.items()
            for metric, value in result.values.items()
        }
        selection = self._evaluate.selection
        self._log.evaluation(step, values, selection)
        self._write(f"{step:07d}", self._rows("student", measured))
        return values[selection]

    def rows(self, step: int) -> list[dict[str, Any]]:
        """The stage's rows of the summary: baselines, and the student after ``step`` steps."""
        if self._stage.evaluate is None:
            return []
        names = (_BASELINES, f"{step:07d}")
        anew = f"restore the file, or remove {self._directory.parent} to train the stage anew"
        return [row for name in names for row in read_json(self._file(name), list, anew)]

    def _baseline(self, system: str, params: Any) -> dict[str, dict[str, Measured]]:
        if system == "bm25":
            return {system: self._bm25()}
        if system == "student_before":
            return {system: self._run(self._student, params, system, system)}
        return {
            name: self._run(teacher, teacher.params, name, name)
            for name, teacher in self._teachers.items()
        }

    def _bm25(self) -> dict[str, Measured]:
        measured = {}
        for name, collection in self._retrieval.items():
            self._log.passages(f"bm25 {name}", 0, len(collection.passages))
            measured[name] = measure_bm25(collection, self._evaluate.metrics, self._evaluate.depth)
            self._write_run(f"bm25-{name}", measured[name].run, "bm25")
        return measured

    def _run(self, model: LoadedModel, params: Any, system: str, label: str) -> dict[str, Measured]:
        if not isinstance(model, LoadedRetriever):
            return self._reranked(dataclasses.replace(model, params=params), system, label)
        frozen = self._frozen(model)
        model = dataclasses.replace(model, params=params)
        encoder = TextEncoder.of(model, self._mesh, frozen)
        evaluate = self._evaluate
        progress = functools.partial(self._log.passages, system)
        measured = measure(encoder, self._retrieval, evaluate.metrics, evaluate.depth, progress)
        for name, result in measured.items():
            self._write_run(f"{label}-{name}", result.run, system)
        for name, pairs in self._pairs.items():
            measured[name] = Measured(measure_pairs(encoder, pairs, progress), {})
        for name, gold in self._gold.items():
            measured[name] = Measured(measure_gold(model, gold, self._mesh), {})
        return {name: measured[name] for name in self._opened}

    def _reranked(self, model: LoadedModel, system: str, label: str) -> dict[str, Measured]:
        """Of a model that reads query and passage together: its order of others' candidates."""
        scorer, measured = pair_scorer(model, self._mesh), {}
        for name, collection in self._retrieval.items():
            progress = functools.partial(self._log.passages, f"{system} {name}")
            if name not in self._candidates:
                self._candidates[name] = bm25_candidates(collection, self._evaluate.depth)
            measured[name], messages = measure_reranked(
                scorer, collection, self._candidates[name], self._evaluate.metrics, progress
            )
            for message in messages:
                self._say_once(f"{self._label}: {system}  {name}  {message}")
            self._write_run(f"{label}-{name}", measured[name].run, system)
        return measured

    def _frozen(self, model: LoadedRetriever) -> TextEncoder | None:
        """The encoder of the stage's frozen passages, if they are the model's passages too."""
        frozen = passage_of(self._student)
        if frozen is None or model.of_passages is not frozen:
            return None
        return dataclasses.replace(TextEncoder.of(frozen, self._mesh), kept=self._kept)

    def _rows(self, system: str, measured: Mapping[str, Measured]) -> list[dict[str, Any]]:
        return [
            {
                "stage": self._label,
                "system": system,
                "dataset": name,
                "language": self._opened[name].language,
                "metric": metric,
                "value": value,
            }
            for name, result in measured.items()
            for metric, value in result.values.items()
        ]

    def _say_once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self._log.say(text)

    def _sentence(self, system: str, measured: Mapping[str, Measured]) -> str:
        listed: dict[str, list[str]] = {}
        for name, result in measured.items():
            metric, value = next(iter(result.values.items()))
            listed.setdefault(metric, []).append(f"{name} {value:.3f}")
        figures = "  ".join(f"{metric}  {'  '.join(values)}" for metric, values in listed.items())
        return f"{self._label}: {system}  {figures}"

    def _write_run(self, label: str, run: Any, tag: str) -> None:
        if jax.process_index() == 0:
            write_run(self._directory / f"{label}.trec", run, tag)

    def _write(self, label: str, rows: list[dict[str, Any]]) -> None:
        if jax.process_index() == 0:
            write_json(self._file(label), rows)

    def _file(self, label: str) -> Path:
        return self._directory / f"{label}.json"
