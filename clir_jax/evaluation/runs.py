"""Runs as files, in the form of TREC.

Tools break ties between equal scores differently: trec_eval and pytrec_eval put the larger document
id first, the MS MARCO script of ir-measures the smaller; and pytrec_eval reads scores as float32,
so that close float64 scores are ties to it and to no other. Here a ranking has one order,
``ranked``, and a run is written so that every tool reads that order.
"""

import os
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from clir_jax.files import write_text

Run = Mapping[str, Sequence[tuple[str, float]]]
Qrels = Mapping[str, Mapping[str, int]]


def ranked(documents: Sequence[tuple[str, float]]) -> list[tuple[str, float]]:
    """Order a query's documents: by float32 score, falling; equal scores stay in the order given.

    Documents scored -inf were not retrieved and are left out.

    Args:
      documents: pairs of a document id and its score.

    Returns:
      The pairs in order, with float32 scores that strictly fall: of equal scores, the later ones
      move down to the next float32.

    Raises:
      ValueError: if a score is not a number or does not fit float32, or an id comes twice.

    Example:
      >>> ranked([("b", 1.0), ("a", 1.0), ("c", 2.0)])
      [('c', 2.0), ('b', 1.0), ('a', 0.9999999403953552)]
    """
    with np.errstate(over="ignore"):
        scores = np.asarray([score for _, score in documents], np.float32)
    bad = np.isnan(scores) | (scores == np.inf)
    if bad.any():
        document, score = documents[int(np.argmax(bad))]
        raise ValueError(f"document {document!r} scores {score}; scores must be finite float32")
    order = [int(i) for i in np.argsort(-scores, kind="stable") if scores[i] > -np.inf]
    names = [documents[i][0] for i in order]
    if len(set(names)) < len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise ValueError(f"document {twice!r} is ranked twice; give each document one score")
    falling = scores[order]
    for i in range(1, len(falling)) if (np.diff(falling) >= 0).any() else ():
        falling[i] = min(falling[i], np.nextafter(falling[i - 1], np.float32(-np.inf)))
    return list(zip(names, falling.tolist(), strict=True))


def write_run(path: str | os.PathLike[str], run: Run, tag: str) -> None:
    """Write a TREC run: lines of ``query Q0 document rank score tag``.

    The file appears whole or not at all. Queries keep their order; documents are ``ranked``, and
    scores have the digits that give the same float32 back.

    Args:
      path: the file to write; its folder must exist.
      run: for every query id, document ids and scores.
      tag: the name of the system, the last column.

    Raises:
      ValueError: if an id or the tag is empty or holds white space, which the format cannot carry,
        or ``ranked`` refuses a list.
    """
    check_word(path, "tag", tag)
    lines: list[str] = []
    for query, documents in run.items():
        check_word(path, "query id", query)
        try:
            ordered = ranked(documents)
        except ValueError as error:
            raise ValueError(f"{path}: in the run of query {query!r}, {error}") from None
        for rank, (document, score) in enumerate(ordered, start=1):
            check_word(path, "document id", document)
            lines.append(f"{query} Q0 {document} {rank} {np.float32(score)!s} {tag}\n")
    write_text(path, "".join(lines))


def read_run(path: str | os.PathLike[str]) -> dict[str, list[tuple[str, float]]]:
    """Read a TREC run.

    Args:
      path: a file of ``query Q0 document rank score tag``, separated by white space. The rank is
        not read: scores decide, and of equal scores the earlier line comes first.

    Returns:
      For every query id, in the order of the file, document ids and scores in falling order.

    Raises:
      ValueError: with file and line, if a line has another form or a document comes twice.
    """
    run: dict[str, dict[str, float]] = {}
    for place, line in _lines(path):
        fields = line.split()
        if len(fields) != 6:
            raise ValueError(
                f"{place}: {len(fields)} columns; a run has six: query Q0 document rank score tag"
            )
        query, _, document, _, text, _ = fields
        try:
            score = float(text)
        except ValueError:
            score = float("nan")
        if np.isnan(score):
            raise ValueError(f"{place}: the score {text!r} is not a number")
        documents = run.setdefault(query, {})
        if document in documents:
            raise ValueError(f"{place}: document {document!r} comes twice for query {query!r}")
        documents[document] = score
    return {q: sorted(run[q].items(), key=lambda pair: -pair[1]) for q in run}


def _lines(path: str | os.PathLike[str]) -> Iterator[tuple[str, str]]:
    """Lines that are not blank, each with its place for an error."""
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield f"{path}, line {number}", line.rstrip("\r\n")


def check_word(path: str | os.PathLike[str], what: str, word: str) -> None:
    """Refuse, with a sentence, what a TREC run cannot carry: it must be one word."""
    if word.split() != [word]:
        raise ValueError(
            f"{path}: the {what} {word!r} is empty or holds white space, which a TREC run cannot "
            "carry; replace it by another character, in the judgements as well"
        )
