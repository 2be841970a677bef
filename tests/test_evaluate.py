"""The command line of evaluation."""

import json

import numpy as np
import pytest
from flax import nnx

from clir_jax.data.tokenization import RequestTokenizer
from clir_jax.evaluate import main
from clir_jax.models.encoder import EncoderConfig
from clir_jax.models.formats import save_loaded, save_retriever
from clir_jax.models.requests import EncodePassage, EncodeQuery
from clir_jax.models.retriever import Dense, Retriever
from clir_jax.models.vocabulary import train_wordpiece
from tests.training.workshop import retriever, scores_by_hand, sentence

PASSAGES = {"a": "whales swim in the sea", "b": "goats climb rocks", "c": "bread and salt"}


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Three passages and two questions that share words with their answers; where they lie."""
    folder = tmp_path / "seas"
    folder.mkdir()
    lines = [json.dumps({"_id": i, "title": "", "text": text}) for i, text in PASSAGES.items()]
    (folder / "corpus.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "queries.tsv").write_text("1\tnyangumi\twhales\n2\tmbuzi\tsalt goats climb\n")
    (folder / "qrels.trec").write_text("1 0 a 1\n2 0 c 1\n")
    monkeypatch.chdir(tmp_path)
    return [
        *("--corpus", "seas/corpus.jsonl", "--queries", "seas/queries.tsv"),
        *("--qrels", "seas/qrels.trec", "--query-column", "2"),
    ]


def test_bm25_is_measured_and_its_ranking_written(files, tmp_path, capsys):
    options = ["--metrics", "MRR@10", "R@1", "--language", "en", "--run-file", "bm25.trec"]
    assert main(["--model", "bm25", *files, *options]) == 0
    told = capsys.readouterr().out
    # Question 2 ranks the goats (two words in common) before the salt (one): 1/2 and 0.
    rows = [line.split() for line in told.splitlines()]
    assert ["dataset", "language", "system", "stage", "RR@10", "R@1"] in rows
    assert ["seas", "en", "bm25", "0.750", "0.500"] in rows
    ranking = [line.split() for line in (tmp_path / "bm25.trec").read_text().splitlines()]
    assert [(q, d, rank) for q, _, d, rank, _, tag in ranking if tag == "bm25"][:3] == [
        ("1", "a", "1"),
        ("2", "b", "1"),
        ("2", "c", "2"),
    ]


def test_a_run_s_model_is_measured(files, tmp_path, capsys):
    tokenizer = train_wordpiece([*PASSAGES.values(), "whales salt goats climb"], 200)
    spec = Dense(query_length=8, passage_length=8)
    config = EncoderConfig(
        vocab_size=tokenizer.size,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=8,
        initializer_range=1.0,
    )
    model = Retriever(spec, config, rngs=nnx.Rngs(3))
    (tmp_path / "myrun").mkdir()
    directory = tmp_path / "myrun" / "model"
    save_retriever(directory, spec, config, nnx.state(model), tokenizer)
    options = ["--metrics", "RR@10", "--run-file", "out.trec"]
    assert main(["--model", "myrun", *files, *options]) == 0
    requests = RequestTokenizer(tokenizer, spec)
    queries = model(requests.tokenize(EncodeQuery, ["whales", "salt goats climb"])).vectors[:, 0]
    passages = model(requests.tokenize(EncodePassage, list(PASSAGES.values()))).vectors[:, 0]
    order = np.argsort(-(np.asarray(queries) @ np.asarray(passages).T), axis=1)
    ranking = [line.split() for line in (tmp_path / "out.trec").read_text().splitlines()]
    assert [d for _, _, d, *_ in ranking] == ["abc"[place] for row in order for place in row]
    assert {tag for *_, tag in ranking} == {"myrun"}
    reciprocal = (1 / (1 + list(order[0]).index(0)) + 1 / (1 + list(order[1]).index(2))) / 2
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["seas", "en", "myrun", f"{reciprocal:.3f}"] in rows


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            ["--metrics", "NDGC@10"],
            "metric 'NDGC@10' is unknown to ir-measures; did you mean 'nDCG@10'?",
        ),
        (
            ["--depth", "10"],
            "evaluate: depth is 10, and R@100 looks at 100 passages; set depth to at least 100",
        ),
        (
            ["--run-file", "nowhere/run.trec"],
            "--run-file nowhere/run.trec: there is no such directory; make it first",
        ),
        (
            ["--qrels", "seas/qrel.trec"],
            "seas/qrel.trec: there is no such file under data_root '.'; write a file that is there",
        ),
        (
            ["--model", "./nowhere"],
            "model './nowhere': no such directory; write an existing directory or a hub name such "
            "as 'bert-base-multilingual-cased'",
        ),
    ],
)
def test_a_mistake_is_one_sentence(files, options, sentence, capsys):
    assert main(["--model", "bm25", *files, *options]) == 2
    told = capsys.readouterr()
    assert (told.out, told.err) == ("", f"error: {sentence}\n")


def test_mistakes_are_found_before_the_search(files, monkeypatch, capsys):
    def search(*given):
        raise AssertionError("it searched")

    monkeypatch.setattr("clir_jax.evaluation.retrieval.measure_bm25", search)
    assert main(["--model", "bm25", *files, "--metrics", "nDCG@0"]) == 2
    assert "looks at no document" in capsys.readouterr().err


def test_help(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    assert "--query-column" in capsys.readouterr().out


def test_interrupted(files, monkeypatch, capsys):
    def search(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr("clir_jax.evaluation.retrieval.measure_bm25", search)
    assert main(["--model", "bm25", *files]) == 130
    assert capsys.readouterr().err == "stopped\n"


def test_an_id_of_ir_datasets_stands_for_three_files(files, tmp_path, capsys):
    import ir_datasets
    from ir_datasets import formats

    (tmp_path / "docs.tsv").write_text("".join(f"{i}\t{text}\n" for i, text in PASSAGES.items()))
    (tmp_path / "queries.tsv").write_text("1\twhales\n2\tsalt goats climb\n")
    local = ir_datasets.util.LocalDownload
    parts = (
        formats.TsvDocs(local(tmp_path / "docs.tsv")),
        formats.TsvQueries(local(tmp_path / "queries.tsv")),
        formats.TrecQrels(local(tmp_path / "seas/qrels.trec"), {}),
    )
    ir_datasets.registry.register("seas-of-evaluate", ir_datasets.Dataset(*parts))
    options = ["--model", "bm25", "--metrics", "RR@10", "--ir-dataset", "seas-of-evaluate"]
    assert main(options) == 0
    told = capsys.readouterr().out
    # As with the files: 1 for the first question and 1/2 for the second.
    assert "seas-of-evaluate" in told
    assert "0.750" in told
    assert main([*options, "--corpus", "seas/corpus.jsonl"]) == 2
    assert "leave out --corpus, --queries, --query-column and --qrels" in capsys.readouterr().err
    assert main(["--model", "bm25", *files[:4]]) == 2
    assert "--qrels is missing; write three files, or --ir-dataset ID" in capsys.readouterr().err


def test_bitext_is_measured_both_ways(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rng, model = np.random.default_rng(0), retriever()
    save_loaded(tmp_path / "run" / "model", model)
    pairs = [(sentence(rng, 2, 6), sentence(rng, 2, 6)) for _ in range(6)]
    (tmp_path / "p.tsv").write_text("".join(f"1\t{a}\t{b}\n" for a, b in pairs))
    (tmp_path / "p.en").write_text("".join(f"{a}\n" for a, _ in pairs))
    (tmp_path / "p.sw").write_text("".join(f"{b}\n" for _, b in pairs))
    english, other = zip(*pairs, strict=True)
    ways = [scores_by_hand(model, *sides) for sides in ((other, english), (english, other))]
    right = [f"{np.mean(scores.argmax(axis=1) == np.arange(6)):.3f}" for scores in ways]
    for files in (["p.tsv"], ["p.en", "p.sw"]):
        assert main(["--model", "run", "--language", "sw", "--bitext", *files]) == 0
        rows = [line.split() for line in capsys.readouterr().out.splitlines()]
        assert ["accuracy", "accuracy", "margin"] in rows
        assert ["dataset", "language", "system", "stage", "xx->en", "en->xx", "F1"] in rows
        assert [files[-1], "sw", "run", *right] in [row[:5] for row in rows]
    for options, told in (
        ([], "--language is missing; write the one that --bitext has beside English"),
        (
            ["--language", "sw", "--metrics", "RR@10"],
            "--bitext is measured without --metrics; leave it out",
        ),
        (
            ["--language", "sw", "--model", "bm25"],
            "--bitext needs a model that encodes sentences, and bm25 does not; name one",
        ),
        (
            ["--language", "sw", "--bitext", "a", "b", "c"],
            "--bitext names 3 files; write one of pairs or two of lines, and put a pattern that "
            "names several in quotes",
        ),
    ):
        assert main(["--model", "run", "--bitext", "p.tsv", *options]) == 2
        assert capsys.readouterr().err == f"error: {told}\n"
