"""Dr.DECR at full size: XLM-R, Natural Questions, OPUS bitext and XOR-TyDi, in four stages.

Paper:    Li, Franz, Sultan, Iyer, Lee, Sil, Learning Cross-Lingual IR from an English Retriever,
          NAACL 2022, arXiv:2112.08185, with the settings of the released recipe.
Stages:   ``1a-english``: ColBERT on English triples, the teacher of all that follows.
          ``1b-questions``: the same network on triples with questions of seven languages.
          ``2a-tokens``: from 1b; token vectors follow the teacher's on bitext, aligned greedily.
          ``2b-relevance``: from 2a; passages are ranked as the teacher ranks them for the question
          in English.
Data:     under data_root: ``nq/triples.tsv`` and, line by line the same passages,
          ``xor/triples.tsv`` and ``xor/triples.en.tsv`` with the question as it was asked and in
          English (all of them query, positive, negative, tab-separated);
          ``bitext/<language>/*.tsv`` (id, English, other); to measure every stage
          ``dev/{corpus.jsonl,queries.tsv,qrels.trec}``, where queries have the question in English
          in a third column.
Command:  python -m clir_jax.train --config configs/drdecr.py --set data_root=gs://BUCKET/data
          ``:model=xlm-roberta-large`` for the larger; ``:similarity=l2`` for the scores of the
          first release, of which temperature 2 makes what 1 is here.
Hardware: meant for one host with 8 accelerators; not run.
Score:    published for the base size on XOR-Retrieve dev, average of seven languages: R@5kt 73.7,
          R@2kt 67.6, searched in all of Wikipedia.

Differences from the release: float16 is bfloat16 here, markers are tokens of their own and not
rare pieces, queries are filled with ``<mask>`` and not with ``<pad>``, ``<s>`` keeps its vector,
padding of passages is no candidate in MaxSim, sentences of bitext meet in batches by length, and
weight decay is 0 (the release's "library defaults" are not verified).
"""

from clir_jax.config import Evaluate, FromStage, Optimizer, Run, Stage, Task
from clir_jax.data.bitext import BitextTSV
from clir_jax.data.collections import Retrieval
from clir_jax.data.rankings import TriplesTSV
from clir_jax.data.sources import Mixture
from clir_jax.models.retriever import LateInteraction
from clir_jax.objectives.alignment import TokenAlignmentDistillation
from clir_jax.objectives.contrastive import PairwiseSoftmax
from clir_jax.objectives.distillation import RelevanceDistillation
from clir_jax.ops.alignment import Greedy

_LANGUAGES = ("ar", "bn", "fi", "ja", "ko", "ru", "te")
_BATCH = 192


def get_config(
    model: str = "xlm-roberta-base", similarity: str = "cosine", seed: int = 12345
) -> Run:
    """The four stages on encoder ``model``."""
    bitext = Mixture(tuple(BitextTSV(f"bitext/{name}/*.tsv", name) for name in _LANGUAGES))
    english = TriplesTSV("nq/triples.tsv")
    # The questions of all languages are in one file.
    asked = TriplesTSV("xor/triples.tsv", "mul")
    both = TriplesTSV("xor/triples.tsv", "mul", {"en": "xor/triples.en.tsv"})
    teachers = {"teacher": FromStage("1a-english")}
    tokens = TokenAlignmentDistillation(
        Greedy(),
        distance="mse",
        query_weight=0.5,
        english="passage",
        english_pairs="in_order",
        slots="all",
        length=None,
    )
    relevance = RelevanceDistillation(
        student_query="query.mul", similarity=similarity, temperature=2.0
    )
    stages = (
        _stage(
            "1a-english",
            model,
            Task(PairwiseSoftmax(), {"ranking": english}, batch_size=_BATCH, passages=2),
            learning_rate=1.5e-6,
            steps=91_287,
        ),
        _stage(
            "1b-questions",
            FromStage("1a-english"),
            Task(PairwiseSoftmax(), {"ranking": asked}, batch_size=_BATCH, passages=2),
            learning_rate=6e-6,
            steps=74_704,
        ),
        _stage(
            "2a-tokens",
            FromStage("1b-questions"),
            Task(tokens, {"bitext": bitext}, teachers, batch_size=_BATCH, buckets=8),
            learning_rate=4.8e-5,
            steps=84_897,
        ),
        _stage(
            "2b-relevance",
            FromStage("2a-tokens"),
            Task(relevance, {"ranking": both}, teachers, batch_size=_BATCH, passages=2),
            learning_rate=6e-6,
            steps=87_618,
        ),
    )
    return Run(name="drdecr", stages=stages, seed=seed)


def _stage(
    name: str, init: str | FromStage, task: Task, *, learning_rate: float, steps: int
) -> Stage:
    """What all stages have in common; the last step's model is the result of each."""
    files = "dev/corpus.jsonl", "dev/queries.tsv", "dev/qrels.trec"
    dev = {"mul": Retrieval(*files, "mul"), "en": Retrieval(*files, "en", query_column=2)}
    return Stage(
        name=name,
        model=LateInteraction(dimension=128, query_length=32, passage_length=180),
        init=init,
        tasks=(task,),
        optimizer=Optimizer(learning_rate, "constant", weight_decay=0.0, clip_norm=2.0),
        steps=steps,
        evaluate=Evaluate(dev),
        tokens_per_chunk=4_096,
        dtype="bfloat16",
    )
