"""The command that writes hard negatives."""

import json
from pathlib import Path

import numpy as np
import pytest

from clir_jax import mine
from clir_jax.data.rankings import RankingJSONL
from clir_jax.mine import main
from clir_jax.models.cross_encoder_files import save_cross_encoder
from clir_jax.models.formats import save_loaded
from clir_jax.training import mining
from clir_jax.training.logging import WorkLog
from tests.training.test_judges import cross_encoder, pair_scores
from tests.training.workshop import retriever, scores_by_hand

PASSAGES = {
    "a": ("seas", "whales swim in the sea"),
    "b": ("seas", "whales and whales sing"),
    "c": ("hills", "goats climb rocks, whales do not"),
    "d": ("hills", "bread and salt"),
    "e": ("hills", "Whales swim, in the SEA."),
}


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Five passages and two questions in two languages."""
    lines = [{"_id": i, "title": title, "text": text} for i, (title, text) in PASSAGES.items()]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "queries.tsv").write_text("1\tnyangumi\tsea whales\n2\tmbuzi\tgoats\n")
    (tmp_path / "qrels").write_text("1 0 a 1\n2 0 c 1\n")
    monkeypatch.chdir(tmp_path)
    return [
        *("--corpus", "corpus.jsonl", "--queries", "queries.tsv", "--qrels", "qrels"),
        *("--language", "sw", "--translation", "en=2", "--output", "mined.jsonl"),
    ]


def text(name):
    return " ".join(PASSAGES[name])


def written(folder):
    return [json.loads(line) for line in (folder / "mined.jsonl").read_text().splitlines()]


def test_bm25_asks_in_english(command, tmp_path, capsys):
    options = ["--model", "bm25", "--query-language", "en", "--sampling", "top"]
    assert main([*options, *command, "--negatives", "2", "--duplicates", "0.8"]) == 0
    # The title "seas" makes "whales and whales sing" no answer to "sea"; its two whales win over
    # the goats' one. The last passage is the first one again, but for its title.
    assert written(tmp_path) == [
        {
            "query": "nyangumi",
            "queries": {"en": "sea whales"},
            "positives": [text("a")],
            "negatives": [text("e"), text("b")],
        },
        {"query": "mbuzi", "queries": {"en": "goats"}, "positives": [text("c")], "negatives": []},
    ]
    told = capsys.readouterr().out
    assert "2  known to be relevant" in told
    assert 'read it with RankingJSONL("mined.jsonl", "sw")' in told
    assert len(RankingJSONL("mined.jsonl", "sw").open(str(tmp_path))) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        ["corpus.jsonl", "queries.tsv", "qrels", "mined.jsonl"]
    )


def test_documents_near_duplicates_and_empty_records_go(command, tmp_path, capsys):
    options = ["--model", "bm25", "--query-language", "en", "--sampling", "top", "--drop-empty"]
    # Of the words of a and e, five are in both and two in one: 5 / 7.
    more = ["--other-documents", "--duplicates", "0.7", "--negatives", "1"]
    assert main([*options, *command, *more]) == 0
    assert [(r["query"], r["negatives"]) for r in written(tmp_path)] == [("nyangumi", [text("c")])]
    told = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    table = {line[-1]: line[-2].strip() for line in told if len(line) > 2}
    assert table["of a positive's document"] == "1"
    assert table["near-duplicates of a positive"] == "1"
    assert table["negatives"] == "1"


def test_a_model_and_a_judge(command, tmp_path):
    model = retriever()
    save_loaded(tmp_path / "run" / "model", model)
    options = ["--sampling", "top", "--negatives", "4", "--query-language", "en"]
    judged = ["--judge", "bm25", "--judge-max-relative", "0.9"]
    assert main(["--model", "run", *options, *judged, *command]) == 0
    texts = [text(name) for name in PASSAGES]
    scores = scores_by_hand(model, ["sea whales", "goats"], texts)
    # BM25 finds the words of the first question in a and e alike, and only one in the others; those
    # of the second in c alone.
    for row, (line, left_out) in enumerate(zip(written(tmp_path), ({0, 4}, {2}), strict=True)):
        order = [texts[n] for n in np.argsort(-scores[row], kind="stable") if n not in left_out]
        assert line["negatives"] == order[:4]


def test_a_cross_encoder_is_the_judge(command, tmp_path):
    judge = cross_encoder([word for name in PASSAGES for word in text(name).split()])
    save_cross_encoder(tmp_path / "reader/model", judge)
    positive, *scores = pair_scores(judge, "sea whales", "en", [text(name) for name in "abce"])
    lowest, second, _ = sorted(scores)
    # Between the two that it scores lowest, as a share of the positive in a softmax.
    share = np.exp((lowest + second) / 2 - positive)
    options = ["--model", "bm25", "--query-language", "en", "--negatives", "3"]
    judged = ["--judge", "reader", "--judge-max-relative", str(share)]
    assert main([*options, *judged, *command]) == 0
    kept = text("bce"[scores.index(lowest)])
    assert [line["negatives"] for line in written(tmp_path)] == [[kept], []]


def test_rankings_in_the_place_of_judgements(command, tmp_path, capsys):
    rows = [
        {"query": "nyangumi", "queries": {"en": "sea whales"}, "positives": [text("a")]},
        {"query": "mbuzi", "queries": {"en": "goats"}, "positives": [text("c")]},
    ]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["--model", "bm25", "--query-language", "en", "--sampling", "top"]
    files = ["--corpus", "corpus.jsonl", "--rankings", "asked.jsonl", "--output", "mined.jsonl"]
    assert main([*options, *files, "--language", "sw", "--negatives", "2"]) == 0
    # The positive is known by its text; the same passages as with judgements.
    expected = [rows[0] | {"negatives": [text("e"), text("b")]}, rows[1] | {"negatives": []}]
    assert written(tmp_path) == expected
    # Documents are told by the corpus's titles; the first positive's has the second passage too.
    (tmp_path / "mined.jsonl").unlink()
    assert main([*options, *files, "--language", "sw", "--other-documents"]) == 0
    expected = [rows[0] | {"negatives": [text("e"), text("c")]}, rows[1] | {"negatives": []}]
    assert written(tmp_path) == expected
    other = ["--output", "other.jsonl"]
    assert main([*options, *command, "--rankings", "asked.jsonl", *other]) == 2
    assert "--rankings brings what --queries says too" in capsys.readouterr().err
    assert main([*options, *files[:2], "--queries", "queries.tsv", *other]) == 2
    assert "--qrels is missing; write --queries and --qrels, or --rankings" in (
        capsys.readouterr().err
    )


def test_stopped_and_started_again(command, tmp_path, monkeypatch, capsys):
    options = ["--model", "bm25", "--negatives", "1", "--query-language", "en", *command]
    assert main([*options[:-1], "whole.jsonl"]) == 0
    monkeypatch.setattr(mining, "_BLOCK", 1)

    calls = []

    def stop(*told):
        calls.append(told)
        if len(calls) == 3:  # a block begins, its question is asked, and the next block begins
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(WorkLog, "progress", stop)
        assert main(options) == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert not (tmp_path / "mined.jsonl").exists()
    begun = tmp_path / "mined.jsonl.unfinished/negatives/unfinished/records.jsonl"
    assert len(begun.read_text().splitlines()) == 1
    assert main([*options, "--seed", "1"]) == 2
    assert capsys.readouterr().err == (
        "error: mined.jsonl.unfinished/negatives: an output was begun here (lines written: 1), and "
        "its seed changed; write what was given before, to go on with it, or remove this "
        "directory, to begin anew\n"
    )
    assert len(begun.read_text().splitlines()) == 1
    assert main(options) == 0
    assert written(tmp_path) == [
        json.loads(line) for line in (tmp_path / "whole.jsonl").read_text().splitlines()
    ]
    assert "built again" not in capsys.readouterr().out
    assert main(options) == 2
    told = "error: --output mined.jsonl: there is such a file already; write another name\n"
    assert capsys.readouterr().err == told


def test_two_at_once(command, tmp_path, monkeypatch, capsys):
    options = ["--model", "bm25", "--query-language", "en", *command]
    (tmp_path / "mined.jsonl.lock").touch()  # what a kill leaves stops nobody
    progress, ended = WorkLog.progress, []

    def with_another(log, done, total):
        if not ended:
            ended.append(main(options))
        progress(log, done, total)

    monkeypatch.setattr(WorkLog, "progress", with_another)
    assert main(options) == 0
    assert ended == [2]
    assert capsys.readouterr().err == (
        "error: --output mined.jsonl: another process is writing it; wait until it has ended, or "
        "write another name\n"
    )
    assert len(written(tmp_path)) == 2
    assert not (tmp_path / "mined.jsonl.lock").exists()


def test_one_that_ends_while_another_starts(command, tmp_path, monkeypatch, capsys):
    options = ["--model", "bm25", "--query-language", "en", *command]
    whole = tmp_path / "mined.jsonl"

    def late(path):
        whole.write_text("of the other\n")
        return Path(path)

    monkeypatch.setattr(mine, "new_file", late)
    assert main(options) == 2
    assert capsys.readouterr().err == (
        "error: --output mined.jsonl: another process has just written it; write another name\n"
    )
    assert whole.read_text() == "of the other\n"
    assert not (tmp_path / "mined.jsonl.lock").exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            ["--output", "nowhere/mined.jsonl"],
            "--output nowhere/mined.jsonl: there is no such directory; make it first",
        ),
        (["--output", "."], "--output .: there is such a directory already; write another name"),
        (
            ["--translation", "fr"],
            "--translation fr: write LANGUAGE=FILE or LANGUAGE=COLUMN, as in en=2",
        ),
        (
            ["--translation", "en=3"],
            "--translation en=3: en was given before; write one of them",
        ),
        (["--seed", "-1"], "--seed is -1; it must be from 0 to 2147483647"),
        (["--seed", "2147483648"], "--seed is 2147483648; it must be from 0 to 2147483647"),
        (
            ["--query-language", "fr"],
            "work negatives: query_language is 'fr', and its source asks in sw, en; write one of "
            "these",
        ),
        (
            ["--hard", "1", "--semi-hard", "1"],
            "--semi-hard is 1 and --semi-hard-margin None; give both, or neither",
        ),
        (
            ["--qrels", "qrel"],
            "qrel: there is no such file under data_root '.'; write a file that is there",
        ),
        (
            ["--model", "./nowhere"],
            "model './nowhere': no such directory; write an existing directory or a hub name such "
            "as 'bert-base-multilingual-cased'",
        ),
        (
            ["--query-language", "en", "--max-relative", "0.001"],
            "work negatives: no question is left a negative of the 5 passages that bm25 finds (2 "
            "known to be relevant, 3 above max_relative of the positive); search another corpus, "
            "deeper, with another model or with fewer filters",
        ),
    ],
)
def test_a_mistake_is_one_sentence(command, options, sentence, capsys):
    assert main(["--model", "bm25", *command, *options]) == 2
    assert capsys.readouterr().err == f"error: {sentence}\n"


def test_a_seed_out_of_range_begins_nothing(command, tmp_path):
    assert main(["--model", "bm25", *command, "--seed", "-1"]) == 2
    assert not list(tmp_path.glob("mined.jsonl*"))


def test_help_needs_no_model(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    assert "--semi-hard-margin" in capsys.readouterr().out
