"""``Generate``: questions that a generator writes for passages, as rankings."""

import dataclasses
import functools
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int, UInt32

from clir_jax.config import Generate
from clir_jax.config_files import ConfigError
from clir_jax.data.prompts import PromptTokenizer
from clir_jax.evaluation.retrieval import block_of
from clir_jax.files import read_json
from clir_jax.mesh import put_whole
from clir_jax.models import generator
from clir_jax.models.generator import Decoding
from clir_jax.models.generator_files import LoadedGenerator
from clir_jax.models.requests import Tokens
from clir_jax.training.artifacts import (
    Workplace,
    check_finite,
    ensure,
    finished,
    model_print,
    searcher_print,
    source_print,
)
from clir_jax.training.blocks import RECORDS, write_blocks
from clir_jax.training.filtering import COUNTS, Asked, keep_good, tell
from clir_jax.training.kinds import kind_of
from clir_jax.training.negatives import titled_passages

# Passages whose questions are written before they are stored, and questions written at once; the
# widths of prompts are multiples of a number: each is compiled once.
_BLOCK = 128
_ROWS = 64
_WIDTH_STEP = 32


def generate(work: Generate, place: Workplace) -> str:
    """Write questions for the passages of a corpus; ``Generate`` has the options.

    Equal passages are one. A question depends on its passage, its language, its number and the
    seed. What became of the questions is told by language, and what was left out. All questions
    are an artifact of their own, beside this one, so that another filter writes none again; until
    this one is whole, so are the vectors of a round trip, for each corpus and retriever.

    Args:
      work: what to do.
      place: where.

    Returns:
      The hash of the content.

    Raises:
      ConfigError: if the model is no generator.
      DataError: if the corpus has no passages, or no record is left.
    """
    corpus = source_print(work.corpus, place)
    round_trip = "none" if work.round_trip is None else searcher_print(work.round_trip, place)
    prints = {
        "model": model_print(place.model_directory(work.model)),
        "corpus": corpus,
        "seed": str(place.seed),
    }
    inputs = prints | {"round_trip": round_trip}
    if (content := finished(work, place, inputs)) is not None:
        return content
    written, encoded = _beside(place, "written"), _beside(place, "encoded")
    texts = list(dict(titled_passages(work, place.open_source(work.corpus))))
    chosen = np.arange(len(texts))
    if work.sample is not None and work.sample < len(texts):
        drawn = np.random.default_rng(place.seed).permutation(len(texts))
        chosen = np.sort(drawn[: work.sample])
    steps = _Steps(work, place, len(chosen), len(texts))

    def write(directory: Path) -> Mapping[str, Any]:
        _write(work, place, texts, chosen, directory, steps)
        return {"passages": len(chosen)}

    def make(directory: Path) -> Mapping[str, Any]:
        if not (directory / RECORDS).exists():
            vectors = encoded / corpus / round_trip
            keep_good(work, place, texts, written, vectors, directory, steps.progress)
        shutil.rmtree(encoded, ignore_errors=True)
        facts: dict[str, Any] = read_json(directory / COUNTS, dict)
        tell(work, place, facts)
        return facts | {"language": work.languages[0]}

    ensure(_unfiltered(work), dataclasses.replace(place, directory=written), prints, write)
    return ensure(work, place, inputs, make)


def _beside(place: Workplace, part: str) -> Path:
    """Where a part of an artifact is; no name of a work has a plus sign."""
    return place.directory.with_name(f"{place.directory.name}+{part}")


def _unfiltered(work: Generate) -> Generate:
    """What decides which questions are written, and not which of them are kept."""
    return dataclasses.replace(
        work,
        name=f"{work.name}-written",
        round_trip=None,
        round_trip_depth=Generate.round_trip_depth,
        round_trip_languages=None,
    )


class _Steps:
    """The progress of a work in parts: writing, encoding for the round trip, searching."""

    def __init__(self, work: Generate, place: Workplace, passages: int, searched: int) -> None:
        encoded = searched if work.round_trip not in (None, "bm25") else 0
        self._parts = {"write": passages, "encode": encoded, "search": passages}
        self._tell = place.progress

    def progress(self, part: str, done: int) -> None:
        """Tell how much of a part is done."""
        names = list(self._parts)
        before = sum(self._parts[name] for name in names[: names.index(part)])
        self._tell(before + done, sum(self._parts.values()))


def _write(
    work: Generate,
    place: Workplace,
    texts: Sequence[str],
    chosen: Int[np.ndarray, " P"],
    directory: Path,
    steps: _Steps,
) -> None:
    """Write all questions as they come, a line a passage: its number and what was written."""
    model = place.load_model(work.model, None)
    if not isinstance(model, LoadedGenerator):
        raise ConfigError(
            f"work {work.name}: the model {work.model!r} is a {kind_of(model.spec).name}, which "
            "writes no questions; name a generator"
        )
    prompts = PromptTokenizer(model.tokenizer, model.spec)
    if message := prompts.of_languages(work.languages):
        place.say(f"artifact {work.name}: {message}")
    writer = _Writer(work, model, prompts, place.seed, place.mesh)

    def lines(rows: range) -> Iterator[str]:
        numbers = chosen[rows.start : rows.stop]
        written, cut = writer.questions(numbers, [texts[n] for n in numbers])
        for number, own, pieces in zip(numbers.tolist(), written, cut, strict=True):
            line = {"passage": number, "cut": pieces, "questions": own}
            yield json.dumps(line, ensure_ascii=False) + "\n"

    progress = functools.partial(steps.progress, "write")
    write_blocks(directory / RECORDS, len(chosen), _BLOCK, lines, lambda done, _: progress(done))


class _Writer:
    """Writes the questions of a block of passages.

    Args:
      work: languages, number and decoding.
      model: the generator, its parameters on ``mesh``.
      prompts: its own.
      seed: the root of all draws.
      mesh: where it computes.
    """

    def __init__(
        self,
        work: Generate,
        model: LoadedGenerator,
        prompts: PromptTokenizer,
        seed: int,
        mesh: Mesh,
    ) -> None:
        self._work, self._model, self._prompts, self._mesh = work, model, prompts, mesh
        self._seed = np.int32(seed)

    def questions(
        self, numbers: Int[np.ndarray, " P"], passages: Sequence[str]
    ) -> tuple[list[Asked], list[int]]:
        """Questions by language, and the pieces cut, of each passage of a block."""
        languages, each = self._work.languages, self._work.each
        source, cut = self._prompts.sources(
            [text for text in passages for _ in languages], languages * len(passages)
        )
        count = len(languages)
        ids = (numbers[:, None, None] * count + np.arange(count)[:, None]) * each + np.arange(each)
        texts = iter(self._texts(source, ids.reshape(-1, each).astype(np.uint32)))
        written: list[Asked] = [{language: next(texts) for language in languages} for _ in passages]
        return written, cut.reshape(-1, count).max(axis=1).tolist()

    def _texts(self, source: Tokens, ids: UInt32[np.ndarray, "R N"]) -> list[list[str | None]]:
        """N texts for each prompt; None is one that has come to the greatest length and no end."""
        texts: list[list[str | None]] = [[] for _ in ids]
        end, each = self._model.t5_config.eos_token_id, ids.shape[1]
        order = np.argsort(np.asarray(source.mask).sum(axis=1), kind="stable")
        size = max(1, _ROWS // each)
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            part = jax.tree.map(lambda x, rows=rows: x[rows], source)
            block = block_of(part, size, _WIDTH_STEP, self._mesh)
            own = np.pad(ids[rows], ((0, len(block.ids) - len(rows)), (0, 0)))
            with jax.set_mesh(self._mesh):
                answer = _generate_step(
                    self._model.graphdef,
                    self._model.params,
                    *put_whole((block, own), self._mesh),
                    self._work.decoding,
                    self._seed,
                )
            count = len(rows) * each
            check_finite(self._work, self._work.model, np.asarray(answer.log_prob)[:count])
            pieces, mask = np.asarray(answer.ids)[:count], np.asarray(answer.mask)[:count]
            ended = ((pieces == end) & mask).any(axis=1)
            found = [
                " ".join(text.split()) if whole else None
                for text, whole in zip(
                    self._model.tokenizer.decode(pieces, mask), ended, strict=True
                )
            ]
            for place, row in enumerate(rows):
                texts[row] = found[place * each : (place + 1) * each]
        return texts


@functools.partial(jax.jit, static_argnums=(0, 4))
def _generate_step(
    graphdef: Any, params: Any, source: Tokens, ids: Any, decoding: Decoding, seed: Any
) -> Any:
    return generator.generate(graphdef, params, source, jnp.asarray(ids), decoding, seed)
