"""QuiCK at full size: XLM-R taught by mT5, XOR-TyDi questions over English Wikipedia.

Paper:    Ren et al., Empowering Dual-Encoder with Query Generator for Cross-Lingual Dense
          Retrieval (QuiCK), EMNLP 2022, arXiv:2303.14991. The abstract, the introduction and a
          figure are verified, and constants of an option file that shares four of its authors; the
          equations and what the paper used are not: see below.
Stages:   warm-up of the dual encoder: ``1a-nq``, English triples; ``1b-xor``, questions of seven
          languages. The generator: ``2a-questions``, both sets of questions, each in its language.
          ``generated``: questions in English and seven languages for the gold passages; the English
          ones must find their passage again, among the first ten of 1b. Then in rounds: the newest
          dual encoder searches for the questions that were asked and for the generated ones;
          ``2b-contrastive``, the generator learns to tell the positive from what was found, and
          scores it; ``3a-distil`` and ``3b-distil``: contrastive loss, distillation of the scores
          and alignment, of asked and generated questions, three to one first and then one to three.
Data:     under data_root: ``nq/triples.tsv`` (query, positive, negative, tab-separated);
          ``xor/corpus.jsonl``, the passages of English Wikipedia; ``xor/positives.jsonl``, those of
          them that answer a training question; ``xor/train.LANGUAGE.jsonl`` (query, positives, one
          negative), for each of seven languages; to measure every stage
          ``dev/{corpus.jsonl,queries.tsv,qrels.trec}``.
Command:  python -m clir_jax.train --config configs/quick.py --set data_root=gs://BUCKET/data
          ``:alignment=False`` and ``:rounds=1`` leave parts out.
Hardware: meant for one host with 8 accelerators; not run.
Score:    not run yet. Published on the hidden test of XOR-Retrieve: R@5kt 72.0, R@2kt 65.6,
          searched in all of Wikipedia.

Verified: distillation from a generator, which is trained on query generation first and then
contrastively; alignment of queries of different languages by it, without parallel sentences; the
warm-up on NQ, then XOR. In the option file: encoders, CLS, alpha and the temperature 1, threshold
0.5, batches of 8 a device, 10,000 steps, AdamW at 1e-5 with weight decay 0, warm-up of a tenth and
clipping at 1; queries and passages of 128, which the dual encoder has here.

Our choice: the inner product; the mean log-likelihood, divided by 0.1 as in UMR, where the option
file has 1; the direction of both divergences; the confidence that the threshold is compared with;
English as the reference of the alignment; the mixing of asked and generated questions, and its
schedule; the round trip; prompts of 256 tokens and questions of 64 for the generator; the
generator's rate, steps and batch, which are those of DSI-QG; the steps of the warm-up. The language
is named to the generator alone (the option file puts it before texts, of which model is not
known). Two rounds, where its ``iter_num`` is 1; the rate begins anew with each stage of a round,
where its schedule spans all of them. Passages with the answer are not told from negatives by the
answer, but by the positive's words.
"""

import dataclasses

from clir_jax.config import (
    Artifact,
    Evaluate,
    FromStage,
    Generate,
    Init,
    Mine,
    Model,
    Optimizer,
    Rounds,
    Run,
    Score,
    Source,
    Stage,
    Task,
    Work,
)
from clir_jax.data.collections import Retrieval
from clir_jax.data.languages import InLanguages
from clir_jax.data.rankings import RankingJSONL, TriplesTSV
from clir_jax.data.sources import CorpusJSONL, Mixture
from clir_jax.models.generator import Generator, Sample
from clir_jax.models.retriever import Dense
from clir_jax.objectives.contrastive import InfoNCE
from clir_jax.objectives.distillation import RelevanceDistillation
from clir_jax.objectives.generation import (
    GeneratorContrastive,
    QueryAlignment,
    SequenceLikelihood,
)

_LANGUAGES = ("ar", "bn", "fi", "ja", "ko", "ru", "te")
_RETRIEVER = Dense("cls", normalize=False, query_length=128, passage_length=128)
_GENERATOR = Generator(source_length=256, target_length=64, languages=("en", *_LANGUAGES))
_CORPUS = CorpusJSONL("xor/corpus.jsonl")
_NQ = TriplesTSV("nq/triples.tsv")
_BATCH = 64
_GENERATOR_BATCH = 128
# The generator's mean log-likelihoods lie close together.
_TAU = 0.1
# Of the questions that a round learns from: how many are generated, stage by stage.
_SHARES = {"3a-distil": 0.25, "3b-distil": 0.75}


def get_config(
    model: str = "xlm-roberta-base",
    generator: str = "google/mt5-base",
    alignment: bool = True,
    rounds: int = 2,
    steps: int = 10_000,
    seed: int = 12345,
) -> Run:
    """QuiCK; ``steps`` are those of a round's distillation."""
    asked = {x: RankingJSONL(f"xor/train.{x}.jsonl", x) for x in _LANGUAGES}
    every = Mixture(tuple(asked.values()))
    nq = Task(InfoNCE(), {"ranking": _NQ}, batch_size=_BATCH, passages=2)
    xor = Task(InfoNCE(), {"ranking": every}, batch_size=_BATCH, passages=2)
    questions = (
        _questions("nq", _NQ),
        _questions("xor", every),
    )
    stages = (
        _stage("1a-nq", _RETRIEVER, model, (nq,), 40_000, 2e-5),
        _stage("1b-xor", _RETRIEVER, FromStage("1a-nq"), (xor,), 10_000, 2e-5),
        _stage("2a-questions", _GENERATOR, generator, questions, 2_000, 1e-4),
        Generate(
            "generated",
            FromStage("2a-questions"),
            CorpusJSONL("xor/positives.jsonl"),
            _GENERATOR.languages,
            each=5,
            decoding=Sample(top_k=10),
            round_trip=FromStage("1b-xor"),
            round_trip_languages=("en",),
        ),
        Rounds(
            "rounds",
            rounds,
            (
                *_searched(asked),
                *_taught(),
                *_distilled(alignment, steps // len(_SHARES)),
            ),
            {
                "3b-distil": FromStage("1b-xor"),
                "2b-contrastive": FromStage("2a-questions"),
            },
        ),
    )
    return Run(name="quick", stages=stages, seed=seed)


def _questions(name: str, source: Source) -> Task:
    """Questions that the generator learns to write."""
    return Task(
        SequenceLikelihood(), {"ranking": source}, batch_size=_GENERATOR_BATCH // 2, name=name
    )


def _searched(asked: dict[str, RankingJSONL]) -> list[Work]:
    """What the newest dual encoder finds for every question."""
    found = Mine(
        "generated-mined",
        FromStage("3b-distil"),
        Artifact("generated"),
        _CORPUS,
        negatives=31,
        depth=100,
        query_language="en",
        duplicates=0.8,
    )
    others = (
        dataclasses.replace(found, name=f"mined-{x}", source=source, query_language=x)
        for x, source in asked.items()
    )
    return [found, *others]


def _taught() -> list[Stage | Work]:
    """The generator, trained on what was found; and its scores."""
    mined = Mixture(tuple(Artifact(f"mined-{x}") for x in _LANGUAGES))
    contrastive = Task(
        GeneratorContrastive(temperature=_TAU), {"ranking": mined}, batch_size=_BATCH, passages=6
    )
    name, before = "2b-contrastive", FromStage("2b-contrastive")
    works: list[Stage | Work] = [_stage(name, _GENERATOR, before, (contrastive,), 2_000, 1e-4)]
    for x in _LANGUAGES:
        works.append(Score(f"scored-{x}", before, Artifact(f"mined-{x}"), x))
        works.append(Score(f"generated-{x}", before, Artifact("generated-mined"), x))
    return works


def _distilled(alignment: bool, steps: int) -> list[Stage]:
    """The dual encoder, taught by the scores, with more and more generated questions."""
    stages: list[Stage] = []
    for name, share in _SHARES.items():
        parts = [InLanguages(Artifact(f"scored-{x}"), (x,)) for x in _LANGUAGES]
        parts += [InLanguages(Artifact(f"generated-{x}"), (x,)) for x in _LANGUAGES]
        weights = (1 - share,) * len(_LANGUAGES) + (share,) * len(_LANGUAGES)
        source = {"ranking": Mixture(tuple(parts), weights)}
        distil = RelevanceDistillation(
            student_query="query",
            teacher_kind="stored",
            temperature=1.0,
            teacher_temperature=_TAU,
        )
        tasks = [
            Task(InfoNCE(), source, batch_size=_BATCH, passages=2),
            Task(distil, source, batch_size=_BATCH, passages=16),
        ]
        if alignment:
            generated = InLanguages(Artifact("generated-mined"), _LANGUAGES)
            tasks.append(
                Task(
                    QueryAlignment(confidence_temperature=_TAU),
                    {"ranking": generated},
                    {"teacher": FromStage("2b-contrastive")},
                    batch_size=_BATCH,
                    passages=16,
                )
            )
        before = FromStage(stages[-1].name if stages else "3b-distil")
        stages.append(_stage(name, _RETRIEVER, before, tuple(tasks), steps, 1e-5))
    return stages


def _stage(
    name: str, model: Model, init: Init, tasks: tuple[Task, ...], steps: int, rate: float
) -> Stage:
    """What all stages have in common; the last step's model is the result of each."""
    files = "dev/corpus.jsonl", "dev/queries.tsv", "dev/qrels.trec"
    searches = isinstance(model, Dense)
    return Stage(
        name=name,
        model=model,
        init=init,
        tasks=tasks,
        optimizer=Optimizer(rate, warmup=steps // 10, weight_decay=0.0),
        steps=steps,
        evaluate=Evaluate({"mul": Retrieval(*files, "mul")}) if searches else None,
        tokens_per_chunk=8_192,
        dtype="bfloat16",
    )
