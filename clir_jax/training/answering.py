"""``EncodeTeacher``: what a teacher will answer to a task, computed once and stored."""

import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from clir_jax.config import EncodeTeacher, Stage
from clir_jax.config_files import ConfigError
from clir_jax.data.answers import AnswerWriter, digest
from clir_jax.data.records import Ranking, Record, Records, read
from clir_jax.data.tokenization import RequestTokenizer
from clir_jax.evaluation.retrieval import block_of
from clir_jax.mesh import put_rows
from clir_jax.models.formats import LoadedRetriever
from clir_jax.models.requests import Embeddings, EncodePassage, EncodeQuery, Tokens
from clir_jax.objectives.base import Ask
from clir_jax.training.artifacts import Workplace, ensure, model_print, source_print
from clir_jax.training.step import Chunking, answer

# Distinct texts that are sorted by length together and stored at once.
_WINDOW = 4096
# Rows of a block are encoded at once, all of them as wide as the widest. Widths are multiples of a
# number: each is compiled once, and what is less is not worth it.
_BLOCK_ROWS = 128
_WIDTH_STEP = 16


def encode_teacher(work: EncodeTeacher, place: Workplace) -> str:
    """Store a teacher's answers to every text that its task may ask it.

    Each ask of the teacher has its own directory of ``data.answers``, by the ask's name. Answers
    are computed by the call that the training step uses, with the stage's dtype and chunking.

    Args:
      work: what to do.
      place: where.

    Returns:
      The hash of the content.

    Raises:
      ConfigError: if the teacher is asked about pairs of texts.
      DataError: if float16 cannot hold an answer.
    """
    assert place.run is not None  # it alone knows the stage
    stage, task = place.run.encoded_for(work)
    asks = task.asks(work.teacher)
    for name, ask in asks.items():
        if len(ask.texts) != 1 or ask.kind not in (EncodeQuery, EncodePassage):
            raise ConfigError(
                f"stages.{work.name}: the ask {name!r} of {work.stage}.{work.task} is about pairs "
                "of texts, whose answers this version does not store; leave this work out"
            )
    read = task.sources_of(work.teacher)
    inputs = {
        "teacher": model_print(place.model_directory(task.teachers[work.teacher])),
        "questions to the teacher": repr(asks),
        "dtype": stage.dtype,
        "model": repr(stage.model),  # a plain encoder is read as that
        **{f"source {name}": source_print(source, place) for name, source in read.items()},
    }

    def make(directory: Path) -> Mapping[str, Any]:
        model = place.retriever(task.teachers[work.teacher], stage)
        teachers = {
            EncodeQuery: _Teacher(model, stage, place.mesh),
            EncodePassage: _Teacher(model.of_passages, stage, place.mesh),
        }
        sources = {name: place.open_source(source) for name, source in read.items()}
        read_by = {name: ask.texts[0].partition(".") for name, ask in asks.items()}
        total, before = sum(len(sources[source]) for source, _, _ in read_by.values()), 0
        facts = {}
        for name, (source, _, field) in read_by.items():
            writer = AnswerWriter(directory / name)
            teacher, texts = teachers[asks[name].kind], _distinct(sources[source], field)
            for done in teacher.store(asks[name], texts, writer):
                place.progress(before + done, total)
            writer.finish()
            before += len(sources[source])
            facts[name] = writer.rows
        place.progress(total, total)
        return facts

    return ensure(work, place, inputs, make)


class _Teacher:
    """Answers as it does in the training step."""

    def __init__(self, model: LoadedRetriever, stage: Stage, mesh: Mesh) -> None:
        self._graphdef, self._params, self._mesh = model.graphdef, model.params, mesh
        self._tokenizer = RequestTokenizer(model.tokenizer, model.spec, skiplist=model.skiplist)
        self._chunking = Chunking(stage.tokens_per_chunk, stage.encode)

    def store(
        self, ask: Ask, texts: Iterator[tuple[int, str]], writer: AnswerWriter
    ) -> Iterator[int]:
        """Store what is not stored yet; yields the records that are done, block by block."""
        stored = writer.rows
        while window := list(itertools.islice(texts, _WINDOW)):
            here, stored = min(stored, len(window)), max(0, stored - len(window))
            if here == len(window):
                continue
            tokens = self._tokenizer.tokenize(
                ask.kind, [text for _, text in window], content=ask.content, length=ask.length
            ).tokens
            # As the blocks before a kill were cut, so that those behind it are cut the same.
            order = np.argsort(tokens.mask.sum(axis=1), kind="stable")[here:]
            for start in range(0, len(order), _BLOCK_ROWS):
                rows = order[start : start + _BLOCK_ROWS]
                part = jax.tree.map(lambda x, rows=rows: x[rows], tokens)
                writer.append([window[row][1] for row in rows], self._answer(ask, part))
                yield window[0][0]

    def _answer(self, ask: Ask, tokens: Tokens) -> Embeddings:
        """Answer at most ``_BLOCK_ROWS`` rows, as narrow as they allow, in one of few shapes."""
        block = block_of(tokens, _BLOCK_ROWS, _WIDTH_STEP, self._mesh)
        with jax.set_mesh(self._mesh):
            request = put_rows(ask.kind(block), self._mesh)
            out = _answer_step(self._graphdef, self._params, request, self._chunking, ask.layer)
        host: Embeddings = jax.tree.map(lambda x: np.asarray(x)[: len(tokens.ids)], out)
        return host


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def _answer_step(
    graphdef: Any, params: Any, request: Any, chunking: Chunking, layer: int | None
) -> Any:
    layers = {} if layer is None else {"": layer}
    return answer(graphdef, params, {"": request}, None, chunking, layers)[""]


def _distinct(records: Records, field: str) -> Iterator[tuple[int, str]]:
    """Every text that a field may give, once, with the number of the first record that has it."""
    seen: set[bytes] = set()
    for row in range(len(records)):
        for text in _asked(records[row], field):
            key = digest(text)
            if key not in seen:
                seen.add(key)
                yield row, text


def _asked(record: Record, field: str) -> Iterable[str]:
    """What a field may give of a record: of a question or a passage, any of its languages."""
    if isinstance(record, Ranking) and field == "query":
        return record.queries.values()
    if isinstance(record, Ranking) and field == "passages":
        listed = (*record.positives, *record.negatives)
        return [text for passage in listed for text in passage.readings]
    value = read(record, field)
    return (value,) if isinstance(value, str) else value
