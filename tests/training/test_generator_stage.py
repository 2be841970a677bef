"""A generator in a run: trained, saved, writing questions, scoring them, teaching in the step."""

import dataclasses
import io
import json

import numpy as np
import pytest
from rich.console import Console

from clir_jax import config_files
from clir_jax.config import (
    Artifact,
    Evaluate,
    FromStage,
    Generate,
    Mine,
    Optimizer,
    ReplaceVocabulary,
    Run,
    Score,
    Scratch,
    Stage,
    Task,
    TrainVocabulary,
)
from clir_jax.config_files import ConfigError
from clir_jax.data.bitext import BitextTSV
from clir_jax.data.collections import BitextPairs
from clir_jax.data.pairs import QuestionTokenizer
from clir_jax.data.pipeline import task_dataset
from clir_jax.data.sources import Mixture, TextLines
from clir_jax.models.encoder import EncoderConfig
from clir_jax.models.generator import Generator, Sample
from clir_jax.models.generator_files import load_generator, save_generator
from clir_jax.models.generator_tokenizer import generator_tokenizer
from clir_jax.models.retriever import Dense
from clir_jax.models.t5_config import T5Config
from clir_jax.models.vocabulary import train_wordpiece
from clir_jax.objectives.contrastive import InfoNCE
from clir_jax.objectives.distillation import RelevanceDistillation
from clir_jax.objectives.generation import (
    GeneratorContrastive,
    QueryAlignment,
    SequenceLikelihood,
)
from clir_jax.training import build
from clir_jax.training.check import check
from clir_jax.training.kinds import kind_at
from clir_jax.training.loop import train
from tests.models import test_generator_files as generators
from tests.training.workshop import RANKINGS, WORDS, write_data

SPEC = Generator(source_length=80, target_length=10, prompt="{language}: {passage}")
T5 = T5Config(vocab_size=60, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
ENCODER = EncoderConfig(
    vocab_size=60,
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=16,
    max_position_embeddings=32,
)
CORPUS = TextLines("corpus.txt", "en")
PAIRS = BitextTSV("pairs.tsv", "sw")
COMMON = {"steps": 2, "log_every": 1, "optimizer": Optimizer(learning_rate=1e-2)}
TRANSLATES = Task(
    SequenceLikelihood("bitext.other", "bitext.english"), {"bitext": PAIRS}, batch_size=8,
    name="translates", buckets=2,
)  # fmt: skip
ASKS = Task(SequenceLikelihood(), {"ranking": RANKINGS}, batch_size=8, name="asks")
TELLS = Task(GeneratorContrastive(), {"ranking": RANKINGS}, batch_size=8, passages=3)
WRITER = Stage(
    "writer",
    SPEC,
    Scratch(T5),
    (TRANSLATES, ASKS, TELLS),
    vocabulary=TrainVocabulary((CORPUS, RANKINGS, PAIRS), size=60),
    **COMMON,
)
# Drawn from all tokens: after two steps, the end is not among the likeliest.
GENERATED = Generate(
    "generated", FromStage("writer"), CORPUS, ("sw", "en"), each=16, sample=10, decoding=Sample()
)
MINED = Mine("mined", "bm25", Artifact("generated"), CORPUS, negatives=2, depth=10)
SCORED = Score("scored", FromStage("writer"), Artifact("mined"), "en")
LISTS = {"ranking": Artifact("scored")}
TEACHERS = {"teacher": FromStage("writer")}
STORED = Task(
    RelevanceDistillation(student_query="query.sw", teacher_kind="stored"), LISTS, batch_size=8,
    passages=3, name="stored",
)  # fmt: skip
LIVE = Task(
    RelevanceDistillation(student_query="query.en", teacher_kind="generator"), LISTS, TEACHERS,
    batch_size=8, passages=3, name="live",
)  # fmt: skip
ALIGNED = Task(
    QueryAlignment(query="query.sw", threshold=0.0), LISTS, TEACHERS, batch_size=8, passages=3
)
STUDENT = Stage(
    "student",
    Dense(query_length=12, passage_length=24),
    Scratch(ENCODER),
    (STORED, LIVE, ALIGNED),
    vocabulary=TrainVocabulary((CORPUS, RANKINGS), size=60),
    **COMMON,
)
RUN = Run("r", (WRITER, GENERATED, MINED, SCORED, STUDENT))


def _lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_generator_is_trained_writes_scores_and_teaches(tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    rows, _ = write_data(tmp_path)
    pairs = [f"{n}\t{row['queries']['en']}\t{row['query']} {n}\n" for n, row in enumerate(rows)]
    (tmp_path / "pairs.tsv").write_text("".join(pairs))
    told, home = io.StringIO(), tmp_path / "run"
    run = dataclasses.replace(RUN, data_root=str(tmp_path))
    train(run, home, Console(file=told, width=200))
    assert "records are kept" in told.getvalue()
    directory = home / "stages/01-writer/model"
    assert kind_at(directory).name == "generator"
    # Named by nobody, and learned: of the translations, and of the questions in both languages.
    assert load_generator(directory).spec == dataclasses.replace(SPEC, languages=("sw", "en"))
    # The stored scores are what transformers computes from the saved model.
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(directory).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)

    def read(text, most):
        pieces = tokenizer(text, add_special_tokens=False).input_ids[: most - 1]
        return torch.tensor([[*pieces, tokenizer.eos_token_id]])

    for line in _lines(home / "artifacts/scored/records.jsonl")[:2]:
        asked = read(line["queries"]["en"], 10)
        for text, score in zip(line["positives"] + line["negatives"], line["scores"], strict=True):
            with torch.no_grad():
                out = model(input_ids=read(f"English: {text}", 80), labels=asked)
            assert score == pytest.approx(-out.loss.item(), abs=1e-4)
    metrics = _lines(home / "stages/05-student/metrics.jsonl")
    for name in ("stored/loss", "live/loss", "QueryAlignment/loss", "QueryAlignment/gate"):
        assert all(np.isfinite(row[name]) for row in metrics)
    assert metrics[0]["QueryAlignment/gate"] > 0


def test_languages_are_those_of_the_targets_and_of_before(tmp_path):
    write_data(tmp_path)
    (tmp_path / "pairs.tsv").write_text("0\ta\tb\n")
    pairs = PAIRS.open(str(tmp_path))
    mixed = Mixture((PAIRS, BitextTSV("pairs.tsv", "so"))).open(str(tmp_path))
    lists = RANKINGS.open(str(tmp_path))
    assert [build._languages(pairs, field) for field in ("other", "english")] == [("sw",), ["en"]]
    assert build._languages(mixed, "other") == ["sw", "so"]
    assert build._languages(lists, "query") == ("sw", "en")
    assert build._languages(lists, "query.en") == ["en"]
    known = generators._generator()  # of Swahili
    save_generator(tmp_path / "known", known)
    nobody = dataclasses.replace(known, spec=SPEC)
    save_generator(tmp_path / "unknown", nobody)
    for init, model, languages in (
        (Scratch(T5), nobody, ("so", "en")),
        (str(tmp_path / "known"), nobody, ("sw", "so", "en")),
        (str(tmp_path / "unknown"), nobody, ()),
        (Scratch(T5), known, ("sw",)),  # as it is given
    ):
        vocabulary = WRITER.vocabulary if isinstance(init, Scratch) else None
        stage = _with(WRITER, init=init, vocabulary=vocabulary)
        assert build._taught(stage, model, ["so", "en"]).spec.languages == languages


def test_prompts_and_questions_are_in_one_language_whatever_the_bucket(tmp_path):
    rows, _ = write_data(tmp_path)
    words = train_wordpiece([*WORDS, "Swahili: English: .,"], 80, lowercase=False)
    tokenizer = generator_tokenizer(words)
    reader = QuestionTokenizer(tokenizer, dataclasses.replace(SPEC, source_length=40))
    known = {
        (name, row[0] if language == "sw" else row[1]["en"], text)
        for row in ((row["query"], row["queries"], row["positives"]) for row in rows)
        for language, name in (("sw", "Swahili"), ("en", "English"))
        for text in row[2]
    }
    batches = task_dataset(
        SequenceLikelihood().student, {}, {"ranking": RANKINGS.open(str(tmp_path))},
        {"student": reader}, batch_size=4, seed=0, buckets=2,
    )  # fmt: skip
    seen, widths = set(), set()
    for step in range(6):
        asked = batches[step]["student"]["likelihood"]
        widths.add(asked.source.ids.shape[-1])
        texts = (tokenizer.decode(part.ids, part.mask) for part in (asked.source, asked.target))
        for prompt, question in zip(*texts, strict=True):
            name, _, passage = prompt.partition(" : ")
            seen.add((name, question, passage))
    assert {name for name, _, _ in seen} == {"Swahili", "English"}
    assert seen <= {tuple(_read(words, text) for text in own) for own in known}
    assert len(widths) == 2


def _read(tokenizer, text):
    """A text as it is when it has been read and decoded."""
    return tokenizer.backend.decode(tokenizer.backend.encode(text).ids)


def _with(stage, **options):
    return dataclasses.replace(stage, **options)


def _refused():
    retriever = _with(STUDENT, tasks=(Task(InfoNCE(), {"ranking": RANKINGS}),))
    other = _with(retriever, init=FromStage("writer"), vocabulary=None)
    turned = _with(WRITER, init=FromStage("student"), vocabulary=None)
    asks = _with(retriever, tasks=(ASKS,))
    return {
        r"stages\.student\.init is a generator, and its model is a retriever": (WRITER, other),
        r"stages\.writer\.init is a retriever, and its model is a generator.*T5": (
            retriever,
            turned,
        ),
        "asks the model in training for Likelihood, which a generator answers": (asks,),
        r"stages\.g\.round_trip is the generator of stage 'writer', which gives texts no": (
            WRITER,
            Generate("g", FromStage("writer"), CORPUS, ("sw",), round_trip=FromStage("writer")),
        ),
        r"init is 'google/mt5-bas', which is no directory.*did you mean 'google/mt5-base'": (
            _with(WRITER, init="google/mt5-bas", vocabulary=None),
        ),
    }


@pytest.mark.parametrize("told", _refused())
def test_what_it_cannot_do_is_refused_before_any_work(told):
    with pytest.raises(ConfigError, match=told):
        check(Run("r", _refused()[told]), data_required=False)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"init": Scratch(ENCODER)}, "init is Scratch of EncoderConfig.*; give it a T5Config"),
        (
            {"init": "google/mt5-base", "vocabulary": ReplaceVocabulary("v.txt")},
            "a generator writes with the vocabulary that it was trained with; leave it out",
        ),
        (
            {"evaluate": Evaluate({"b": BitextPairs("p.tsv", "sw")})},
            "compares vectors, and a generator makes none; leave it out",
        ),
    ],
)
def test_a_stage_that_cannot_be(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        _with(WRITER, **options)


def test_it_is_checked_and_written_as_json(capsys):
    hub = _with(WRITER, name="hub", init="google/mt5-base", vocabulary=None, tasks=(ASKS,))
    live = _with(LIVE, teachers={"teacher": "a/generator"})
    run = Run("r", (*RUN.stages, hub, _with(STUDENT, name="named", tasks=(live,))))
    assert config_files.from_json(config_files.to_json(run)) == run
    assert check(run, data_required=False) == 0
    assert "hub: Generator, 582.4 M parameters" in capsys.readouterr().out
