"""Lines that a work writes block by block, and what it counts on the way: a kill loses neither."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from clir_jax.data.reading import DataError
from clir_jax.data.records import Ranking, Records
from clir_jax.evaluation.retrieval import Progress
from clir_jax.files import read_json, write_json

RECORDS = "records.jsonl"


def write_rankings(
    directory: Path,
    records: Records,
    block: int,
    lists: Callable[[Sequence[Ranking], range], Iterable[tuple[Sequence[str], Any]]],
    progress: Progress,
) -> None:
    """Write rankings with other negatives or scores as JSON lines, block by block.

    It goes on behind the last whole block that is there, so that a block is always the same
    records, and what is computed together does not depend on where a kill came.

    Args:
      directory: of the artifact.
      records: rankings.
      block: records of a block.
      lists: gives of the records of a block, and their numbers, the negatives and the scores (or
        None) of each.
      progress: told the records that are done.
    """
    language = records.languages[0]

    def lines(rows: range) -> Iterator[str]:
        read: list[Any] = [records[row] for row in rows]
        for record, (negatives, scores) in zip(read, lists(read, rows), strict=True):
            yield _line(record, language, negatives, scores)

    write_blocks(directory / RECORDS, len(records), block, lines, progress)


def write_blocks(
    path: Path,
    total: int,
    block: int,
    lines: Callable[[range], Iterable[str]],
    progress: Progress,
) -> None:
    """Write lines, block by block, behind the last whole block that is there.

    Args:
      path: of the file.
      total: lines.
      block: lines of a block.
      lines: gives those of these numbers.
      progress: told the lines that are done.

    Raises:
      DataError: if there are more or fewer lines at the end.
    """
    for start in range(_cut(path, total, block), total, block):
        progress(start, total)
        text = "".join(lines(range(start, min(start + block, total))))
        with open(path, "ab") as file:
            file.write(text.encode())
    with open(path, "rb") as file:
        there = sum(1 for _ in file)
    if there != total:
        raise DataError(
            f"{path}: {there:,} lines are there, and {total:,} belong there, as if two processes "
            f"had written them; remove {path.parent}, and start again with one"
        )
    progress(total, total)


def written_lines(directory: Path) -> Iterator[dict[str, Any]]:
    """The objects that ``write_rankings`` has written."""
    with open(directory / RECORDS, encoding="utf-8") as file:
        yield from map(json.loads, file)


def note_counts(file: Path, start: int, counts: Mapping[str, int]) -> None:
    """Keep what was counted in a block; a block that is done again is counted once.

    Args:
      file: of the counts, beside the lines; it is to be written before the block's lines are.
      start: the block's first line.
      counts: by what was counted.
    """
    noted = read_json(file, dict) if file.exists() else {}
    write_json(file, {**noted, str(start): counts})


def summed_counts(file: Path) -> Counter[str]:
    """The sums of all blocks, in the order in which they were first counted; 0 without a file."""
    sums: Counter[str] = Counter()
    for block in (read_json(file, dict) if file.exists() else {}).values():
        for what, number in block.items():
            sums[what] += number
    return sums


def _line(record: Ranking, language: str, negatives: Sequence[str], scores: Any) -> str:
    """One line for ``RankingJSONL``."""
    others = {x: text for x, text in record.queries.items() if x != language}
    row: dict[str, Any] = {"query": record.queries[language]}
    row |= {"queries": others} if others else {}
    row |= {"positives": [p.text for p in record.positives], "negatives": list(negatives)}
    row |= {} if scores is None else {"scores": [float(score) for score in scores]}
    return json.dumps(row, ensure_ascii=False) + "\n"


def _cut(path: Path, total: int, block: int) -> int:
    """Cut a file of lines behind its last whole block, and tell how many lines it has then."""
    ends = [0]
    with open(path, "ab+") as file:
        file.seek(0)
        for line in file:
            if line.endswith(b"\n"):
                ends.append(ends[-1] + len(line))
        done = len(ends) - 1
        done -= done % block if done < total else 0
        file.truncate(ends[done])
    return done
