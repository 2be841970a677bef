"""The report: read back with an HTML parser, the table with rich's plain text."""

import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from rich.console import Console

from clir_jax.evaluation.pictures import Plan
from clir_jax.evaluation.report import summary_tables, write_report


def _row(*values):
    keys = ("stage", "system", "dataset", "language", "metric", "value")
    return dict(zip(keys, values, strict=True))


ROWS = [
    _row("", "bm25", "xquad", "en", "nDCG@10", 0.8346),
    _row("", "bm25", "afriqa", "sw", "nDCG@10", 0.25),
    _row("", "bm25", "xquad", "es", "nDCG@10", 0.175),
    _row("", "bm25", "xquad", "en", "RR@10", 0.8),
    _row("1", "student", "xquad", "en", "nDCG@10", 0.9),
    _row("2", "student", "xquad", "en", "nDCG@10", float("nan")),
    _row("2", "student", "xquad", "es", "nDCG@10", 0.175),
    _row("2", "student", "gold", "hi", "AER", 0.2),
    _row("1", "student", "gold", "hi", "AER", 0.3),
]


class _Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.rows, self.images, self.tags, self.urls, self.open = [], [], [], [], []
        self.data = ""

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append(tag)
        if tag not in ("meta", "img"):
            self.open.append(tag)
        self.urls += [v for k, v in attrs.items() if k in ("src", "href", "srcset")]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th") and self.rows:
            self.rows[-1].append([attrs.get("class", ""), int(attrs.get("colspan", 1)), ""])
        if tag == "img":
            self.images.append(attrs)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, "tags must nest"

    def handle_data(self, data):
        self.data += data
        if self.rows and self.rows[-1] and self.open and self.open[-1] in ("td", "th", "span"):
            self.rows[-1][-1][2] += data


def _read(path):
    page = _Page()
    page.feed(path.read_text(encoding="utf-8"))
    assert page.open == []
    return page


@pytest.fixture
def run_dir(tmp_path):
    (tmp_path / "summary.json").write_text(json.dumps(ROWS))
    (tmp_path / "config.json").write_text(json.dumps({"name": "ünï <script>alert(1)</script>"}))
    for stage in ("01-teacher", "02-distil"):
        folder = tmp_path / "stages" / stage
        folder.mkdir(parents=True)
        rows = [{"step": i, "loss": 1.0 / (i + 1)} for i in range(20)] + [
            {"step": 20, "nDCG@10 en": 0.5}
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_the_table_has_systems_as_rows_and_measurements_as_columns(run_dir):
    page = _read(write_report(run_dir))
    dataset, language, metric, *body = page.rows
    spans = lambda row: [(text, span) for _, span, text in row[1:]]  # noqa: E731
    assert spans(dataset) == [("xquad", 3), ("afriqa", 1), ("gold", 1)]
    assert spans(language) == [("en", 2), ("es", 1), ("sw", 1), ("hi", 1)]
    assert [m for m, _ in spans(metric)] == ["nDCG@10", "RR@10", "nDCG@10", "nDCG@10", "AER"]
    assert [[text for _, _, text in row] for row in body] == [
        ["bm25", "0.835", "0.800", "0.175", "0.250", "-"],
        ["student1", "0.900", "-", "-", "-", "0.300"],
        ["student2", "-", "-", "0.175", "-", "0.200"],
    ]
    best = [[text for kind, _, text in row if "best" in kind] for row in body]
    assert best == [["0.175"], ["0.900"], ["0.175", "0.200"]], "AER is better when lower"


def test_the_page_is_whole_in_itself(run_dir):
    plans = [
        Plan(np.eye(2), ["a", "b"], ["c", "d"], "one <b>plan</b>"),
        Plan(np.eye(2), ["a", "b"], ["مدرسة", "学校"], "another"),
    ]
    path = write_report(run_dir, plans, title="Run & <i>title</i>")
    assert path == run_dir / "report.html"
    page, text = _read(path), path.read_text(encoding="utf-8")
    assert all(url.startswith("data:image/png;base64,") for url in page.urls)
    assert not {"script", "link", "iframe", "i", "b"} & set(page.tags)
    assert "url(" not in text
    assert "@import" not in text
    assert len(page.images) == 2
    for image in page.images:
        png = base64.b64decode(image["src"].partition(",")[2])
        assert png.startswith(b"\x89PNG")
        assert image["alt"]
        assert int(image["width"]) == round(int.from_bytes(png[16:20], "big") / 1.5)
    for words in (
        "Run & <i>title</i>",
        "one <b>plan</b>",
        "ünï <script>alert(1)</script>",
        "مدرسة",
    ):
        assert words in page.data
    assert "prefers-color-scheme: dark" in text
    assert {"details", "summary", "figure"} <= set(page.tags)


def test_an_unfinished_run_has_a_report(tmp_path):
    page = _read(write_report(tmp_path))
    assert "Nothing measured yet." in page.data
    assert not page.images
    assert tmp_path.name in page.data
    folder = tmp_path / "stages" / "01-a"
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text('{"step": 1}\n')
    assert not _read(write_report(tmp_path)).images
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "lo')
    assert len(_read(write_report(tmp_path)).images) == 1


def test_unreadable_files_are_named_with_their_line(run_dir):
    log = run_dir / "stages" / "01-teacher" / "metrics.jsonl"
    before = write_report(run_dir).read_text()
    log.write_text('{"step": 1, "loss": 1.0}\nnonsense\n')
    with pytest.raises(ValueError, match=re.escape(f"{log}, line 2: not JSON")):
        write_report(run_dir)
    log.write_text("")
    (run_dir / "summary.json").write_text("[")
    with pytest.raises(ValueError, match=r"summary\.json:1: this is not JSON"):
        write_report(run_dir)
    (run_dir / "summary.json").write_text(json.dumps([*ROWS, {"stage": "1", "system": "x"}]))
    with pytest.raises(ValueError, match="row 10 lacks 'dataset'"):
        write_report(run_dir)
    assert (run_dir / "report.html").read_text() == before
    assert not list(run_dir.glob(".report*"))


def _plain(table, width=100):
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(table)
    return console.file.getvalue()


def test_the_terminal_table():
    lines = [line.split() for line in _plain(summary_tables(ROWS), 60).splitlines()]
    assert [line for line in lines if line and not line[0].startswith("─")] == [
        ["dataset", "language", "system", "stage", "nDCG@10", "RR@10"],
        ["xquad", "en", "bm25", "0.835", "0.800"],
        ["student", "1", "0.900", "-"],
        ["student", "2", "-", "-"],
        ["dataset", "language", "system", "stage", "nDCG@10"],
        ["xquad", "es", "bm25", "0.175"],
        ["student", "2", "0.175"],
        ["afriqa", "sw", "bm25", "0.250"],
        ["dataset", "language", "system", "stage", "AER"],
        ["gold", "hi", "student", "1", "0.300"],
        ["student", "2", "0.200"],
    ]


def test_the_best_is_bold_and_names_are_no_markup():
    rows = [_row("", name, "[red]d", "en", "RR@10", v) for name, v in (("[b]a", 0.1), ("c", 0.2))]
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system="standard")
    console.print(summary_tables(rows))
    text = console.file.getvalue()
    assert "[red]d" in text
    assert "[b]a" in text
    assert "\x1b[1m0.200" in text
    assert "\x1b[1m0.100" not in text


def test_nothing_measured_is_no_table():
    assert _plain(summary_tables([])) == ""
