"""``Generate``: questions that a generator writes for passages, as rankings."""

import functools
import itertools
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Int, UInt32

from clir_jax.config import Generate
from clir_jax.config_files import ConfigError
from clir_jax.data.prompts import PromptTokenizer
from clir_jax.data.reading import DataError
from clir_jax.data.tables import text_key
from clir_jax.evaluation.retrieval import block_of
from clir_jax.files import read_json, replacing, write_json
from clir_jax.mesh import put_whole
from clir_jax.models import generator
from clir_jax.models.generator import Decoding
from clir_jax.models.generator_files import LoadedGenerator
from clir_jax.models.requests import Tokens
from clir_jax.training.artifacts import (
    RECORDS,
    Workplace,
    check_finite,
    ensure,
    model_print,
    searcher_print,
    source_print,
    write_blocks,
    written_lines,
)
from clir_jax.training.kinds import kind_of
from clir_jax.training.negatives import titled_passages
from clir_jax.training.searchers import LexicalSearcher, Searcher, StoredSearcher

# Passages whose questions are written before they are stored, and questions written at once; the
# widths of prompts are multiples of a number: each is compiled once.
_BLOCK = 128
_ROWS = 64
_WIDTH_STEP = 32
# Records whose questions search together.
_SEARCHED = 4096
_COUNTS, _UNFINISHED = "counts.json", "unfinished"
_EMPTY, _AGAIN, _LOST = "empty", "written before", "not found again"


def generate(work: Generate, place: Workplace) -> str:
    """Write questions for the passages of a corpus; ``Generate`` has the options.

    Equal passages are one. A question depends on its passage, its language, its number and the
    seed. What became of the questions is told by language, and what was left out.

    Args:
      work: what to do.
      place: where.

    Returns:
      The hash of the content.

    Raises:
      ConfigError: if the model is no generator.
      DataError: if the corpus has no passages, or no record is left.
    """
    inputs = {
        "model": model_print(place.model_directory(work.model)),
        "round_trip": "none" if work.round_trip is None else searcher_print(work.round_trip, place),
        "corpus": source_print(work.corpus, place),
        "seed": str(place.seed),
    }

    def make(directory: Path) -> Mapping[str, Any]:
        if not (directory / RECORDS).exists():
            _write_and_filter(work, place, directory)
        shutil.rmtree(directory / _UNFINISHED, ignore_errors=True)
        facts: dict[str, Any] = read_json(directory / _COUNTS, dict)
        _tell(work, place, facts)
        return facts | {"language": work.languages[0]}

    return ensure(work, place, inputs, make)


def _write_and_filter(work: Generate, place: Workplace, directory: Path) -> None:
    """Write all questions, and of these the records and what became of them."""
    unfinished = directory / _UNFINISHED
    unfinished.mkdir(exist_ok=True)
    texts = list(dict(titled_passages(work, place.open_source(work.corpus))))
    chosen = np.arange(len(texts))
    if work.sample is not None and work.sample < len(texts):
        drawn = np.random.default_rng(place.seed).permutation(len(texts))
        chosen = np.sort(drawn[: work.sample])
    steps = _Steps(work, place, len(chosen), len(texts))
    _write(work, place, texts, chosen, unfinished, steps)
    _filter(work, place, texts, directory, steps)


class _Steps:
    """The progress of a work in parts: writing, encoding for the round trip, searching."""

    def __init__(self, work: Generate, place: Workplace, passages: int, searched: int) -> None:
        encoded = searched if work.round_trip not in (None, "bm25") else 0
        self._parts = {"write": passages, "encode": encoded, "search": passages}
        self._tell = place.progress

    def told(self, part: str, done: int) -> None:
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
    writer = _Writer(work, model, place.seed, place.mesh)

    def lines(rows: range) -> Iterator[str]:
        numbers = chosen[rows.start : rows.stop]
        written, cut = writer.questions(numbers, [texts[n] for n in numbers])
        for number, own, pieces in zip(numbers.tolist(), written, cut, strict=True):
            line = {"passage": number, "cut": pieces, "questions": own}
            yield json.dumps(line, ensure_ascii=False) + "\n"

    told = functools.partial(steps.told, "write")
    write_blocks(directory / RECORDS, len(chosen), _BLOCK, lines, lambda done, _: told(done))


class _Writer:
    """Writes the questions of a block of passages.

    Args:
      work: languages, number and decoding.
      model: the generator, its parameters on ``mesh``.
      seed: the root of all draws.
      mesh: where it computes.
    """

    def __init__(self, work: Generate, model: LoadedGenerator, seed: int, mesh: Mesh) -> None:
        self._work, self._model, self._mesh = work, model, mesh
        self._seed = np.int32(seed)
        self._prompts = PromptTokenizer(model.tokenizer, model.spec)

    def questions(
        self, numbers: Int[np.ndarray, " P"], passages: Sequence[str]
    ) -> tuple[list[dict[str, list[str]]], list[int]]:
        """Questions by language, and the pieces cut, of each passage of a block."""
        languages, each = self._work.languages, self._work.each
        source, cut = self._prompts.sources(
            [text for text in passages for _ in languages], languages * len(passages)
        )
        count = len(languages)
        ids = (numbers[:, None, None] * count + np.arange(count)[:, None]) * each + np.arange(each)
        rows = np.repeat(np.arange(len(passages) * count), each)
        repeated: Tokens = jax.tree.map(lambda x: x[rows], source)
        texts = iter(self._texts(repeated, ids.reshape(-1).astype(np.uint32)))
        written = [
            {language: list(itertools.islice(texts, each)) for language in languages}
            for _ in passages
        ]
        return written, cut.reshape(-1, count).max(axis=1).tolist()

    def _texts(self, source: Tokens, ids: UInt32[np.ndarray, " R"]) -> list[str]:
        texts = np.empty(len(ids), object)
        order = np.argsort(np.asarray(source.mask).sum(axis=1), kind="stable")
        for start in range(0, len(order), _ROWS):
            rows = order[start : start + _ROWS]
            part = jax.tree.map(lambda x, rows=rows: x[rows], source)
            block = block_of(part, _ROWS, _WIDTH_STEP, self._mesh)
            own = np.pad(ids[rows], (0, len(block.ids) - len(rows)))
            with jax.set_mesh(self._mesh):
                told = _generate_step(
                    self._model.graphdef,
                    self._model.params,
                    *put_whole((block, own), self._mesh),
                    self._work.decoding,
                    self._seed,
                )
            check_finite(self._work, self._work.model, np.asarray(told.log_prob)[: len(rows)])
            decoded = self._model.tokenizer.decode(np.asarray(told.ids), np.asarray(told.mask))
            texts[rows] = [" ".join(text.split()) for text in decoded[: len(rows)]]
        return list(texts)


@functools.partial(jax.jit, static_argnums=(0, 4))
def _generate_step(
    graphdef: Any, params: Any, source: Tokens, ids: Any, decoding: Decoding, seed: Any
) -> Any:
    return generator.generate(graphdef, params, source, jnp.asarray(ids), decoding, seed)


class _Questions:
    """What has become of the questions of each language."""

    def __init__(self, languages: Sequence[str]) -> None:
        self.counts = {language: Counter({"written": 0}) for language in languages}
        self._seen: dict[str, set[int]] = {language: set() for language in languages}

    def fit(self, questions: Mapping[str, str]) -> bool:
        """Count the questions of a record; whether none is empty or in a record before."""
        fit, keys = True, {}
        for language, question in questions.items():
            counts, keys[language] = self.counts[language], text_key(question)
            counts["written"] += 1
            empty = not any(character.isalnum() for character in question)
            again = keys[language] in self._seen[language]
            what = _EMPTY if empty else _AGAIN if again else ""
            if what:
                counts[what] += 1
                fit = False
        if fit:
            for language, key in keys.items():
                self._seen[language].add(key)
        return fit

    def searched(self, language: str, found: Bool[np.ndarray, " R"]) -> None:
        """Count what a round trip has found."""
        self.counts[language]["searched"] += len(found)
        self.counts[language]["found"] += int(found.sum())


def _filter(
    work: Generate,
    place: Workplace,
    texts: Sequence[str],
    directory: Path,
    steps: _Steps,
) -> None:
    """Keep what is to be kept, and count what was not."""
    unfinished = directory / _UNFINISHED
    searcher = _searcher(work, place, texts, unfinished, steps)
    questions = _Questions(work.languages)
    passages = cut = records = 0
    with replacing(directory / RECORDS) as file, open(file, "w", encoding="utf-8") as lines:
        found = written_lines(unfinished)
        while block := list(itertools.islice(found, _SEARCHED)):
            steps.told("search", passages)
            passages += len(block)
            cut += sum(line["cut"] > 0 for line in block)
            own = [
                (line["passage"], {x: line["questions"][x][n] for x in work.languages})
                for line in block
                for n in range(work.each)
            ]
            own = [(number, asked) for number, asked in own if questions.fit(asked)]
            if searcher is not None:
                own = _found_again(work, searcher, own, questions)
            for number, asked in own:
                lines.write(_line(work.languages, asked, texts[number]))
            records += len(own)
        # Before the records are in their place: whoever finds them there finds their counts.
        counts = {"records": records, "passages": passages, "cut": cut}
        write_json(directory / _COUNTS, {**counts, "questions": questions.counts})
    steps.told("search", passages)


def _searcher(
    work: Generate, place: Workplace, texts: Sequence[str], directory: Path, steps: _Steps
) -> Searcher | None:
    model = work.round_trip
    if model is None:
        return None
    searcher: Searcher
    if model == "bm25":
        searcher = LexicalSearcher(texts, len(texts))
    else:
        searcher = StoredSearcher(
            place.encoder(model),
            texts,
            len(texts),
            directory / "round_trip",
            lambda told: check_finite(work, model, told),
        )
    searcher.prepare(functools.partial(steps.told, "encode"))
    return searcher


def _found_again(
    work: Generate,
    searcher: Searcher,
    records: list[tuple[int, dict[str, str]]],
    questions: _Questions,
) -> list[tuple[int, dict[str, str]]]:
    """The records whose questions, where they must, find their passage."""
    if not records:
        return records
    wanted = work.languages if work.round_trip_languages is None else work.round_trip_languages
    kept = np.ones(len(records), bool)
    for language in work.languages:
        asked = searcher.ask([own[language] for _, own in records])
        ranked = searcher.find(asked, work.round_trip_depth, lambda done, total: None)
        again = [number in rows for (number, _), (rows, _) in zip(records, ranked, strict=True)]
        questions.searched(language, np.asarray(again))
        if language in wanted:
            questions.counts[language][_LOST] += int((~np.asarray(again)).sum())
            kept &= again
    return list(itertools.compress(records, kept))


def _line(languages: Sequence[str], questions: Mapping[str, str], passage: str) -> str:
    """One line for ``RankingJSONL``."""
    row: dict[str, Any] = {"query": questions[languages[0]]}
    others = {x: questions[x] for x in languages[1:]}
    row |= {"queries": others} if others else {}
    return json.dumps(row | {"positives": [passage]}, ensure_ascii=False) + "\n"


def _tell(work: Generate, place: Workplace, facts: Mapping[str, Any]) -> None:
    """Say what became of the questions.

    Raises:
      DataError: if nothing is left.
    """
    sentences = []
    passages, cut, records = (facts[name] for name in ("passages", "cut", "records"))
    for language, told in facts["questions"].items():
        counts = Counter(told)
        reasons = [f"{counts[what]:,} {what}" for what in (_EMPTY, _AGAIN) if counts[what]]
        sentences.append(
            ", ".join([f"{language}  {counts['written']:,} questions written", *reasons])
        )
        if counts["searched"]:
            share = counts["found"] / counts["searched"]
            sentences[-1] += (
                f"; {share:.1%} of {counts['searched']:,} find their passage in the first "
                f"{work.round_trip_depth} of {work.round_trip}"
            )
    told = f"artifact {work.name}: {passages:,} passages"
    told += f", {cut:,} of them cut to fit the prompt" if cut else ""
    place.say("\n".join([told, *sentences]))
    place.say(f"artifact {work.name}: {records:,} of {passages * work.each:,} records are kept")
    if not records:
        raise DataError(
            f"work {work.name}: no record is left ({'; '.join(sentences)}); train the generator "
            "longer, or filter less"
        )
