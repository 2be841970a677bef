"""What the package ``ir_datasets`` knows by id: queries, judgements, triples, scores and passages.

It downloads what is missing, into ``~/.ir_datasets`` or ``$IR_DATASETS_HOME``.
"""

import contextlib
import difflib
import itertools
import threading
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from typing import Any

from clir_jax.data.judgements import Qrels
from clir_jax.data.reading import DataError, Intake, is_blank
from clir_jax.data.tables import is_unicode

ADVICE = 'write on_bad_record="skip" to leave it out'
_BATCH = 4096
_SHOWN = 3


class IRFiles:
    """One id of ``ir_datasets``.

    Args:
      name: the id.
      needed: what it must have, of "docs", "queries", "qrels", "docpairs" and "scoreddocs".

    Raises:
      DataError: if there is no such id, or it lacks something; the sentence names the nearest.
    """

    def __init__(self, name: str, needed: Sequence[str]):
        self.name = name
        # A store of documents seeks in one open file.
        self._lock = threading.Lock()
        self._store: Any = None
        with self._reading("catalogue"):
            import ir_datasets  # here, for it takes half a second

            registry = ir_datasets.registry
        try:
            self._dataset: Any = registry[name]
        except KeyError:
            near = difflib.get_close_matches(name, registry, n=1, cutoff=0.0)[0]
            raise DataError(
                f'"{name}" is not an id of ir_datasets; did you mean "{near}"? '
                "python -m ir_datasets list shows all ids"
            ) from None
        for kind in needed:
            if not self.has(kind):
                parts = (other for other in registry if other.startswith(f"{name}/"))
                fit = itertools.islice((x for x in parts if registry[x].has(kind)), _SHOWN)
                hint = ", ".join(f'"{x}"' for x in fit) or "another id"
                raise DataError(f'"{name}" has no {kind} in ir_datasets; write {hint}')

    def has(self, kind: str) -> bool:
        """Whether the id has "docs", "queries", "qrels", "docpairs" or "scoreddocs"."""
        return bool(self._dataset.has(kind))

    def entries(self, kind: str) -> Iterator[Any]:
        """All of one kind, as the named tuples of ``ir_datasets``.

        Raises:
          DataError: if they cannot be downloaded or read.
        """
        with self._reading(kind):
            yield from getattr(self._dataset, f"{kind}_iter")()

    def text_of(self, kind: str, field: str, option: str) -> Callable[[Any], Any]:
        """How to read the text of an entry.

        Args:
          kind: "queries" or "docs".
          field: of the entry; "" takes what ``ir_datasets`` takes for its text.
          option: the setting that ``field`` comes from, for messages.

        Raises:
          DataError: if there is no such field.
        """
        form = getattr(self._dataset, f"{kind}_cls")()
        fields = ", ".join(form._fields)
        if field and field not in form._fields:
            near = difflib.get_close_matches(field, form._fields, n=1, cutoff=0.0)[0]
            raise DataError(
                f'{self.name} {kind}: there is no field "{field}"; set {option} to "{near}" '
                f"(one of: {fields})"
            )
        if field:
            return lambda entry: getattr(entry, field)
        if not hasattr(form, "default_text"):
            raise DataError(
                f"{self.name} {kind}: ir_datasets does not say which field is the text; set "
                f"{option} to one of: {fields}"
            )
        # A blank title leaves a space, and equal texts must be equal.
        return lambda entry: entry.default_text().strip()

    def queries(self, fields: Mapping[str, str], intake: Intake) -> dict[str, tuple[str, ...]]:
        """The texts of every query by its id, one for each of ``fields`` (language to field)."""
        readers = [
            self.text_of("queries", field, f'translations["{language}"]' if n else "query_field")
            for n, (language, field) in enumerate(fields.items())
        ]
        queries: dict[str, tuple[str, ...]] = {}
        for query in self.entries("queries"):
            texts = tuple(read(query) for read in readers)
            faults = (text_fault("query", query.query_id, text) for text in texts)
            fault = next((fault for fault in faults if fault is not None), None)
            if query.query_id in queries:
                fault = (
                    "duplicate query id",
                    f'the query "{query.query_id}" comes twice; {ADVICE}',
                )
            if fault is None:
                queries[query.query_id] = texts
            else:
                intake.refuse(f"{self.name} queries", *fault)
        return queries

    def qrels(self, queries: Container[str], intake: Intake) -> Qrels:
        """Relevance by query id and passage id; refuses unknown queries, not unknown passages."""
        qrels: Qrels = {}
        for entry in self.entries("qrels"):
            query, passage, relevance = entry.query_id, entry.doc_id, int(entry.relevance)
            place = f"{self.name} qrels"
            before = qrels.get(query, {}).get(passage, relevance)
            if query not in queries:
                sentence = f'there is no query "{query}", which is judged; {ADVICE}'
                intake.refuse(place, "unknown query", sentence)
            elif before != relevance:
                intake.refuse(
                    place,
                    "judged twice",
                    f'the passage "{passage}" is judged {before} and {relevance} for the query '
                    f'"{query}"; {ADVICE}',
                )
            else:
                qrels.setdefault(query, {})[passage] = relevance
        return qrels

    def documents(self, names: Sequence[str]) -> dict[str, Any]:
        """Documents by id, those of ``names`` that there are; from any thread.

        Raises:
          DataError: if they cannot be downloaded or read.
        """
        with self._lock, self._reading("docs"):
            if self._store is None:
                self._store = self._dataset.docs_store()
            found: dict[str, Any] = self._store.get_many(names)
            return found

    @contextlib.contextmanager
    def _reading(self, kind: str) -> Iterator[None]:
        # Whatever a download, a parser or a checksum raises is about the data.
        try:
            yield
        except Exception as error:
            why = " ".join(str(error).split()) or "no reason given"
            raise DataError(
                f"{self.name}: ir_datasets cannot read its {kind} ({type(error).__name__}: {why}); "
                "see to the network, or to the files in $IR_DATASETS_HOME"
            ) from error


class IRPassages:
    """The passages of an id, one after another or by their ids from any thread.

    Args:
      name: the id.
      field: of a document; "" takes what ``ir_datasets`` takes for its text.
      intake: receives the bad passages.

    Raises:
      DataError: if there is no such id or field, or the id has no documents.
    """

    def __init__(self, name: str, field: str, intake: Intake):
        self._files = IRFiles(name, ("docs",))
        self._text = self._files.text_of("docs", field, "passage_field")
        self._intake, self._place = intake, f"{name} docs"

    def all(self) -> Iterator[tuple[str, str]]:
        """Ids and texts in the order of the collection, without those that were refused."""
        seen: set[str] = set()
        for entry in self._files.entries("docs"):
            if entry.doc_id in seen:
                sentence = f'the passage "{entry.doc_id}" comes twice; {ADVICE}'
                self._intake.refuse(self._place, "duplicate passage id", sentence)
                continue
            seen.add(entry.doc_id)
            text = self._text(entry)
            fault = text_fault("passage", entry.doc_id, text)
            if fault is None:
                yield entry.doc_id, text
            else:
                self._intake.refuse(self._place, *fault)

    def checked(self, names: Sequence[str], where: str) -> Iterator[str | None]:
        """The text of each of ``names``; None for what is not there or blank, and was refused.

        Args:
          names: ids.
          where: they are named, for messages.
        """
        for start in range(0, len(names), _BATCH):
            batch = names[start : start + _BATCH]
            found = self.texts(batch)
            for name in batch:
                fault = text_fault("passage", name, found[name]) if name in found else None
                if name not in found:
                    self.refuse_unknown(name, where)
                elif fault is not None:
                    self._intake.refuse(self._place, *fault)
                yield found.get(name) if fault is None else None

    def refuse_unknown(self, name: str, where: str) -> None:
        """Refuse an id that ``where`` names and no passage has."""
        sentence = f'there is no passage "{name}", which {where} names; {ADVICE}'
        self._intake.refuse(self._place, "unknown passage", sentence)

    def texts(self, names: Sequence[str]) -> dict[str, Any]:
        """Texts by id of those of ``names`` that there are."""
        found = self._files.documents(names)
        return {name: self._text(entry) for name, entry in found.items()}


def text_fault(what: str, name: str, text: Any) -> tuple[str, str] | None:
    """Why the text of a query or passage cannot be used: None, or the reason and the sentence."""
    if not isinstance(text, str) or is_blank(text):
        return "blank text", f'the {what} "{name}" has no text, or a blank one; {ADVICE}'
    if not is_unicode(text):
        return "not Unicode text", f'the {what} "{name}" holds half a surrogate pair; {ADVICE}'
    return None
