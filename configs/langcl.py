"""LangCL at full size: XLM-R, English Natural Questions, bitext and plain text, in one stage.

Paper:    Hu et al., Language Agnostic Multilingual Information Retrieval with Contrastive Learning,
          Findings of ACL 2023, arXiv:2210.06633. Only its description is verified: English
          retrieval data, a semantic loss on bitext, a language loss that also reads sentences
          without translation, all of them together. Its equations are reconstructed, and its data,
          weights, temperatures, sizes and steps are not known here.
Stages:   ``langcl``: three tasks in every step, each with its own data, weight and temperature:
          ``InfoNCE`` (DPR: the batch's passages and one hard negative), ``SemanticContrastive``,
          ``LanguageContrastive``. ``:semantic=0`` and ``:language_loss=0`` leave a loss out,
          ``:ir=False`` the questions.
Data:     under data_root: ``nq/biencoder-nq-train.json`` as DPR has it;
          ``bitext/<language>/*.tsv`` (id, English, other) in eight languages;
          ``text/<language>.txt``, a sentence a line, in ten; and, to measure,
          ``mrtydi/<language>/{corpus.jsonl,queries.tsv,qrels.trec}`` in these and English.
Test:     Mr. TyDi: questions over 100,000 passages of the same language, all that are judged among
          them. English chooses the checkpoint; no other language chooses anything.
Command:  python -m clir_jax.train --config configs/langcl.py --set data_root=gs://BUCKET/data
Hardware: meant for one host with 8 accelerators; not run.
Score:    not run yet; the published figures are not verified.

Any other recipe takes the two losses as well, dense or late interaction. One line among the tasks
of a stage makes it language-agnostic; with ``SemanticContrastive()`` it adds the other loss:

    Task(LanguageContrastive(), {"bitext": bitext}, weight=0.1),

Differences from the paper: what is reconstructed (see ``clir_jax.objectives.language``). Questions
are learned with the settings published for XLM-R by others on the same data (128 questions, rate
2e-5, 40 epochs, 1,237 updates of warm-up, mean pooling); vectors are normalised, so that all losses
compare cosines, and their temperatures and the two weights are ours.
"""

from clir_jax.config import Evaluate, Optimizer, Run, Stage, Task
from clir_jax.data.bitext import BitextTSV
from clir_jax.data.collections import Retrieval
from clir_jax.data.dpr import DPRJSON
from clir_jax.data.sources import Mixture, TextLines
from clir_jax.models.retriever import Dense
from clir_jax.objectives.contrastive import InfoNCE
from clir_jax.objectives.language import LanguageContrastive, SemanticContrastive

_PARALLEL = ("ar", "bn", "fi", "id", "ja", "ko", "ru", "te")
# The last two are learned from text that nobody has translated.
_LANGUAGES = (*_PARALLEL, "sw", "th")
_BATCH = 128


def get_config(
    model: str = "xlm-roberta-base",
    ir: bool = True,
    semantic: float = 0.1,
    language_loss: float = 0.1,
    seed: int = 0,
) -> Run:
    """One stage on encoder ``model``, of what has a weight."""
    # As often from a small language as from a large one.
    alike = (1.0,) * len(_PARALLEL)
    bitext = Mixture(tuple(BitextTSV(f"bitext/{x}/*.tsv", x) for x in _PARALLEL), alike)
    alike = (1.0,) * len(_LANGUAGES)
    text = Mixture(tuple(TextLines(f"text/{x}.txt", x) for x in _LANGUAGES), alike)
    english = DPRJSON("nq/biencoder-nq-train.json")
    tasks = (
        Task(InfoNCE(0.05), {"ranking": english}, batch_size=_BATCH, passages=2),
        Task(
            SemanticContrastive(temperature=0.05),
            {"bitext": bitext},
            weight=semantic,
            batch_size=_BATCH,
        ),
        Task(
            LanguageContrastive(temperature=0.05, text=True),
            {"bitext": bitext, "text": text},
            weight=language_loss,
            batch_size=_BATCH,
        ),
    )
    dev = {language: _mr_tydi(language) for language in ("en", *_LANGUAGES)}
    stage = Stage(
        name="langcl",
        model=Dense(pooling="mean", query_length=64, passage_length=256),
        init=model,
        tasks=tuple(
            task for task in tasks if task.weight and (ir or "ranking" not in task.sources)
        ),
        optimizer=Optimizer(2e-5, warmup=1237, weight_decay=0.0, clip_norm=2.0),
        steps=18_400,
        evaluate=Evaluate(dev, every=2_000, metrics=("RR@100", "R@100"), best="RR@100 en"),
        tokens_per_chunk=4_096,
        dtype="bfloat16",
    )
    return Run(name="langcl", stages=(stage,), seed=seed)


def _mr_tydi(language: str) -> Retrieval:
    """Questions over passages of their own language."""
    corpus, queries, qrels = (
        f"mrtydi/{language}/{name}" for name in ("corpus.jsonl", "queries.tsv", "qrels.trec")
    )
    return Retrieval(corpus, queries, qrels, language, sample=100_000)
