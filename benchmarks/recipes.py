"""Sentence-level recipes, and each without a part of it: `python benchmarks/recipes.py`.

    python benchmarks/recipes.py --data-root DATA --language es --folder runs/recipes-es

A variant is a recipe of ``configs/bench`` with arguments. Each ends in one line of
``results.jsonl`` in the folder, with the rows of its summary; what has a line is not trained again,
and what was interrupted goes on. A sample of the passages is searched. The first variant of mse and
of langcl measures what all of them begin with. ``--table`` prints the lines that are there.
"""

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

from clir_jax.config import Run, Stage
from clir_jax.config_files import load, set_values
from clir_jax.training.loop import train

VARIANTS = {
    "mse, then scores": "questions=scores",
    "mse, then labels": "questions=labels",
    "mse, scores alone": "vector_steps=0,questions=scores",
    "mse, labels alone": "vector_steps=0,questions=labels",
    "mse, other side only": "english_weight=0",
    "langcl": "",
    "langcl, no semantic loss": "semantic=0",
    "langcl, no language loss": "language_loss=0",
    "langcl, no questions": "ir=False",
    "langcl, questions alone": "semantic=0,language_loss=0",
    "cl_relkt": "",
    "cl_relkt, mean pooling": "pooling=mean,projection=None",
    "cl_relkt, no encoder stage": "encoder_steps=0",
    "quick, generator": "",
    "quick, generator, asked alone": "generated=False,alignment=False",
    "quick, cross-encoder, asked alone": "teacher=cross_encoder,generated=False,alignment=False",
    "quick, no teacher, asked alone": "teacher=none,generated=False,alignment=False",
    "quick, generator, asked alone, a third": "generated=False,alignment=False,share=0.333",
    "quick, cross-encoder, asked alone, a third": (
        "teacher=cross_encoder,generated=False,alignment=False,share=0.333"
    ),
    "quick, no teacher, asked alone, a third": (
        "teacher=none,generated=False,alignment=False,share=0.333"
    ),
    "quick, generator, no alignment": "alignment=False",
    "quick, no teacher, no alignment": "teacher=none,alignment=False",
}
"""The arguments of each variant, beside the language; its name begins with the recipe."""
_BEGUN = {
    "warm_up": ("quick, generator", "stages/01-1-warm-up/model"),
    "generator": ("quick, generator", "stages/04-2b-english/model"),
    "cross_encoder": ("quick, cross-encoder, asked alone", "stages/02-2b-cross-english/model"),
}
"""What quick's variants take from others, which are trained before them."""
_PAIRS = "accuracy xx->en", "accuracy en->xx"


def main() -> None:
    """Train and measure what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--data-root", help="needed to train")
    parser.add_argument("--language", default="es")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--table", action="store_true", help="only print what was measured")
    given = parser.parse_args()
    results = given.folder / "results.jsonl"
    if not given.table:
        given.folder.mkdir(parents=True, exist_ok=True)
        _measure_missing(given, results)
    measured = [json.loads(line) for line in results.read_text().splitlines()]
    _print_table(measured, given.language)
    _print_training(
        [(row["variant"], _directory(given, row["variant"], row["seed"])) for row in measured]
    )


def _measure_missing(given: argparse.Namespace, results: Path) -> None:
    lines = results.read_text().splitlines() if results.exists() else []
    done = {(row["variant"], row["seed"]) for row in map(json.loads, lines)}
    for seed in given.seeds:
        for variant in given.variants:
            if (variant, seed) in done:
                continue
            began = time.perf_counter()
            rows = train(_run(given, variant, seed), _directory(given, variant, seed))
            seconds = round(time.perf_counter() - began)
            with results.open("a") as out:
                line = {"variant": variant, "seed": seed, "seconds": seconds, "rows": rows}
                out.write(json.dumps(line) + "\n")


def _directory(given: argparse.Namespace, variant: str, seed: int) -> Path:
    return Path(given.folder, f"{variant}-{seed}".replace(",", "").replace(" ", "-"))


def _run(given: argparse.Namespace, variant: str, seed: int) -> Run:
    recipe = variant.partition(",")[0]
    first = next(other for other in VARIANTS if other.startswith(recipe))
    arguments = f"language={given.language},whole=False,seed={seed}"
    if VARIANTS[variant]:
        arguments += f",{VARIANTS[variant]}"
    if recipe == "quick":
        order = list(VARIANTS)
        arguments += "".join(
            f",{name}={_directory(given, other, seed) / path}"
            for name, (other, path) in _BEGUN.items()
            if order.index(other) < order.index(variant)
        )
    run = load(f"configs/bench/{recipe}.py:{arguments}")
    run = set_values(run, [f"data_root={given.data_root}"])
    # What cl_relkt begins with is another with another pooling.
    if variant == first or recipe == "cl_relkt":
        return run
    stages = tuple(
        dataclasses.replace(stage, evaluate=dataclasses.replace(stage.evaluate, baselines=()))
        if isinstance(stage, Stage) and stage.evaluate is not None
        else stage
        for stage in run.stages
    )
    return dataclasses.replace(run, stages=stages)


def _print_table(results: list[dict[str, Any]], language: str) -> None:
    """A line for everything that was measured; a dash where it was not, or not over this set."""
    columns = [(what, f"{x}-sample") for what in ("nDCG@10", "Success@1") for x in (language, "en")]
    columns += [("nDCG@10", name) for name in (f"{language}-own", "pool", "pool-own")]
    columns += [("P@10", "pool-bias")]
    columns += [(metric, "bitext") for metric in _PAIRS]
    measured = {(row["metric"], row["dataset"]) for result in results for row in result["rows"]}
    columns = [column for column in columns if column in measured]
    heads = [" ".join(column) for column in columns]
    print("| variant | seed | stage | system | " + " | ".join(heads) + " | s |")
    print("|---" * (5 + len(columns)) + "|")
    for result in results:
        found: dict[tuple[str, str], dict[tuple[str, str], float]] = {}
        for row in result["rows"]:
            own = found.setdefault((row["stage"], row["system"]), {})
            own[row["metric"], row["dataset"]] = row["value"]
        for (stage, system), own in found.items():
            cells = [f"{own[column]:.3f}" if column in own else "-" for column in columns]
            where = f"{result['variant']} | {result['seed']} | {stage} | {system}"
            print(f"| {where} | {' | '.join(cells)} | {result['seconds']} |")


def _print_training(runs: list[tuple[str, Path]]) -> None:
    """The last metrics of every stage, and what became of generated questions."""
    print("\n| variant | stage | training |\n|---|---|---|")
    for variant, run in runs:
        for file in sorted(run.glob("stages/*/metrics.jsonl")):
            lines = map(json.loads, file.read_text().splitlines())
            told = [line for line in lines if "loss" in line][-1]
            cells = [f"{name} {told[name]:.3g}" for name in sorted(told) if "/" in name]
            print(f"| {variant} | {file.parent.name} | {', '.join(cells)} |")
        for file in sorted(run.glob("artifacts/*/counts.json")):
            for language, told in json.loads(file.read_text()).get("questions", {}).items():
                cells = [f"{name} {count}" for name, count in told.items()]
                print(f"| {variant} | {file.parent.name}, {language} | {', '.join(cells)} |")


if __name__ == "__main__":
    main()
