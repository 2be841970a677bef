"""Search with an exported run in another library, and compare its best ten passages with ours.

``python tests/interop/top_ten.py write RUN DIRECTORY`` exports the late-interaction model of a
quickstart run and searches with it; ``python tests/interop/top_ten.py check DIRECTORY LIBRARY``,
in an environment with that library and without this one, does the same there. Exit status 1 if a
query has other passages, apart from those whose scores are nearer than 1e-4.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path

_DEPTH, _QUESTIONS, _TIE = 10, 100, 1e-4


def write(run, directory):
    """Export, and note the texts and our rankings."""
    from clir_jax.data.collections import AtlasRetrieval
    from clir_jax.evaluation.retrieval import load_encoder, nearest, saved_at
    from clir_jax.models.exports import export
    from clir_jax.models.formats import load_retriever

    config = json.loads((run / "config.json").read_text())
    collections = config["stages"][-1]["evaluate"]["collections"]
    directory.mkdir(parents=True)
    for remark in export(load_retriever(saved_at(str(run))), "pylate", directory / "model", "it"):
        print(f"note: {remark}")
    encoder, found = load_encoder(str(run)), {}
    for language in collections:
        opened = AtlasRetrieval(language, "test", "atlas").open(".")
        asked = opened.queries[:_QUESTIONS]
        blocks = encoder.passages(opened.passages)
        scores, rows = nearest(encoder.queries(asked), blocks, _DEPTH, encoder.mesh)
        found[language] = {"queries": asked, "rows": rows.tolist(), "scores": scores.tolist()}
    texts = {"passages": opened.passages, "languages": found}
    (directory / "texts.json").write_text(json.dumps(texts))
    return 0


def sentence_transformers(directory, queries, passages):
    """Scores ``[Q, P]`` of sentence-transformers 6."""
    from sentence_transformers import MultiVectorEncoder

    model = MultiVectorEncoder(str(directory), device="cpu")
    return model.similarity(model.encode_query(queries), model.encode_document(passages)).numpy()


def pylate(directory, queries, passages):
    """Scores ``[Q, P]`` of PyLate."""
    import numpy as np
    import torch
    from pylate import models
    from pylate.scores import colbert_scores

    model = models.ColBERT(str(directory), device="cpu")
    asked = [torch.as_tensor(x) for x in model.encode(queries, is_query=True)]
    read = [torch.as_tensor(x) for x in model.encode(passages, is_query=False)]
    lengths = np.array([len(x) for x in read])
    scores = np.zeros((len(queries), len(passages)))
    for length in set(lengths.tolist()):
        # Passages of one length need no padding, whose zeros would count where cosines are below 0.
        places = np.flatnonzero(lengths == length)
        block = torch.stack([read[place] for place in places])
        for row, query in enumerate(asked):
            scores[row, places] = colbert_scores(query[None], block)[0].numpy()
    return scores


def check(directory, name):
    """Print a row for each language; exit status 1 if one is not the same."""
    texts = json.loads((directory / "texts.json").read_text())
    search = {"sentence-transformers": sentence_transformers, "pylate": pylate}[name]
    asked = [query for ours in texts["languages"].values() for query in ours["queries"]]
    every = search(directory / "model", asked, texts["passages"])
    wrong = 0
    for language, ours in texts["languages"].items():
        own, every = every[: len(ours["queries"])], every[len(ours["queries"]) :]
        same = tied = 0
        most = 0.0
        for theirs, rows, scores in zip(own, ours["rows"], ours["scores"], strict=True):
            order = (-theirs).argsort(kind="stable")[:_DEPTH]
            same += order.tolist() == rows
            # The n-th best of ours has the n-th best score there.
            tied += bool((abs(theirs[rows] - theirs[order]) <= _TIE).all())
            most = max(most, float(abs(theirs[rows] - scores).max()))
        count = len(ours["queries"])
        wrong += tied < count
        cells = f"{same} of {count} | {tied} of {count} | {most:.1e}"
        print(f"| {name} {version(name)} | {language} | {cells} |", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    command, place, other = sys.argv[1:]
    sys.exit(write(Path(place), Path(other)) if command == "write" else check(Path(place), other))
