"""Word alignments that people made: which words of two sentences belong together, surely or maybe.

Two forms are read. JSON lines hold words and links::

  {"src": ["good", "day"], "tgt": ["bon", "jour"], "sure": [[0, 0]], "possible": [[1, 1]]}

and a file of links alone (Pharaoh's form), ``0-0 1p1``, goes with two files that have the words of
a sentence a line, with spaces between them. Words count from 0; a link is sure unless it is among
the ``possible`` or written with ``p``. Word -1 is no word: the other has no counterpart, which is
no link.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from clir_jax.data.reading import DataError, Intake, Report, is_blank
from clir_jax.data.tables import json_kind, open_lines, parse_object
from clir_jax.data.words import Words
from clir_jax.ops.alignment import Aligner, Sinkhorn

Link = tuple[int, int]
_Fault = tuple[str, str]
_FIELDS = {"src": list, "tgt": list, "sure": list, "possible": list}
_PHARAOH = re.compile(r"(-?\d+)([-p])(-?\d+)")
_NULL = -1


@dataclasses.dataclass(frozen=True)
class GoldPair:
    """Two sentences and the links between their words.

    Args:
      place: ``file:line``.
      source: the words of the first sentence.
      target: the words of the second.
      sure: pairs of a source and a target word that belong together, counted from 0.
      possible: pairs that may; the sure ones are among them.
    """

    place: str
    source: Words
    target: Words
    sure: frozenset[Link]
    possible: frozenset[Link]


@dataclasses.dataclass(frozen=True)
class OpenedGold:
    """Opened gold alignments.

    Args:
      options: what was opened.
      pairs: the sentence pairs.
      report: what came of opening them; words linked to nothing are counted too.
    """

    options: "GoldAlignment"
    pairs: list[GoldPair]
    report: Report

    @property
    def language(self) -> str:
        """For the table."""
        return self.options.language


@dataclasses.dataclass(frozen=True)
class GoldAlignment:
    """Gold word alignments, and how a model's tokens are aligned to be held against them.

    Measured are ``AER`` (the lower, the better), ``precision``, ``recall`` and ``F1``; see
    ``evaluation.alignment.alignment_scores``. The model reads both sentences as queries.

    Args:
      path: JSON lines; or links in Pharaoh's form, beside ``source`` and ``target``.
      language: for the table.
      source: with links in Pharaoh's form, the file of the first sentences.
      target: with links in Pharaoh's form, the file of the second sentences.
      aligner: one of ``ops.alignment.Aligner``.
      null: cost above which tokens rather stay without a counterpart; None for never.
      agreement: keep only pairs of tokens that are each other's best in the plan.
      layer: of the encoder whose token vectors are compared, 1 being the lowest; None takes those
        that are compared in search.
      name: for tables and file names.
      on_bad_record: "error" stops at the first bad line; "skip" leaves it out and counts it.

    Raises:
      ValueError: if an option is outside its range, or one file of sentences is missing.
    """

    path: str
    language: str
    source: str = ""
    target: str = ""
    aligner: Aligner = dataclasses.field(default_factory=Sinkhorn)
    null: float | None = None
    agreement: bool = False
    layer: int | None = None
    name: str = "alignment"
    on_bad_record: str = "error"

    def __post_init__(self) -> None:
        if bool(self.source) != bool(self.target):
            one = "source" if self.source else "target"
            raise ValueError(
                f"GoldAlignment: {one} is the only file of sentences; write both beside links, or "
                "none beside JSON lines"
            )
        for name in ("null", "layer"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"GoldAlignment.{name} is {value}; write one above 0, or None")

    def open(self, data_root: str) -> OpenedGold:
        """Read and check all files.

        Raises:
          DataError: if a file cannot be read, a line is bad, or no link is sure.
        """
        intake = Intake(self.on_bad_record)
        read = _pharaoh if self.source else _json_lines
        pairs = list(read(self, data_root, intake))
        report = intake.finish(len(pairs), self.path)
        if not any(pair.sure for pair in pairs):
            raise DataError(
                f"{self.path}: no link is sure, and recall is of sure links; write those that are "
                'under "sure", or with - in the place of p'
            )
        return OpenedGold(self, pairs, report)

    def files(self) -> tuple[str, ...]:
        """The files it reads."""
        return tuple(path for path in (self.path, self.source, self.target) if path)


def _json_lines(gold: GoldAlignment, data_root: str, intake: Intake) -> Iterable[GoldPair]:
    table = open_lines(data_root, gold.path, intake)
    for i in range(len(table)):
        found = parse_object(table, i, _FIELDS, ("src", "tgt", "sure"), intake)
        if found is None:
            continue
        found.setdefault("possible", [])
        fault = next(filter(None, (_words_fault(found, side) for side in ("src", "tgt"))), None)
        pairs = ((name, link) for name in ("sure", "possible") for link in found[name])
        fault = fault or next(filter(None, (_form_fault(*pair) for pair in pairs)), None)
        if fault is not None:
            intake.refuse(table.place(i), *fault)
            continue
        source, target = (Words.joined(found[side]) for side in ("src", "tgt"))
        sure, possible = ([(a, b) for a, b in found[name]] for name in ("sure", "possible"))
        yield from _pair(table.place(i), source, target, sure, possible, intake)


def _pharaoh(gold: GoldAlignment, data_root: str, intake: Intake) -> Iterable[GoldPair]:
    # Lines of the three files belong together by number: none may be left out of one alone.
    table = open_lines(data_root, gold.path, Intake())
    blank = "the line has no words; write a sentence"
    sides = [open_lines(data_root, path, Intake(), blank) for path in (gold.source, gold.target)]
    for path, side in zip((gold.source, gold.target), sides, strict=True):
        if len(side) != len(table):
            raise DataError(
                f"{path}: {len(side)} lines beside {len(table)} of {gold.path}; write the words of "
                "one sentence for every line of links"
            )
    for i in range(len(table)):
        links: dict[str, list[Link]] = {"-": [], "p": []}
        for text in table.text(i).split():
            match = _PHARAOH.fullmatch(text)
            if match is None:
                sentence = f"{text!r} is no link; write 0-0 for a sure one and 0p0 for a possible"
                intake.refuse(table.place(i), "no link", sentence)
                break
            links[match[2]].append((int(match[1]), int(match[3])))
        else:
            source, target = (Words.joined(side.text(i).split()) for side in sides)
            yield from _pair(table.place(i), source, target, links["-"], links["p"], intake)


def _pair(
    place: str,
    source: Words,
    target: Words,
    sure: Sequence[Link],
    possible: Sequence[Link],
    intake: Intake,
) -> Iterable[GoldPair]:
    """The pair, unless a link of it is bad."""
    for link in (*sure, *possible):
        fault = _range_fault(link, len(source.spans), len(target.spans))
        if fault is not None:
            intake.refuse(place, *fault)
            return
    kept = [frozenset(link for link in links if _NULL not in link) for links in (sure, possible)]
    left = sum(_NULL in link for link in (*sure, *possible))
    intake.leave_out("word linked to nothing (-1)", left)
    yield GoldPair(place, source, target, kept[0], kept[0] | kept[1])


def _words_fault(found: Mapping[str, Any], side: str) -> _Fault | None:
    if not found[side]:
        return "no words", f'"{side}" has no words; write the words of a sentence'
    for word in found[side]:
        if not isinstance(word, str) or is_blank(word):
            shown = f"{word!r}" if isinstance(word, str) else json_kind(word)
            return "bad word", f'"{side}" holds {shown}; write a list of words'
    return None


def _form_fault(name: str, link: object) -> _Fault | None:
    if isinstance(link, list) and len(link) == 2 and all(type(end) is int for end in link):
        return None
    sentence = f'"{name}" holds {link!r}; write pairs of word numbers, [source, target]'
    return "bad link", sentence


def _range_fault(link: Link, source: int, target: int) -> _Fault | None:
    for side, end, words in zip(("source", "target"), link, (source, target), strict=True):
        if not _NULL <= end < words or link == (_NULL, _NULL):
            return "link beyond the sentence", (
                f"the link {list(link)} asks for {side} word {end} of {words}; write 0 to "
                f"{words - 1}, -1 for a word without a counterpart, or leave such lines out with "
                '--on-bad-record skip (on_bad_record="skip" in a configuration)'
            )
    return None
