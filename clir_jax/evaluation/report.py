"""What a run came to: tables for the terminal, and one HTML page that needs no other file."""

import dataclasses
import html
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from clir_jax.evaluation.pictures import (
    Plan,
    drawable,
    loss_plot,
    plan_html,
    plan_picture,
    png_html,
)
from clir_jax.files import read_json, write_text

_KEYS = ("stage", "system", "dataset", "language", "metric", "value")
_LOWER_IS_BETTER = frozenset({"AER"})

_CSS = """
:root { color-scheme: light dark; --ink: #1f2733; --muted: #667085; --line: #e3e7ee;
  --page: #fbfcfe; --card: #ffffff; --best: #0b62c4; }
@media (prefers-color-scheme: dark) { :root { --ink: #e5e9f0; --muted: #98a2b3; --line: #323a47;
  --page: #14181f; --card: #1b212a; --best: #7fb6ff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 76rem; background: var(--page);
  color: var(--ink); font: 16px/1.5 system-ui, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .75rem; }
h3 { font-size: 1rem; font-weight: 600; margin: 1.5rem 0 .5rem; }
p { color: var(--muted); margin: 0 0 .75rem; }
.scroll { overflow-x: auto; background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; padding: .5rem .75rem; }
table.summary { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
table.summary th, table.summary td { padding: .35rem .6rem; text-align: right;
  white-space: nowrap; }
table.summary thead th { color: var(--muted); font-weight: 500; text-align: center; }
table.summary thead tr:last-child th { border-bottom: 1px solid var(--line); }
table.summary tbody th { position: sticky; left: 0; background: var(--card); text-align: left;
  font-weight: 600; }
table.summary .first { border-left: 1px solid var(--line); }
table.summary tbody tr:hover td, table.summary tbody tr:hover th { background: var(--page); }
.stage { color: var(--muted); font-weight: 400; margin-left: .4rem; }
.best { color: var(--best); font-weight: 700; }
figure { margin: 0 0 1.25rem; }
img { display: block; max-width: 100%; height: auto; background: #fff; border-radius: 10px;
  border: 1px solid var(--line); padding: .5rem; }
details { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: .5rem .9rem; }
summary { cursor: pointer; }
pre { overflow-x: auto; font-size: .85rem; line-height: 1.45; }
"""


def summary_tables(rows: Iterable[Mapping[str, Any]]) -> Group:
    """Lay the summary out for a terminal: a line for each system, a column for each metric.

    Datasets share a table if they were measured by the same metrics.

    Args:
      rows: of ``summary.json``, each with ``stage``, ``system``, ``dataset``, ``language``,
        ``metric`` and ``value``.

    Returns:
      The tables; the best value of a metric, among a dataset's systems, is bold.

    Raises:
      ValueError: if a row lacks a key.
    """
    pivot = _pivot(rows)
    metrics: dict[tuple[str, str], list[str]] = {}
    for dataset, language, metric in pivot.columns:
        metrics.setdefault((dataset, language), []).append(metric)
    alike: dict[tuple[str, ...], list[tuple[str, str]]] = {}
    for measured, names in metrics.items():
        alike.setdefault(tuple(names), []).append(measured)
    return Group(*(_table(pivot, names, measured) for names, measured in alike.items()))


def _table(pivot: "_Pivot", metrics: Sequence[str], measured: Iterable[tuple[str, str]]) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for name in ("dataset", "language", "system", "stage"):
        table.add_column(name, style="dim", overflow="fold", min_width=len(name))
    for name in metrics:
        table.add_column(Text(name.replace(" ", "\n")), justify="right", no_wrap=True)
    for dataset, language in measured:
        names = [dataset, language]
        columns = [(dataset, language, metric) for metric in metrics]
        for system in pivot.systems:
            if not any((system, column) in pivot.values for column in columns):
                continue
            cells = [
                Text(
                    _number(pivot.values.get((system, column))),
                    "bold" if pivot.is_best(system, column) else "",
                )
                for column in columns
            ]
            table.add_row(*(Text(name) for name in (*names, *pivot.label(system))), *cells)
            names = ["", ""]
        table.add_section()
    return table


def write_report(
    run_dir: str | os.PathLike[str], plans: Sequence[Plan] = (), title: str | None = None
) -> Path:
    """Write ``report.html``: results, losses, alignments and the configuration of a run.

    The page is one file, with pictures inside it, and asks no server for anything. What the run has
    not produced yet is left out, so the report can be written at any time.

    Args:
      run_dir: a run's directory; ``summary.json``, ``config.json`` and ``stages/*/metrics.jsonl``
        in it are read.
      plans: alignments to show; those in scripts that pictures cannot draw become tables.
      title: the heading; None takes the directory's name.

    Returns:
      The path of the page.

    Raises:
      ValueError: with file and line, if a file of the run cannot be read as JSON.
    """
    run_dir = Path(run_dir)
    title = title if title is not None else run_dir.resolve().name
    summary = run_dir / "summary.json"
    rows = read_json(summary, list) if summary.exists() else []
    sections = [f"<h1>{html.escape(title)}</h1>"]
    sections += [
        "<h2>Results</h2>",
        _summary_html(rows) if rows else "<p>Nothing measured yet.</p>",
    ]
    logged = list(_logged(run_dir))
    if any(isinstance(value, int | float) for row in logged for value in _values(row)):
        image = png_html(lambda stream: loss_plot(logged, stream), "loss and evaluation by step")
        sections += ["<h2>Training</h2>", f"<figure>{image}</figure>"]
    if plans:
        sections += ["<h2>Alignments</h2>", *(_plan_section(plan) for plan in plans)]
    config = run_dir / "config.json"
    if config.exists():
        text = json.dumps(read_json(config, dict), indent=2, ensure_ascii=False)
        sections += [
            "<h2>Configuration</h2>",
            f"<details><summary>config.json</summary><pre>{html.escape(text)}</pre></details>",
        ]
    page = run_dir / "report.html"
    write_text(
        page,
        (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{html.escape(title)}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n"
            + "\n".join(sections)
            + "\n</body>\n</html>\n"
        ),
    )
    return page


_System = tuple[str, str]
_Column = tuple[str, str, str]


@dataclasses.dataclass(frozen=True)
class _Pivot:
    """The summary as a table: ``values`` by (stage, system) and (dataset, language, metric)."""

    systems: list[_System]
    columns: list[_Column]
    values: dict[tuple[_System, _Column], float]

    def label(self, system: _System) -> _System:
        """The system's name, and its stage where the name alone would be ambiguous."""
        stage, name = system
        return name, stage if sum(other == name for _, other in self.systems) > 1 else ""

    def is_best(self, system: _System, column: _Column) -> bool:
        known = [v for s in self.systems if _is_number(v := self.values.get((s, column)))]
        if len(known) < 2 or not _is_number(value := self.values.get((system, column))):
            return False
        return value == (min(known) if column[2] in _LOWER_IS_BETTER else max(known))


def _pivot(rows: Iterable[Mapping[str, Any]]) -> _Pivot:
    values: dict[tuple[_System, _Column], float] = {}
    for number, row in enumerate(rows, start=1):
        for key in _KEYS:
            if key not in row:
                raise ValueError(f"summary: row {number} lacks {key!r}; give {', '.join(_KEYS)}")
        system = (str(row["stage"] or ""), str(row["system"]))
        column = (str(row["dataset"]), str(row["language"] or ""), str(row["metric"]))
        values[system, column] = row["value"]
    systems = list(dict.fromkeys(system for system, _ in values))
    columns = list(dict.fromkeys(column for _, column in values))
    # Datasets, and languages within them, stand together, each where it first appears.
    places = [list(dict.fromkeys(c[:depth] for c in columns)) for depth in (1, 2, 3)]
    columns.sort(key=lambda c: [places[depth - 1].index(c[:depth]) for depth in (1, 2, 3)])
    return _Pivot(systems, columns, values)


def _summary_html(rows: Iterable[Mapping[str, Any]]) -> str:
    pivot = _pivot(rows)
    starts = {c for i, c in enumerate(pivot.columns) if i == 0 or pivot.columns[i - 1][0] != c[0]}
    lines = []
    for depth in (1, 2, 3):
        cells, left = ["<th></th>"], pivot.columns
        while left:
            span = sum(c[:depth] == left[0][:depth] for c in left)
            edge = ' class="first"' if left[0] in starts else ""
            cells.append(f'<th colspan="{span}"{edge}>{html.escape(left[0][depth - 1])}</th>')
            left = left[span:]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    body = []
    for system in pivot.systems:
        name, stage = pivot.label(system)
        note = f'<span class="stage">{html.escape(stage)}</span>' if stage else ""
        cells = [f'<th scope="row">{html.escape(name)}{note}</th>']
        for column in pivot.columns:
            best = "best" if pivot.is_best(system, column) else ""
            marks = " ".join(filter(None, (best, "first" if column in starts else "")))
            kind = f' class="{marks}"' if marks else ""
            cells.append(f"<td{kind}>{_number(pivot.values.get((system, column)))}</td>")
        body.append(f"<tr>{''.join(cells)}</tr>")
    return (
        '<div class="scroll"><table class="summary">\n<thead>\n'
        + "\n".join(lines)
        + "\n</thead>\n<tbody>\n"
        + "\n".join(body)
        + "\n</tbody></table></div>"
    )


def _plan_section(plan: Plan) -> str:
    if all(map(drawable, (*plan.x_pieces, *plan.y_pieces))):
        image = png_html(
            lambda stream: plan_picture(plan.plan, plan.x_pieces, plan.y_pieces, stream),
            f"alignment {plan.title}",
        )
        body = f"<figure>{image}</figure>"
    else:
        table = plan_html(plan.plan, plan.x_pieces, plan.y_pieces)
        body = f'<div class="scroll">{table}</div>'
    return f'<h3 dir="auto">{html.escape(plan.title)}</h3>\n{body}' if plan.title else body


def _logged(run_dir: Path) -> Iterable[dict[str, Any]]:
    """The rows of every stage's log, with the stage; a last line cut off by a kill is left out."""
    for path in sorted(run_dir.glob("stages/*/metrics.jsonl")):
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        for number, line in enumerate(lines, start=1):
            if not line.endswith("\n"):
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: not JSON ({error})") from None
            yield {"stage": path.parent.name, **row}


def _values(row: Mapping[str, Any]) -> Iterable[Any]:
    return (value for name, value in row.items() if name not in ("stage", "step"))


def _number(value: float | None) -> str:
    if not _is_number(value):
        return "-"
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.4g}"


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and math.isfinite(value)
