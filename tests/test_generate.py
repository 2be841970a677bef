"""The command that writes questions, against transformers."""

import dataclasses
import json

import pytest

from clir_jax.data.rankings import RankingJSONL
from clir_jax.generate import main
from clir_jax.models.generator_files import save_generator
from clir_jax.models.t5_files import save_t5
from clir_jax.training import generating
from clir_jax.training.logging import WorkLog
from tests.models import test_generator_files as generators

PASSAGES = {"p": "a b b", "q": "b a a b", "r": "a a b b"}
OPTIONS = ["--corpus", "corpus.jsonl", "--output", "asked.jsonl", "--languages", "sw"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Three passages, and a generator that writes letters."""
    lines = [{"_id": name, "title": "", "text": text} for name, text in PASSAGES.items()]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_beam_search_is_that_of_transformers(folder, capsys):
    torch = pytest.importorskip("torch")
    import transformers

    # As many embeddings as pieces, so that whatever is written can be read.
    config = dataclasses.replace(generators.CONFIG, vocab_size=5)
    loaded = generators._generator(config)
    spec = dataclasses.replace(loaded.spec, source_length=24, languages=("sw", "so"))
    save_generator(folder / "run/model", dataclasses.replace(loaded, spec=spec))
    command = ["--model", "run", *OPTIONS, "--beams", "2", "--round-trip", "bm25"]
    assert main([*command, "--round-trip-languages"]) == 0
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained("run/model").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained("run/model")
    expected = {}
    for text in PASSAGES.values():
        prompt = tokenizer(
            spec.prompt.format(language="Swahili", passage=text), return_tensors="pt"
        )
        with torch.no_grad():
            ids = model.generate(**prompt, num_beams=2, max_new_tokens=6, do_sample=False)
        question = loaded.tokenizer.backend.decode(ids[0].tolist(), skip_special_tokens=True)
        # Of equal questions the first; none without an end.
        if question.strip("▁ ") and tokenizer.eos_token_id in ids[0]:
            expected.setdefault(" ".join(question.split()), text)
    written = [json.loads(line) for line in (folder / "asked.jsonl").read_text().splitlines()]
    assert {row["query"]: row["positives"] for row in written} == {
        question: [text] for question, text in expected.items()
    }
    assert len(RankingJSONL("asked.jsonl", "sw").open(str(folder))) == len(expected) > 0
    told = capsys.readouterr().out
    assert "sw  3 questions written" in told
    assert "find their passage in the first 10 of bm25" in told
    assert 'read it with RankingJSONL("asked.jsonl", "sw")' in told


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--output", "no/where"], "--output no/where: there is no such directory; make it first"),
        (
            ["--beams", "2", "--top-p", "0.9"],
            "--beams 2 searches, and --top-p 0.9 draws; write one of them",
        ),
        (["--beams", "0"], "beam: beams is 0; write a whole number of at least 1"),
        (["--each", "0"], "--each is 0; it must be at least 1"),
        (
            ["--each", "2", "--beams", "2"],
            "--beams 2 finds one question, and --each 2 wants 2; leave --beams out to draw them, "
            "or write --each 1",
        ),
        (
            ["--languages", "sw", "sw"],
            "--languages is ('sw', 'sw'); it must be different languages",
        ),
        (
            ["--round-trip-depth", "5"],
            "--round-trip-depth is 5, and nothing is searched; name a retriever as --round-trip, "
            "or leave it out",
        ),
        (
            ["--round-trip", "bm25", "--round-trip-languages", "so"],
            "--round-trip-languages has 'so', and questions are written in sw; write some of these",
        ),
        (
            ["--corpus", "corpora"],
            "corpora: there is no such file under data_root '.'; write a file that is there",
        ),
        (
            ["--model", "./nowhere"],
            "model './nowhere': no such directory; write an existing directory or a hub name such "
            "as 'bert-base-multilingual-cased'",
        ),
        (
            ["--model", "plain"],
            "plain: this is a T5, which nobody has trained to write questions or to score; train a "
            "generator from it, as init of a stage whose model is a Generator, and give that run",
        ),
        (
            ["--model", "nothing"],
            "--model nothing: this is no generator that clir_jax has saved; give a run that "
            "trained one, or its model/",
        ),
    ],
)
def test_a_mistake_is_one_sentence(folder, options, sentence, capsys):
    loaded = generators._generator()
    save_generator(folder / "model", loaded)
    save_t5(folder / "plain", loaded.t5_config, loaded.params["t5"])
    loaded.tokenizer.save(folder / "plain")
    (folder / "nothing").mkdir()
    assert main(["--model", "model", *OPTIONS, *options]) == 2
    assert capsys.readouterr().err == f"error: {sentence}\n"


def test_options_may_be_corrected_where_nothing_is_lost(folder, monkeypatch, capsys):
    config = dataclasses.replace(generators.CONFIG, vocab_size=5)
    loaded = generators._generator(config)
    spec = dataclasses.replace(loaded.spec, source_length=24, languages=("en",))
    save_generator(folder / "run/model", dataclasses.replace(loaded, spec=spec))
    monkeypatch.setattr(generating, "_BLOCK", 1)
    command = ["--model", "run", *OPTIONS, "--each", "4", "--round-trip", "bm25"]
    told = []

    def stop(log, done, total):
        told.append(done)
        if done == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(WorkLog, "progress", stop)
        assert main(command) == 130
    output = capsys.readouterr()
    assert "the same command goes on" in output.err
    # Once, as a line of the log; a warning would be an error.
    assert output.out.splitlines() == [
        "generate  artifact questions: the generator was trained for en, not for sw (Swahili); do "
        "not rely on what it writes or scores there"
    ]
    written = folder / "asked.jsonl.unfinished/questions+written/records.jsonl"
    before = written.read_bytes()
    assert before.count(b"\n") == 2
    # Other questions: those that are there are not thrown away.
    assert main([*command, "--top-k", "3"]) == 2
    assert capsys.readouterr().err == (
        "error: asked.jsonl.unfinished/questions+written: an output was begun here (lines written: "
        "2), and its decoding.top_k changed from 10 to 3; write what was given before, to go on "
        "with it, or remove this directory, to begin anew\n"
    )
    assert written.read_bytes() == before
    # Another choice of the same: it goes on behind them.
    del told[:]
    with monkeypatch.context() as patched:
        patched.setattr(WorkLog, "progress", lambda log, done, total: told.append(done))
        assert main([*command, "--round-trip-languages"]) == 0
    assert told[0] == 2
    assert (folder / "asked.jsonl").stat().st_size > 0
    assert not (folder / "asked.jsonl.unfinished").exists()


def test_help_shows_the_whole_way(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    told = capsys.readouterr().out
    steps = ("generate --model", "mine --model", "score --model", "train --config")
    places = [told.index(f"clir_jax.{step}") for step in steps]
    assert places == sorted(places)
