"""The command that writes a teacher's scores, against transformers."""

import dataclasses
import json

import numpy as np
import pytest
from flax import nnx

from clir_jax import evaluate, mine, search
from clir_jax.data.rankings import RankingJSONL
from clir_jax.evaluation.runs import read_run
from clir_jax.models.cross_encoder import CrossEncoder, CrossEncoderModel
from clir_jax.models.cross_encoder_files import LoadedCrossEncoder, save_cross_encoder
from clir_jax.models.encoder import EncoderConfig
from clir_jax.models.formats import load_retriever
from clir_jax.models.generator_files import save_generator
from clir_jax.models.t5_files import save_t5
from clir_jax.models.vocabulary import train_wordpiece
from clir_jax.score import main
from clir_jax.training import scoring
from clir_jax.training.logging import WorkLog
from tests.models import test_generator_files as generators
from tests.training.workshop import WORDS, write_data

OPTIONS = ["--input", "rankings.jsonl", "--language", "sw", "--output", "scored.jsonl"]
UNNAMED = (
    "error: --language is missing, and a generator's prompt names the language of the queries; "
    "write it, as in --language sw\n"
)


def _save_cross_encoder(folder):
    tokenizer = train_wordpiece(WORDS, 60)
    spec = CrossEncoder(length=24, query_length=8)  # some passages are cut
    config = EncoderConfig(
        vocab_size=tokenizer.size,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=24,
        initializer_range=0.5,
    )
    graphdef, params = nnx.split(CrossEncoderModel(spec, config, rngs=nnx.Rngs(0)))
    save_cross_encoder(folder, LoadedCrossEncoder(spec, config, graphdef, params, tokenizer))


def _save_t5(folder):
    loaded = generators._generator()
    save_t5(folder, loaded.t5_config, loaded.params["t5"])
    loaded.tokenizer.save(folder)


def _written(folder):
    return [json.loads(line) for line in (folder / "scored.jsonl").read_text().splitlines()]


def test_of_a_cross_encoder_stopped_and_started_again(tmp_path, monkeypatch, capsys):
    torch = pytest.importorskip("torch")
    import transformers

    rows, _ = write_data(tmp_path)
    monkeypatch.chdir(tmp_path)
    _save_cross_encoder(tmp_path / "run/model")
    monkeypatch.setattr(scoring, "_BLOCK", 4)

    def stop(log, done, total):
        if done == 8:
            raise KeyboardInterrupt

    command = ["--model", "run", "--query-language", "en", *OPTIONS]
    with monkeypatch.context() as patched:
        patched.setattr(WorkLog, "progress", stop)
        assert main(command) == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert (
        len((tmp_path / "scored.jsonl.unfinished/scores/records.jsonl").read_text().splitlines())
        == 8
    )
    assert main(command) == 0
    assert 'scored.jsonl; read it with RankingJSONL("scored.jsonl", "sw")' in (
        capsys.readouterr().out
    )
    model = transformers.AutoModelForSequenceClassification.from_pretrained("run/model").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained("run/model")
    for row, line in zip(rows, _written(tmp_path), strict=True):
        assert {key: line[key] for key in row} == row
        listed = row["positives"] + row["negatives"]
        inputs = tokenizer(
            [row["queries"]["en"]] * len(listed), listed, max_length=24, padding=True,
            truncation="only_second", return_tensors="pt",
        )  # fmt: skip
        with torch.no_grad():
            logits = model(**inputs).logits[:, 0].numpy()
        np.testing.assert_allclose(line["scores"], logits, atol=1e-4)
    assert len(RankingJSONL("scored.jsonl", "sw").open(str(tmp_path))) == len(rows)
    assert main(command) == 2
    assert "--output scored.jsonl: there is such a file already" in capsys.readouterr().err


def test_of_a_generator(tmp_path, monkeypatch, capsys):
    torch = pytest.importorskip("torch")
    import transformers

    spec = dataclasses.replace(generators.SPEC, source_length=40)
    loaded = dataclasses.replace(generators._generator(), spec=spec)
    save_generator(tmp_path / "model", loaded)
    monkeypatch.chdir(tmp_path)
    long = "b b a" + " b b a" * 20
    row = {"query": "a b b", "positives": ["b a a"], "negatives": ["a a b b", "b", long]}
    (tmp_path / "rankings.jsonl").write_text(json.dumps(row) + "\n")
    unnamed = [*OPTIONS[:2], *OPTIONS[4:]]
    assert main(["--model", "model", *unnamed]) == 2
    assert capsys.readouterr().err == UNNAMED
    assert main(["--model", "model", *OPTIONS]) == 0
    assert "1 of 4 passages read are cut to fit the prompt" in capsys.readouterr().out
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained("model").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained("model")
    labels = tokenizer("a b b", return_tensors="pt").input_ids
    (line,) = _written(tmp_path)
    for passage, score in zip(["b a a", "a a b b", "b", long], line["scores"], strict=True):
        prompt = spec.prompt.format(language="Swahili", passage=passage)
        read = tokenizer(prompt, truncation=True, max_length=40, return_tensors="pt")
        with torch.no_grad():
            loss = model(**read, labels=labels).loss
        assert score == pytest.approx(-loss.item(), abs=1e-4)
    assert np.ptp(line["scores"]) > 0.01


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--query-language", "fr"], "query_language is 'fr', and its source asks in sw, en"),
        (["--model", "./no/model"], "no such directory"),
        (["--output", "no/where"], "--output no/where: there is no such directory"),
        (["--model", "t5"], "t5: this is a T5, which nobody has trained to write questions or to"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, monkeypatch, capsys, options, sentence):
    write_data(tmp_path)
    monkeypatch.chdir(tmp_path)
    _save_cross_encoder(tmp_path / "model")
    _save_t5(tmp_path / "t5")
    assert main(["--model", "model", *OPTIONS, *options]) == 2
    told = capsys.readouterr().err
    assert sentence in told
    assert told.count("\n") == 1


def test_evaluate_reranks_what_is_named(tmp_path, monkeypatch, capsys):
    torch = pytest.importorskip("torch")
    import transformers

    monkeypatch.chdir(tmp_path)
    _save_cross_encoder(tmp_path / "model")
    texts = {"a": "lake river", "b": "moke", "c": "tuna lake"}
    lines = [json.dumps({"_id": name, "text": text}) for name, text in texts.items()]
    (tmp_path / "corpus.jsonl").write_text("\n".join(lines))
    (tmp_path / "queries.tsv").write_text("1\tlake\n")
    (tmp_path / "qrels").write_text("1 0 a 1\n")
    (tmp_path / "first.trec").write_text("1 Q0 b 1 2 x\n1 Q0 a 2 1 x\n")
    files = ["--corpus", "corpus.jsonl", "--queries", "queries.tsv", "--qrels", "qrels"]
    out = ["--run-file", "out.trec", "--metrics", "RR@10"]
    command = ["--model", "model", *files, *out]
    assert evaluate.main([*command, "--candidates", "first.trec"]) == 0
    model = transformers.AutoModelForSequenceClassification.from_pretrained("model").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained("model")

    def logit(name):
        with torch.no_grad():
            return model(**tokenizer("lake", texts[name], return_tensors="pt")).logits.item()

    (told,) = read_run("out.trec").values()
    assert [name for name, _ in told] == sorted("ab", key=lambda name: -logit(name))
    np.testing.assert_allclose([s for _, s in told], sorted(map(logit, "ab"))[::-1], atol=1e-4)
    assert evaluate.main(command) == 0
    assert {name for name, _ in read_run("out.trec")["1"]} == {"a", "c"}  # by BM25
    assert evaluate.main(["--model", "bm25", *files, "--candidates", "first.trec"]) == 2
    assert "are reranked, and bm25 searches; leave them out" in capsys.readouterr().err


def test_evaluate_tells_a_generator_the_language(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    _save_t5(tmp_path / "t5")
    loaded = generators._generator()  # of Swahili
    spec = dataclasses.replace(loaded.spec, source_length=7, prompt="{language} {passage}")
    loaded = dataclasses.replace(loaded, spec=spec)
    save_generator(tmp_path / "model", loaded)
    texts = {"a": "a b", "b": "b b a b a b a"}
    lines = [json.dumps({"_id": name, "text": text}) for name, text in texts.items()]
    (tmp_path / "corpus.jsonl").write_text("\n".join(lines))
    (tmp_path / "queries.tsv").write_text("1\ta\n")
    (tmp_path / "qrels").write_text("1 0 a 1\n")
    command = ["--corpus", "corpus.jsonl", "--queries", "queries.tsv", "--qrels", "qrels"]
    command += ["--metrics", "RR@10", "--run-file", "out.trec"]
    assert evaluate.main(["--model", "model", *command]) == 2
    assert capsys.readouterr().err == UNNAMED
    assert evaluate.main(["--model", "model", *command, "--language", "so"]) == 0
    told = capsys.readouterr().err.splitlines()
    assert told == [
        "the generator was trained for sw, not for so (Somali); do not rely on what it writes or "
        "scores there",
        "1 of 2 passages read are cut to fit the prompt",
    ]
    for module, options in (
        (evaluate, ["--model", "t5", *command]),
        (search, ["--model", "t5", "--corpus", "corpus.jsonl", "--query", "a"]),
        (search, ["--model", "bm25", "--corpus", "corpus.jsonl", "--query", "a", "--rerank", "t5"]),
    ):
        assert module.main(options) == 2
        assert "error: t5: this is a T5, which nobody has trained" in capsys.readouterr().err
    command = ["--model", "bm25", "--corpus", "corpus.jsonl", "--query", "a", "--rerank", "model"]
    assert search.main(command) == 2
    assert capsys.readouterr().err == UNNAMED
    judged = ["--rankings", "none", "--output", "mined", "--judge", "model"]
    assert mine.main([*command[:4], *judged]) == 2
    assert capsys.readouterr().err == UNNAMED
    assert search.main([*command, "--language", "so"]) == 0
    found = [" ".join(line.split()) for line in capsys.readouterr().err.splitlines()]
    assert found == [f"rerank {line}" for line in told]


def test_what_searches_takes_no_cross_encoder(tmp_path):
    _save_cross_encoder(tmp_path / "model")
    with pytest.raises(ValueError, match="this is a cross-encoder, which gives texts no vectors"):
        load_retriever(tmp_path / "model")


def test_help_shows_the_whole_way(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    told = capsys.readouterr().out
    steps = [told.index(f"clir_jax.{step}") for step in ("mine", "score --model runs", "train")]
    assert steps == sorted(steps)
    # The lines have English too, which is not to be drawn: their scores are of the Swahili.
    assert 'RelevanceDistillation(student_query="query.sw", teacher_kind="stored")' in told
