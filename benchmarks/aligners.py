"""Retrieval after distillation with every aligner and option: `python benchmarks/aligners.py`.

    python -m clir_jax.train --config configs/bench/optical.py:language=ha,steps=1 \\
        --set data_root=DATA --run-dir runs/teacher
    python benchmarks/aligners.py --data-root DATA --language ha \\
        --teacher runs/teacher/stages/01-teacher/model --folder runs/aligners

Every variant trains the same student from the same weights for the same steps, beside the passages
of the frozen teacher, which are encoded once for all of them. Variants differ in one field of the
objective. They learn from the language's bitext (``--bitext``: of several languages), without long
sentences, and from the training questions of XQuAD or AfriQA with their human translations, each
``--repeat`` times: bitext of news and medicine alone teaches nobody what "wanene" asks. Each
variant ends in one line of ``results.jsonl`` in the folder; what has a line is not trained again.
``--table`` prints the lines that are there. With ``--gold fr ro`` the vocabulary also knows the
words of these gold alignments, and models are trained and not searched with: the folders ``start``
and ``VARIANT-SEED/model/query`` are for ``benchmarks/alignment.py``.
"""

import argparse
import dataclasses
import json
import statistics
import time
from pathlib import Path
from typing import Any

import jax

from clir_jax.config import Group, Optimizer, ReplaceVocabulary, Run, Stage, Task
from clir_jax.config_files import load
from clir_jax.data.bitext import BitextTSV
from clir_jax.data.gold_alignment import GoldAlignment
from clir_jax.evaluation.metrics import metric_name
from clir_jax.evaluation.retrieval import Kept, TextEncoder, measure
from clir_jax.mesh import make_mesh
from clir_jax.models.formats import LoadedRetriever, load_retriever, on_mesh, save_loaded
from clir_jax.models.retriever import LateInteraction
from clir_jax.objectives.alignment import TokenAlignmentDistillation
from clir_jax.ops.alignment import IPOT, Assignment, Attention, Greedy, Sinkhorn
from clir_jax.training.initial import initial_model
from clir_jax.training.loop import train

RETRIEVER = LateInteraction(dimension=128, query_length=32, passage_length=128, expansion=False)
METRIC = metric_name("nDCG@10")
_PAIRS = "pairs.tsv"
_AFRIQA = {"ha": "hau", "ig": "ibo", "zu": "zul"}
BASE = TokenAlignmentDistillation(Sinkhorn(epsilon=0.02), length=48)
VARIANTS = {
    "Sinkhorn": {},
    "Greedy": {"aligner": Greedy()},
    "Assignment": {"aligner": Assignment()},
    "IPOT": {"aligner": IPOT()},
    "unbalanced": {"aligner": Sinkhorn(epsilon=0.02, tau_student=0.95, tau_teacher=0.95)},
    "Attention": {"aligner": Attention(temperature=0.05)},
    "idf": {"marginals": "idf"},
    "null": {"null": 0.6},
    "agreement": {"agreement": True},
    "layer": {"layer": 4},
}
"""What differs from ``BASE``; the last four are options beside its aligner."""
REPEATED = ("Sinkhorn", "Greedy")
"""Trained with every seed; the others with the first."""


def main() -> None:
    """Train and measure what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--teacher", help="directory of the trained teacher")
    parser.add_argument("--language", default="ha", help="of the questions")
    parser.add_argument("--bitext", nargs="+", help="languages of the bitext; --language's own")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--words", type=int, default=20, help="of an English sentence, at most")
    parser.add_argument("--repeat", type=int, default=6, help="copies of the training questions")
    parser.add_argument("--gold", nargs="*", default=[], help="languages of alignment/")
    parser.add_argument("--table", action="store_true", help="only print what was measured")
    given = parser.parse_args()
    results = given.folder / "results.jsonl"
    if not given.table:
        given.folder.mkdir(parents=True, exist_ok=True)
        _write_pairs(given, given.folder / _PAIRS)
        _measure_missing(given, results)
    _print_table([json.loads(line) for line in results.read_text().splitlines()])


def _measure_missing(given: argparse.Namespace, results: Path) -> None:
    lines = results.read_text().splitlines() if results.exists() else []
    done = {(row["variant"], row["seed"]) for row in map(json.loads, lines)}
    mesh = make_mesh()
    teacher = on_mesh(load_retriever(given.teacher), mesh)
    passages = dataclasses.replace(TextEncoder.of(teacher, mesh), kept=Kept(2**33))
    recipe = load(f"configs/bench/optical.py:language={given.language}")
    collections = {
        name: collection.open(given.data_root)
        for name, collection in recipe.training_stages()[-1].evaluate.collections.items()
    }

    def figures(model: LoadedRetriever) -> dict[str, float]:
        if given.gold:
            return {}
        encoder = TextEncoder.of(on_mesh(model, mesh), mesh, passages)
        found = measure(encoder, collections, [METRIC], 100)
        return {name: one.values[METRIC] for name, one in found.items()}

    def record(variant: str, seed: int, **row: Any) -> None:
        with results.open("a") as out:
            out.write(json.dumps({"variant": variant, "seed": seed, **row}) + "\n")

    start = given.folder / "start"
    with jax.set_mesh(mesh):
        if not start.is_dir():
            run = _run(given, "start", {}, 0)
            save_loaded(start, initial_model(run, run.training_stages()[0]))
    if ("teacher", 0) not in done:
        record("teacher", 0, **figures(teacher))
        record("student before", 0, **figures(load_retriever(start)))
    for seed in given.seeds:
        for variant in given.variants:
            if (variant, seed) in done or (seed != given.seeds[0] and variant not in REPEATED):
                continue
            directory = given.folder / f"{variant}-{seed}".replace(" ", "-")
            began = time.perf_counter()
            train(_run(given, str(start), VARIANTS[variant], seed), directory)
            seconds = time.perf_counter() - began
            model = load_retriever(directory / "model" / "query")
            record(variant, seed, seconds=round(seconds), **figures(model))


def _write_pairs(given: argparse.Namespace, path: Path) -> None:
    """All pairs in one file, so that they share their buckets."""
    root = Path(given.data_root)
    rows, questions = [], []
    for language in given.bitext or [given.language]:
        for file in sorted((root / "bitext" / language).glob("*.tsv")):
            found = [line.split("\t") for line in file.read_text().splitlines()]
            rows += [row for row in found if len(row[1].split()) <= given.words]
        questions += _training_questions(root / "retrieval", language)
    with path.open("w") as out:
        out.writelines("\t".join(row) + "\n" for row in rows + given.repeat * questions)


def _training_questions(root: Path, language: str) -> list[list[str]]:
    """Id, English question, question in the language."""

    def table(name: str) -> list[list[str]]:
        return [line.split("\t") for line in (root / name).read_text().splitlines()]

    if language in _AFRIQA:
        found = table(f"afriqa/train/queries.{_AFRIQA[language]}-en.tsv")
        return [[name, english, other] for name, other, english in found]
    others = dict(table(f"xquad/train/queries.{language}.tsv"))
    english = table("xquad/train/queries.en.tsv")
    return [[name, text, others[name]] for name, text in english]


def _run(given: argparse.Namespace, init: str, changes: dict[str, Any], seed: int) -> Run:
    """One stage; the one that starts gives the teacher the vocabulary, the others have it."""
    recipe = load(f"configs/bench/optical.py:language={given.language}").training_stages()[-1]
    pairs = BitextTSV(str((given.folder / _PAIRS).absolute()), given.language)
    vocabulary = None
    if init == "start":
        assert isinstance(recipe.vocabulary, ReplaceVocabulary)
        golds = (
            GoldAlignment(f"alignment/{language}.jsonl", language, on_bad_record="skip")
            for language in given.gold
        )
        trimmed = (*recipe.vocabulary.trim_to, pairs, *golds)
        vocabulary = dataclasses.replace(recipe.vocabulary, trim_to=trimmed)
    task = Task(
        dataclasses.replace(BASE, **changes),
        {"bitext": pairs},
        teachers={"teacher": str(Path(given.teacher).absolute())},
        batch_size=16,
        buckets=3,
    )
    stage = Stage(
        name="distil",
        model=RETRIEVER,
        init=str(Path(given.teacher).absolute()) if vocabulary else str(Path(init).absolute()),
        vocabulary=vocabulary,
        tasks=(task,),
        # Faster than 1e-4, the encoder forgets its English; the new vocabulary has far to go.
        optimizer=Optimizer(
            1e-4, warmup=50, groups=(Group("embeddings/word", learning_rate=10.0),)
        ),
        steps=given.steps,
        passage_encoder="teacher",
        log_every=50,
    )
    return Run("aligners", (stage,), seed=seed, data_root=given.data_root)


def _print_table(rows: list[dict[str, Any]]) -> None:
    languages = [name for name in rows[0] if name not in ("variant", "seed", "seconds")]
    print("| variant | seeds | " + " | ".join(f"nDCG@10 {name}" for name in languages) + " | s |")
    print("|---" * (3 + len(languages)) + "|")
    for variant in dict.fromkeys(row["variant"] for row in rows):
        own = [row for row in rows if row["variant"] == variant]
        cells = [_spread([row[name] for row in own]) for name in languages]
        seconds = [row["seconds"] for row in own if "seconds" in row]
        took = f"{statistics.mean(seconds):.0f}" if seconds else ""
        print(f"| {variant} | {len(own)} | " + " | ".join(cells) + f" | {took} |")


def _spread(values: list[float]) -> str:
    mean = f"{statistics.mean(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.3f} to {max(values):.3f})"


if __name__ == "__main__":
    main()
