"""Rankings in the JSON files that DPR is trained from."""

import dataclasses
from array import array
from collections.abc import Mapping
from typing import Any

from clir_jax.data.judgements import passage_text
from clir_jax.data.opened import RankingKeys, RankingRecords
from clir_jax.data.reading import Intake, is_blank
from clir_jax.data.tables import json_kind, object_fault, open_arrays, parse_object, text_key

_NEGATIVES = {
    "hard": ("hard_negative_ctxs",),
    "all": ("hard_negative_ctxs", "negative_ctxs"),
}
_FIELDS = {
    "question": str,
    "positive_ctxs": list,
    "hard_negative_ctxs": list,
    "negative_ctxs": list,
}
_CONTEXT_FIELDS = {"title": str, "text": str}


@dataclasses.dataclass(frozen=True)
class DPRJSON:
    """Questions with passages as DPR has them, one JSON array a file, ``.json`` or ``.json.gz``.

    ``[{"question": "…", "positive_ctxs": [{"title": "…", "text": "…"}], "hard_negative_ctxs": […],
    "negative_ctxs": […]}, …]``. Only ``question``, ``positive_ctxs`` and each passage's ``text``
    are required; further keys, such as ``answers`` and ``score``, are not read. A passage is read
    as title and text.

    Opening parses every record once and keeps 48 bytes a record and 8 a passage. A plain file is
    memory-mapped, and a compressed one held decompressed. A record is parsed again, whole, when it
    is read.

    Args:
      path: a file, or a pattern that names several.
      query_language: of the questions.
      negatives: "hard" takes the hard negatives; "all" also the others, after them.
      on_bad_record: "error" stops at the first bad record; "skip" leaves it out and counts it. A
        file that is not one whole array is always an error.

    Raises:
      ValueError: if ``negatives`` is neither.
    """

    path: str
    query_language: str = "en"
    negatives: str = "hard"
    on_bad_record: str = "error"

    def __post_init__(self) -> None:
        if self.negatives not in _NEGATIVES:
            raise ValueError(f'DPRJSON.negatives is {self.negatives!r}; write "hard" or "all"')

    def open(self, data_root: str) -> RankingRecords:
        """Find, parse and check every record.

        Raises:
          DataError: if a file cannot be read or is not an array, or holds a bad record.
        """
        intake = Intake(self.on_bad_record)
        table = open_arrays(data_root, self.path)
        lists = ("positive_ctxs", *_NEGATIVES[self.negatives])
        kept, gathered = array("q"), RankingKeys()
        for i in range(len(table)):
            found = parse_object(table, i, _FIELDS, ("question", "positive_ctxs"), intake)
            if found is None:
                continue
            fault = _record_fault(found, lists)
            if fault is not None:
                intake.refuse(table.place(i), *fault)
                continue
            kept.append(i)
            keys = map(text_key, _passages(found, lists))
            gathered.add(text_key(found["question"]), keys, len(found["positive_ctxs"]))

        def row(i: int) -> tuple[Mapping[str, str], tuple[str, ...], None]:
            found = parse_object(table, kept[i], {}, (), Intake())
            assert found is not None  # the record was parsed when the source was opened
            return {self.query_language: found["question"]}, _passages(found, lists), None

        return gathered.records(row, (self.query_language,), intake, self.path)

    def files(self) -> tuple[str, ...]:
        """The files it reads."""
        return (self.path,)


def _passages(found: Mapping[str, Any], lists: tuple[str, ...]) -> tuple[str, ...]:
    contexts = (context for name in lists for context in found.get(name, ()))
    return tuple(passage_text(context.get("title", ""), context["text"]) for context in contexts)


def _record_fault(found: dict[str, Any], lists: tuple[str, ...]) -> tuple[str, str] | None:
    """What is wrong with one record: None, or the reason and the sentence."""
    if is_blank(found["question"]):
        return "blank text", 'the "question" is blank; write text or remove the record'
    if not found["positive_ctxs"]:
        return "no positive", '"positive_ctxs" is empty; name at least one relevant passage'
    for name in lists:
        for context in found.get(name, ()):
            if not isinstance(context, dict):
                sentence = (
                    f'"{name}" holds {json_kind(context)}; write {{"title": "…", "text": "…"}}'
                )
                return "wrong JSON type", sentence
            fault = object_fault(context, _CONTEXT_FIELDS, ("text",))
            if fault is not None:
                return fault[0], f'in "{name}", {fault[1]}'
            if not passage_text(context.get("title", ""), context["text"]):
                sentence = f'in "{name}", title and text are blank; write text or leave it out'
                return "blank text", sentence
    return None
