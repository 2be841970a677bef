"""Corpora, queries and relevance judgements, in the files of TREC and BEIR."""

from collections.abc import Container, Mapping, Sequence

from clir_jax.data.reading import Intake, is_blank
from clir_jax.data.tables import Table, open_lines, open_tsv, parse_object

Qrels = dict[str, dict[str, int]]
_CORPUS_FIELDS = {"_id": str, "title": str, "text": str}
_QUERY_FIELDS = {"_id": str, "text": str}


def passage_text(title: str, text: str) -> str:
    """A passage as it is read: its title, where it has one, before its text."""
    return " ".join(part for part in (title, text) if not is_blank(part))


class Corpus:
    """Passages by id, read lazily.

    Args:
      data_root: the folder ``path`` is relative to.
      path: JSON lines ``{"_id", "title", "text"}``; ``title`` may be missing.
      intake: receives the bad lines.

    Raises:
      DataError: if a file is missing, or ``intake`` raises.
    """

    def __init__(self, data_root: str, path: str, intake: Intake):
        self._table = open_lines(data_root, path, intake)
        self.rows: dict[str, int] = {}
        for i in range(len(self._table)):
            found = parse_object(self._table, i, _CORPUS_FIELDS, ("_id", "text"), intake)
            if found is None:
                continue
            if is_blank(found["_id"]):
                sentence = 'the "_id" is blank; give the passage one'
                intake.refuse(self._table.place(i), "blank id", sentence)
            elif not passage_text(found.get("title", ""), found["text"]):
                sentence = "title and text are blank; give the passage text or remove the line"
                intake.refuse(self._table.place(i), "blank text", sentence)
            else:
                _add(self.rows, found["_id"], self._table, i, "passage", intake)

    def text(self, row: int) -> str:
        """The passage at ``row``, with its title."""
        return passage_text(*self.parts(row))

    def parts(self, row: int) -> tuple[str, str]:
        """The title, which may be blank, and the text of the passage at ``row``."""
        found = parse_object(self._table, row, {}, (), Intake())
        assert found is not None  # the row was parsed when the corpus was opened
        return found.get("title", ""), found["text"]


class Queries:
    """Queries by id, read lazily.

    Args:
      data_root: the folder ``path`` is relative to.
      path: tab-separated ``id, text, further texts`` (``.tsv``), or JSON lines
        ``{"_id", "text"}`` (``.jsonl``).
      columns: the columns (from 1) that are needed; JSON lines have column 1 only.
      intake: receives the bad lines.

    Raises:
      DataError: if a file is missing, or ``intake`` raises.
    """

    def __init__(self, data_root: str, path: str, columns: Sequence[int], intake: Intake):
        self._json = path.removesuffix(".gz").endswith(".jsonl")
        self.rows: dict[str, int] = {}
        if min(columns) < 1 or (self._json and max(columns) > 1):
            raise ValueError(
                f"{path}: query column {min(columns) if min(columns) < 1 else max(columns)} is not "
                f"one; {'JSON lines have column 1 only' if self._json else 'columns count from 1'}"
            )
        if self._json:
            self._table = open_lines(data_root, path, intake)
        else:
            form = "<TAB>".join(
                ["id", "text", *(f"column {n}" for n in range(2, max(columns) + 1))]
            )
            self._table = open_tsv(data_root, path, form, (0, *columns), intake, more=True)
        for i in range(len(self._table)):
            if not self._json:
                query_id = self._table.text(i).split("\t", 1)[0]
            else:
                found = parse_object(self._table, i, _QUERY_FIELDS, ("_id", "text"), intake)
                if found is None:
                    continue
                blank = next((name for name in _QUERY_FIELDS if is_blank(found[name])), None)
                if blank is not None:
                    sentence = f'the "{blank}" is blank; write text or remove the line'
                    intake.refuse(self._table.place(i), "blank text", sentence)
                    continue
                query_id = found["_id"]
            _add(self.rows, query_id, self._table, i, "query", intake)

    def text(self, row: int, column: int = 1) -> str:
        """The query at ``row``, as ``column`` has it."""
        if not self._json:
            return self._table.text(row).split("\t")[column]
        found = parse_object(self._table, row, {}, (), Intake())
        assert found is not None  # the row was parsed when the queries were opened
        return str(found["text"])


def read_qrels(
    data_root: str,
    path: str,
    queries: Container[str],
    passages: Container[str],
    intake: Intake,
) -> Qrels:
    """Read relevance judgements.

    Args:
      data_root: the folder ``path`` is relative to.
      path: TREC lines ``query 0 passage relevance``, or BEIR lines
        ``query<TAB>passage<TAB>relevance``, with or without a header.
      queries: the query ids there are.
      passages: the passage ids there are.
      intake: receives bad lines: another form, an unknown id, a second and different judgement.

    Returns:
      Relevance by query id and passage id, in file order.
    """
    table = open_lines(data_root, path, intake)
    qrels: Qrels = {}
    for i in range(len(table)):
        line = table.text(i)
        fields = line.split("\t") if line.count("\t") == 2 else line.split()
        if i == 0 and len(fields) == 3 and not _is_integer(fields[2]):
            continue  # the header of BEIR
        fault = _judgement_fault(fields, queries, passages, qrels)
        if fault is None:
            qrels.setdefault(fields[0], {})[fields[-2]] = int(fields[-1])
        else:
            intake.refuse(table.place(i), *fault)
    return qrels


def _judgement_fault(
    fields: Sequence[str],
    queries: Container[str],
    passages: Container[str],
    qrels: Mapping[str, Mapping[str, int]],
) -> tuple[str, str] | None:
    if len(fields) not in (3, 4):
        return "wrong number of fields", (
            f"the line has {len(fields)} field{'s' * (len(fields) != 1)}; write query 0 passage "
            "relevance, or query<TAB>passage<TAB>relevance"
        )
    query, passage, relevance = fields[0], fields[-2], fields[-1]
    if not _is_integer(relevance):
        return "bad relevance", f'the relevance "{relevance}" is not a whole number; write 0, 1, …'
    if query not in queries:
        return "unknown query", f'the query "{query}" is not in the queries; correct the id'
    if passage not in passages:
        return "unknown passage", f'the passage "{passage}" is not in the corpus; correct the id'
    before = qrels.get(query, {}).get(passage)
    if before is not None and before != int(relevance):
        return "judged twice", (
            f'the passage "{passage}" was judged {before} for the query "{query}" before and is '
            f"{relevance} here; keep one of the lines"
        )
    return None


def _is_integer(text: str) -> bool:
    return text.removeprefix("-").isdecimal() and text.isascii()


def _add(rows: dict[str, int], key: str, table: Table, i: int, what: str, intake: Intake) -> None:
    if key in rows:
        sentence = (
            f'the {what} id "{key}" was used before ({table.place(rows[key])}); ids are unique'
        )
        intake.refuse(table.place(i), f"duplicate {what} id", sentence)
    else:
        rows[key] = i
