"""Which of the questions that a generator wrote are kept, as records, and why others are not."""

import functools
import itertools
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from clir_jax.config import Generate
from clir_jax.data.reading import DataError
from clir_jax.data.tables import text_key
from clir_jax.files import replacing, write_json
from clir_jax.training.artifacts import Workplace, check_finite
from clir_jax.training.blocks import RECORDS, written_lines
from clir_jax.training.searchers import LexicalSearcher, Searcher, StoredSearcher

COUNTS = "counts.json"
# Passages whose questions search together.
_SEARCHED = 4096
_EMPTY, _UNENDED, _LOST = "empty", "unfinished", "not found again"
_AGAIN, _OVER = "written before", "left over"
_REASONS = (_EMPTY, _UNENDED, _LOST, _AGAIN, _OVER)

# Of a passage, the questions in each language; None is one without an end.
Asked = Mapping[str, Sequence[str | None]]
# Takes a part of the work, "encode" or "search", and how much of it is done.
_Progress = Callable[[str, int], None]


def keep_good(
    work: Generate,
    place: Workplace,
    texts: Sequence[str],
    written: Path,
    vectors: Path,
    directory: Path,
    progress: _Progress,
) -> None:
    """Write the records of the questions that are kept, and count the others.

    Args:
      work: what is left out.
      place: has the retriever of the round trip.
      texts: the passages of the corpus.
      written: has what was written, a line a passage: its number in ``texts``, and the questions.
      vectors: directory of the passages' vectors, where a retriever has encoded them.
      directory: of the records and the counts.
      progress: told how much is done.

    Raises:
      DataError: if nothing is left; then nothing is written.
    """
    searcher = _searcher(work, place, texts, vectors, progress)
    questions = _Questions(work.languages)
    passages = cut = records = 0
    with replacing(directory / RECORDS) as file, open(file, "w", encoding="utf-8") as lines:
        found = written_lines(written)
        while block := list(itertools.islice(found, _SEARCHED)):
            progress("search", passages)
            passages += len(block)
            cut += sum(line["cut"] > 0 for line in block)
            lost = _lost(work, searcher, block, questions)
            for line, own in zip(block, lost, strict=True):
                for asked in questions.records(line["questions"], own):
                    lines.write(_line(work.languages, asked, texts[line["passage"]]))
                    records += 1
        # Before the records are in their place: whoever finds them there finds their counts.
        facts = {"records": records, "passages": passages, "cut": cut}
        if not records:
            raise DataError(
                f"work {work.name}: no record is left "
                f"({'; '.join(_sentences(work, questions.counts))}); train the generator longer, "
                "with a greater target_length if its questions are unfinished, or filter less"
            )
        write_json(directory / COUNTS, {**facts, "questions": questions.counts})
    progress("search", passages)


def tell(work: Generate, place: Workplace, facts: Mapping[str, Any]) -> None:
    """Say what became of the questions."""
    passages, cut, records = (facts[name] for name in ("passages", "cut", "records"))
    message = f"artifact {work.name}: {passages:,} passages"
    message += f", {cut:,} of them cut to fit the prompt" if cut else ""
    place.say("\n".join([message, *_sentences(work, facts["questions"])]))
    place.say(f"artifact {work.name}: {records:,} of {passages * work.each:,} records are kept")


def _sentences(work: Generate, questions: Mapping[str, Mapping[str, int]]) -> list[str]:
    """What became of the questions in each language."""
    sentences = []
    for language, counted in questions.items():
        counts = Counter(counted)
        reasons = [f"{counts[what]:,} {what}" for what in _REASONS if counts[what]]
        sentences.append(
            ", ".join([f"{language}  {counts['written']:,} questions written", *reasons])
        )
        if counts["searched"]:
            share = counts["found"] / counts["searched"]
            sentences[-1] += (
                f"; {share:.1%} of {counts['searched']:,} find their passage in the first "
                f"{work.round_trip_depth} of {work.round_trip}"
            )
    return sentences


class _Questions:
    """Which questions of each language are kept, and what has become of the others."""

    def __init__(self, languages: Sequence[str]) -> None:
        self.counts = {language: Counter({"written": 0}) for language in languages}
        self._kept: dict[str, set[int]] = {language: set() for language in languages}

    def records(self, asked: Asked, lost: Mapping[str, set[str]]) -> list[dict[str, str]]:
        """Make records of the good questions of a passage.

        Args:
          asked: what was written for it.
          lost: by language, those that had to find the passage, and did not.

        Returns:
          One question in each language a record, as many as there are.
        """
        good = {x: self._good(x, own, lost.get(x, set())) for x, own in asked.items()}
        count = min(len(own) for own in good.values())
        for language, own in good.items():
            # A question that is in no record does not keep it from another passage.
            self._kept[language].update(text_key(question) for question in own[:count])
            if len(own) > count:
                self.counts[language][_OVER] += len(own) - count
        return [{x: own[n] for x, own in good.items()} for n in range(count)]

    def _good(self, language: str, questions: Sequence[str | None], lost: set[str]) -> list[str]:
        counts, good = self.counts[language], dict[int, str]()
        for question in questions:
            counts["written"] += 1
            if question is None:
                counts[_UNENDED] += 1
            elif not _says_something(question):
                counts[_EMPTY] += 1
            elif question in lost:
                counts[_LOST] += 1
            elif (key := text_key(question)) in self._kept[language] or key in good:
                counts[_AGAIN] += 1
            else:
                good[key] = question
        return list(good.values())

    def searched(self, language: str, found: Sequence[bool]) -> None:
        """Count what a round trip has found."""
        self.counts[language]["searched"] += len(found)
        self.counts[language]["found"] += sum(found)


def _says_something(question: str | None) -> bool:
    return question is not None and any(character.isalnum() for character in question)


def _searcher(
    work: Generate, place: Workplace, texts: Sequence[str], vectors: Path, progress: _Progress
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
            vectors,
            functools.partial(check_finite, work, model),
        )
    searcher.prepare(functools.partial(progress, "encode"))
    return searcher


def _lost(
    work: Generate,
    searcher: Searcher | None,
    block: Sequence[Mapping[str, Any]],
    questions: _Questions,
) -> list[dict[str, set[str]]]:
    """Of each passage, by language, the questions that must find it and do not."""
    lost: list[dict[str, set[str]]] = [{} for _ in block]
    if searcher is None:
        return lost
    wanted = work.languages if work.round_trip_languages is None else work.round_trip_languages
    for language in work.languages:
        asked = [
            (n, question)
            for n, line in enumerate(block)
            for question in line["questions"][language]
            if _says_something(question)
        ]
        if not asked:
            continue
        distinct = list(dict.fromkeys(question for _, question in asked))
        ranked = searcher.find(
            searcher.ask(distinct), work.round_trip_depth, lambda done, total: None
        )
        rows = {
            question: set(own.tolist()) for question, (own, _) in zip(distinct, ranked, strict=True)
        }
        found = [block[n]["passage"] in rows[question] for n, question in asked]
        questions.searched(language, found)
        if language in wanted:
            for (n, question), again in zip(asked, found, strict=True):
                if not again:
                    lost[n].setdefault(language, set()).add(question)
    return lost


def _line(languages: Sequence[str], questions: Mapping[str, str], passage: str) -> str:
    """One line for ``RankingJSONL``."""
    row: dict[str, Any] = {"query": questions[languages[0]]}
    others = {x: questions[x] for x in languages[1:]}
    row |= {"queries": others} if others else {}
    return json.dumps(row | {"positives": [passage]}, ensure_ascii=False) + "\n"
