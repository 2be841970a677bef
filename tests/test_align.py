"""The command line of alignment: one pair of sentences, gold alignments, and mistakes."""

import html.parser
import json

import jax
import numpy as np
import pytest
from matplotlib.image import imread

from clir_jax.align import main
from clir_jax.data.gold_alignment import GoldAlignment
from clir_jax.evaluation.alignment import Method, WordAligner, score_alignments
from clir_jax.mesh import make_mesh
from clir_jax.models.formats import load_retriever, on_mesh, save_loaded
from clir_jax.models.retriever import Dense
from clir_jax.ops.alignment import Attention, Greedy
from tests.training.workshop import WORDS, retriever


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A run's model, a dense one, and gold alignments of which one line is bad."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "run").mkdir()
    save_loaded(folder / "run" / "model", retriever())
    save_loaded(folder / "dense", retriever(Dense(query_length=12, passage_length=40)))
    rows = [
        {"src": WORDS[i : i + 3], "tgt": WORDS[i : i + 2], "sure": [[0, 0]], "possible": [[2, 1]]}
        for i in range(4)
    ]
    (folder / "good.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    bad = rows[0] | {"sure": [[0, 2]]}
    (folder / "bad.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, bad]))
    return folder


@pytest.fixture(autouse=True)
def _at_home(home, monkeypatch):
    monkeypatch.chdir(home)
    one = make_mesh(devices=jax.devices()[:1])
    monkeypatch.setattr("clir_jax.mesh.make_mesh", lambda: one)


class _Page(html.parser.HTMLParser):
    """The heads of a table, and how many cells are framed."""

    def __init__(self, text):
        super().__init__()
        self.inside, self.heads, self.framed, self.cells, self.outside = "", [], 0, 0, []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.inside = tag
        if tag == "td" and "title" in attrs:
            self.cells += 1
            self.framed += "box-shadow" in attrs["style"]
        self.outside += [attrs[name] for name in ("src", "href") if name in attrs]

    def handle_data(self, data):
        if self.inside == "th" and data.strip():
            self.heads.append(data)


def test_a_pair_is_printed_and_drawn(home, capsys):
    source, target = f"{WORDS[0]}{WORDS[1]}, {WORDS[2]} مدرسة", f"{WORDS[2]} {WORDS[0]}"
    given = ["--model", "run", "--source", source, "--target", target, "--aligner", "greedy"]
    assert main(given) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[-1] == ["picture:", "alignment.html"]
    table = lines[3 : lines.index([], 3)]
    left = [WORDS[0] + WORDS[1], ",", WORDS[2], "مدرسة"]
    assert [row[0] for row in table][:4] == left
    # Greedy matches as many pieces as the shorter side has, so each of its words finds another.
    linked = [(row[0], row[1]) for row in table if "-" not in row]
    assert {pair[1] for pair in linked} <= {WORDS[2], WORDS[0]}
    assert linked
    page = _Page((home / "alignment.html").read_text(encoding="utf-8"))
    assert page.heads == [WORDS[2], WORDS[0], *left]
    assert (page.cells, page.framed, page.outside) == (8, len(linked), [])
    png = ["--output", "a.png", "--aligner", "attention:temperature=1"]
    assert main([*given, *png]) == 2
    sentence = "error: a.png: 'مدرسة' cannot be drawn in a picture; write a page, *.html\n"
    assert capsys.readouterr().err == sentence
    assert not (home / "a.png").exists()
    given[3] = WORDS[0]
    assert main([*given, *png]) == 0
    colours = np.round(255 * imread(home / "a.png")[..., :3]).reshape(-1, 3)
    assert (colours == [0xD5, 0x5E, 0x00]).all(axis=1).sum() > 100  # the frames


def test_gold_is_scored_by_each_aligner(home, capsys):
    given = ["--model", "run", "--gold", "good.jsonl", "--layer", "1"]
    aligners = ["greedy", "Attention:temperature=1,"]
    assert main([*given, "--aligner", *aligners]) == 0
    told = capsys.readouterr().out
    mesh = make_mesh(devices=jax.devices()[:1])
    model = on_mesh(load_retriever(home / "run/model"), mesh)
    pairs = GoldAlignment("good.jsonl", "").open(".").pairs
    methods = [Method(Greedy()), Method(Attention(temperature=1.0))]
    scores = score_alignments(WordAligner.of(model, 1, mesh), pairs, methods)
    lines = [line.split() for line in told.splitlines()]
    for name, values in zip(aligners, scores, strict=True):
        assert [name, *(f"{value:.3f}" for value in values.values())] in lines
    assert "4 sentence pairs" in told


def test_bad_lines_of_gold_are_refused_or_counted(capsys):
    given = ["--model", "run", "--gold", "bad.jsonl", "--layer", "1", "--aligner", "greedy"]
    assert main(given) == 2
    sentence = "bad.jsonl:5: the link [0, 2] asks for target word 2 of 2; "
    assert capsys.readouterr().err.startswith(f"error: {sentence}")
    assert main([*given, "--on-bad-record", "skip"]) == 0
    told = capsys.readouterr().out
    assert "4 sentence pairs; 1 x link beyond the sentence" in told
    assert sentence in told


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ([], "--source is missing; write a sentence, or --gold FILE"),
        (["--source", "a"], "--target is missing; write a sentence, or --gold FILE"),
        (
            ["--source", "a", "--target", "b", "--output", "a.svg"],
            "--output a.svg: write a name that ends in .html or .png",
        ),
        (
            ["--source", "a", "--target", "b", "--output", "nowhere/a.png"],
            "--output nowhere/a.png: there is no such directory; make it first",
        ),
        (
            ["--source", "a", "--target", "b", "--aligner", "greedy", "ipot"],
            "--aligner names 2; write one, or --gold FILE for a table",
        ),
        (
            ["--source", "a", "--target", "b", "--aligner", "awesome"],
            "--aligner awesome: there is no 'awesome'; write one of greedy, assignment, sinkhorn, "
            "ipot, attention",
        ),
        (
            ["--source", "a", "--target", "b", "--aligner", "ipot:tau=1"],
            "--aligner ipot:tau=1: ipot has no option 'tau'; it has beta, iterations, inner",
        ),
        (
            ["--source", "a", "--target", "b", "--aligner", "ipot:inner"],
            "--aligner ipot:inner: inner has no value; write inner=VALUE",
        ),
        (
            ["--source", "a", "--target", "b", "--aligner", "ipot:inner=many"],
            "--aligner ipot:inner=many: inner is many; it must be a whole number",
        ),
        (
            ["--source", "a", "--target", "b", "--aligner", "ipot:beta=0"],
            "IPOT: beta is 0.0; it must be above 0, 0.5 say",
        ),
        (
            ["--source", "a", "--target", "b", "--null", "0"],
            "--null is 0.0; write a cost above 0, 0.5 say",
        ),
        (
            ["--source", "a", "--target", "b", "--teacher-reads", "source"],
            "--teacher-reads needs --teacher; name the model, or leave it out",
        ),
        (
            ["--source", "a", "--target", "b", "--model", "dense"],
            "alignment: the model is a dense retriever with one vector a text, and tokens are "
            "aligned; name a layer from 1 to 1, or take a late-interaction retriever",
        ),
        (
            ["--source", "a", "--target", "b", "--on-bad-record", "skip"],
            "--on-bad-record is for the lines of --gold; leave it out",
        ),
        (
            ["--gold", "good.jsonl", "--output", "a.html"],
            "--output is a picture of one pair of sentences; leave out --gold or it",
        ),
    ],
)
def test_a_mistake_is_one_sentence(options, sentence, capsys):
    assert main(["--model", "run", *options]) == 2
    told = capsys.readouterr()
    assert (told.out, told.err) == ("", f"error: {sentence}\n")
