"""mteb evaluates retrievers on a task made here, without a network.

``python -m tests.interop.mteb_task``; the nDCG@10 is that of this library over the same texts, and
the exit status 1 if one is not.
"""

import os
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import mteb
from datasets import Dataset
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata

from clir_jax.data.collections import Collection
from clir_jax.data.reading import Report
from clir_jax.evaluation.mteb import for_mteb
from clir_jax.evaluation.retrieval import measure
from clir_jax.models.formats import save_loaded
from tests.interop.backbones import PASSAGES, QUERIES, SPECS, minilm

PASSAGE_IDS = [f"p{i}" for i in range(len(PASSAGES))]
QUERY_IDS = [f"q{i}" for i in range(len(QUERIES))]
# Judged by place, so that random models are neither all right nor all wrong.
QRELS = {
    query: {passage: 1 + (i + j) % 2 for j, passage in enumerate(PASSAGE_IDS) if (i + j) % 5 == 0}
    for i, query in enumerate(QUERY_IDS)
}
COLLECTION = Collection("tiny", "en", PASSAGE_IDS, PASSAGES, QUERY_IDS, QUERIES, QRELS, Report())


class Tiny(AbsTaskRetrieval):
    """The texts of ``backbones``, judged as above."""

    metadata = TaskMetadata(
        name="TinyRetrieval",
        description="Texts for every rule of tokenisation.",
        dataset={"path": "none", "revision": "1"},
        type="Retrieval",
        category="t2t",
        modalities=["text"],
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score="ndcg_at_10",
    )

    def load_data(self, **told):
        """Make the data."""
        queries = Dataset.from_dict({"id": QUERY_IDS, "text": QUERIES})
        passages = Dataset.from_dict({"id": PASSAGE_IDS, "text": PASSAGES})
        data = {"corpus": passages, "queries": queries, "relevant_docs": QRELS, "top_ranked": None}
        self.dataset, self.data_loaded = {"default": {"test": data}}, True


def main() -> int:
    """Print a table."""
    wrong = 0
    for kind in SPECS:
        # Real weights: of scores that are equal, mteb and this library put another one first.
        with tempfile.TemporaryDirectory() as folder:
            save_loaded(Path(folder) / "model", minilm(kind))
            model = for_mteb(folder)
            result = mteb.evaluate(model, Tiny(), cache=None, show_progress_bar=False)
        (scores,) = result.task_results[0].scores["test"]
        theirs = scores["ndcg_at_10"]
        measured = measure(model.encoder, {"": COLLECTION}, ["nDCG@10"], 1000)
        ours = measured[""].values["nDCG@10"]
        same = abs(theirs - ours) <= 1e-5
        wrong += not same
        told = f"{theirs:.5f} | {ours:.5f} | {'same' if same else 'OTHER'}"
        print(f"| mteb {version('mteb')} | MiniLM | {kind} | {told} |", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
