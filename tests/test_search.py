"""The command that searches, against a brute-force ranking."""

import json

import numpy as np
import pytest

from clir_jax.evaluation.runs import read_run
from clir_jax.models.formats import save_loaded
from clir_jax.search import main
from tests.test_score import _save_cross_encoder
from tests.training.workshop import retriever, scores_by_hand

PASSAGES = {
    "a": ("", "lake river moon lake"),
    "b": ("tuna", "moon over\nthe lake"),
    "long/id-3": ("", "river " * 40),
    "d": ("", "moke lana tuver"),
}
QUESTIONS = {"q1": "lake", "q2": "moon river", "q3": "tuver moke"}


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Four passages, and three questions with another text before them."""
    lines = [{"_id": i, "title": title, "text": text} for i, (title, text) in PASSAGES.items()]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = [f"{name}\tziwa\t{text}\n" for name, text in QUESTIONS.items()]
    (tmp_path / "queries.tsv").write_text("".join(rows))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "70")
    return tmp_path


def text(name):
    return " ".join(part for part in PASSAGES[name] if part)


def shown(told):
    """Of every question, the words of its lines; a rank, a score and an id come first."""
    blocks = told.removesuffix("\n\n").split("\n\n")
    return {
        head: [line.split() for line in lines]
        for head, *lines in (block.splitlines() for block in blocks)
    }


def test_a_retriever_finds_what_all_scores_say(files, capsys):
    model = retriever()
    save_loaded(files / "run/model", model)
    scores = scores_by_hand(model, list(QUESTIONS.values()), [text(name) for name in PASSAGES])
    order = np.argsort(-scores, axis=1)[:, :3]
    # Scores that round to other digits elsewhere, or passages that change places, prove nothing.
    assert -np.diff(-np.sort(-scores, axis=1)).max() > 1e-3
    expected = [[list(PASSAGES)[place] for place in own] for own in order]
    command = ["--model", "run", "--corpus", "corpus.jsonl", "--k", "3"]

    asked = [word for text in QUESTIONS.values() for word in ("--query", text)]
    assert main([*command, *asked]) == 0
    told = shown(capsys.readouterr().out)
    assert list(told) == [f"{n}  {text}" for n, text in enumerate(QUESTIONS.values(), start=1)]
    for row, lines in enumerate(told.values()):
        assert [line[0] for line in lines] == ["1", "2", "3"]
        assert [line[2] for line in lines] == expected[row]
        found = [float(line[1]) for line in lines]
        np.testing.assert_allclose(found, scores[row, order[row]], atol=1e-3)
        for _, _, name, *words in lines:
            begins = " ".join(words).removesuffix("…")
            assert " ".join(text(name).split()).startswith(begins)
            assert len(begins) > 10

    named = ["--queries", "queries.tsv", "--query-column", "2", "--output", "out.trec"]
    assert main([*command, *named]) == 0
    assert capsys.readouterr().out == "out.trec: 3 questions, up to 3 passages each\n"
    lines = (files / "out.trec").read_text().splitlines()
    assert [line.split()[-1] for line in lines] == ["run"] * 9
    for row, (name, found) in enumerate(read_run("out.trec").items()):
        assert name == list(QUESTIONS)[row]
        assert [passage for passage, _ in found] == expected[row]
        np.testing.assert_allclose([s for _, s in found], scores[row, order[row]], atol=1e-4)


def test_bm25_finds_what_shares_words(files, capsys):
    asked = ["--query", "lake", "--query", "nyangumi"]
    assert main(["--model", "bm25", "--corpus", "corpus.jsonl", *asked]) == 0
    told = capsys.readouterr().out
    # Two lakes in four words come before one in five; long lines end where the screen does.
    first, second = shown(told).values()
    assert [line[2] for line in first] == ["a", "b"]
    assert first[1][3:] == ["tuna", "moon", "over", "the", "lake"]
    assert second == [["nothing", "is", "found"]]
    assert main(["--model", "bm25", "--corpus", "corpus.jsonl", "--query", "river"]) == 0
    (line, *_) = capsys.readouterr().out.splitlines()[1:]
    assert line.endswith("…")
    assert len(line) == 70


def test_a_cross_encoder_orders_what_is_found(files, capsys):
    torch = pytest.importorskip("torch")
    import transformers

    _save_cross_encoder(files / "cross")
    command = ["--model", "bm25", "--corpus", "corpus.jsonl", "--query", "lake river"]
    assert main([*command, "--rerank", "cross", "--output", "out.trec"]) == 0
    model = transformers.AutoModelForSequenceClassification.from_pretrained("cross").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained("cross")
    options = {"max_length": 24, "truncation": "only_second", "return_tensors": "pt"}
    scores = {}
    for name in ("a", "b", "long/id-3"):  # the fourth has neither word
        with torch.no_grad():
            logits = model(**tokenizer("lake river", text(name), **options)).logits
        scores[name] = logits.item()
    (found,) = read_run("out.trec").values()
    assert [name for name, _ in found] == sorted(scores, key=lambda name: -scores[name])
    np.testing.assert_allclose([s for _, s in found], sorted(scores.values())[::-1], atol=1e-4)
    # BM25's first is all that is read, and all that is shown.
    capsys.readouterr()
    assert main([*command, "--rerank", "cross", "--depth", "1", "--k", "1"]) == 0
    ((first,),) = shown(capsys.readouterr().out).values()
    assert main([*command, "--k", "1"]) == 0
    ((alone,),) = shown(capsys.readouterr().out).values()
    assert first[2] == alone[2]
    assert float(first[1]) == pytest.approx(scores[first[2]], abs=1e-3)
    assert main(["--model", "cross", *command[2:]]) == 2
    assert "this is a cross-encoder, which gives texts no vectors" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ([], 'write either --query "a question", once or more often, or --queries FILE'),
        (
            ["--query", "a", "--queries", "queries.tsv"],
            'write either --query "a question", once or more often, or --queries FILE',
        ),
        (
            ["--query", "a", "--query-column", "2"],
            "--query-column is of the file --queries; leave it out",
        ),
        (["--query", " "], "--query is blank; write a question"),
        (["--query", "a", "--k", "0"], "--k is 0; write a number of passages, 1 or more"),
        (
            ["--query", "a", "--depth", "5"],
            "--depth is what --rerank reads; name a model there, or write --k",
        ),
        (
            ["--query", "a", "--rerank", "cross", "--depth", "5"],
            "--depth 5 is less than --k 10; write as many or more",
        ),
        (
            ["--query", "a", "--rerank", "late"],
            "--rerank late: this does not read a question and a passage together; name a "
            "cross-encoder or a generator, and a retriever as --model",
        ),
        (
            ["--query", "a", "--output", "corpus.jsonl"],
            "--output corpus.jsonl: there is such a file already; write another name",
        ),
        (
            ["--queries", "queries.tsv", "--query-column", "3"],
            "queries.tsv:1: the line has 3 fields, not at least 4; write id<TAB>text<TAB>column 2"
            "<TAB>column 3",
        ),
        (
            ["--query", "a", "--corpus", "corpora.jsonl"],
            "corpora.jsonl: there is no such file under data_root '.'; write a file that is there",
        ),
        (
            ["--query", "a", "--model", "./nowhere"],
            "model './nowhere': no such directory; write an existing directory or a hub name such "
            "as 'bert-base-multilingual-cased'",
        ),
    ],
)
def test_a_mistake_is_one_sentence(files, options, sentence, capsys):
    if "late" in options:
        save_loaded(files / "late", retriever())
    assert main(["--model", "bm25", "--corpus", "corpus.jsonl", *options]) == 2
    told = capsys.readouterr()
    assert (told.out, told.err) == ("", f"error: {sentence}\n")


def test_what_a_run_cannot_carry_is_told_before_the_search(files, capsys):
    (files / "blank.jsonl").write_text(json.dumps({"_id": "b c", "title": "", "text": "sea"}))
    options = ["--corpus", "blank.jsonl", "--query", "sea", "--output", "out.trec"]
    assert main(["--model", "./nowhere", *options]) == 2
    assert capsys.readouterr().err.startswith(
        "error: out.trec: the document id 'b c' is empty or holds white space, which a TREC run"
    )
    save_loaded(files / "my model", retriever())
    options[1] = "corpus.jsonl"
    assert main(["--model", "my model", *options]) == 0
    assert {line.split()[-1] for line in (files / "out.trec").read_text().splitlines()} == {
        "my-model"
    }


def test_help_needs_no_model(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    assert "--rerank" in capsys.readouterr().out
