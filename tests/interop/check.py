"""Compare another library's vectors of an export with this library's; runs without this library.

``python check.py DIRECTORY LIBRARY ...`` where ``write.py`` has written; a row for each case, and
exit status 1 if one is not the same, or nothing was compared.
"""

import json
import os
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np

LEAST = 0.9999
# Scores nearer to each other than this may change places.
_TIE = 1e-4


def sentence_transformers(directory, kind):
    """``SentenceTransformer``, or ``MultiVectorEncoder`` of version 6."""
    import sentence_transformers as library

    name = "SentenceTransformer" if kind == "dense" else "MultiVectorEncoder"
    model = getattr(library, name)(str(directory), device="cpu")
    return model.encode_query, model.encode_document


def pylate(directory, kind):
    """PyLate's ``ColBERT``."""
    from pylate import models

    model = models.ColBERT(str(directory), device="cpu")
    return (
        lambda texts: model.encode(texts, is_query=True),
        lambda texts: model.encode(texts, is_query=False),
    )


def colbert(directory, kind):
    """Stanford's ``Checkpoint``."""
    import torch
    from colbert.infra import ColBERTConfig
    from colbert.modeling.checkpoint import Checkpoint
    from colbert.modeling.colbert import ColBERT

    ColBERT.loaded_extensions = True  # compiled code, for an index only
    config = ColBERTConfig.load_from_checkpoint(str(directory))
    model = Checkpoint(str(directory), colbert_config=config, verbose=0)

    def passages(texts):
        with torch.no_grad():
            tokens = model.doc_tokenizer.tensorize(texts)
            vectors, mask = model.doc(*tokens, keep_dims="return_mask")
        return [v[m[:, 0]] for v, m in zip(vectors, mask, strict=True)]

    return model.queryFromText, passages


def snippet(directory, kind):
    """The code of the model card, run where it says."""
    code = (directory / "README.md").read_text().split("```python\n")[1].split("```")[0]
    before = Path.cwd()
    os.chdir(directory)
    try:
        names = {}
        exec(code, names)
    finally:
        os.chdir(before)
    encode = names["encode"]
    return lambda texts: encode(texts, "query"), lambda texts: encode(texts, "passage")


LIBRARIES = {
    "sentence-transformers": (sentence_transformers, ["sentence-transformers"]),
    "sentence-transformers 6": (
        sentence_transformers,
        ["sentence-transformers", "pylate", "colbert"],
    ),
    "pylate": (pylate, ["pylate", "colbert"]),
    "colbert-ai": (colbert, ["colbert"]),
    "transformers": (snippet, ["transformers"]),
    "onnxruntime": (snippet, ["onnx"]),
}


def main(directory, *libraries):
    """Print a table; exit status 1 if any vector or ranking differs, or a library has no row."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    texts = json.loads((directory / "texts.json").read_text())
    cases = json.loads((directory / "cases.json").read_text())
    if not libraries:
        print("error: no library is named, so nothing was compared", file=sys.stderr)
        return 1
    wrong = 0
    for library in libraries:
        load, layouts = LIBRARIES[library]
        own = [case for case in cases if case["layout"] in layouts]
        if not own:
            where = f"no case in {directory / 'cases.json'} is for {library}"
            print(f"error: {where}, so nothing was compared", file=sys.stderr)
            wrong += 1
        for case in own:
            row, same = compare(directory, case, texts, load)
            wrong += not same
            name = library.split(" ")[0]
            print(f"| {name} {version(name)} | {row} |", flush=True)
    return 1 if wrong else 0


def compare(directory, case, texts, load):
    """Load a case's export and compare: the row of the table, and whether all is the same."""
    ours = np.load(directory / f"{case['name']}.npz")
    queries, passages = load(directory / f"{case['name']}-{case['layout']}", case["kind"])
    compared = np.ones(len(texts["passages"]), bool)
    if case["layout"] == "colbert":
        compared = ours["alike"]
    theirs = {
        "queries": _arrays(queries(texts["queries"])),
        "passages": _arrays(passages(texts["passages"])),
    }
    kept = {
        side: [v[m] for v, m in zip(ours[side], ours[f"{side}_mask"], strict=True)]
        for side in theirs
    }
    for given in (theirs, kept):
        given["passages"] = [v for v, yes in zip(given["passages"], compared, strict=True) if yes]
    cosines = {side: _cosine(theirs[side], kept[side]) for side in theirs}
    ranked = _same_order(*(_scores(g["queries"], g["passages"]) for g in (theirs, kept)))
    same = ranked and compared.any() and min(cosines.values()) >= LEAST
    counted = f"{compared.sum()} of {len(compared)}"
    figures = " | ".join(f"{cosines[side]:.6f}" for side in ("queries", "passages"))
    cells = [case["layout"], case["backbone"], case["kind"], figures, counted]
    return " | ".join([*cells, "same" if ranked else "OTHER"]), same


def _cosine(theirs, ours):
    """The least cosine of two vectors in the same place; -1 if there is none for one of them.

    Their numbers differ, or a vector is zero or not finite: NaN would be below no threshold.
    """
    least = 1.0
    for a, b in zip(theirs, ours, strict=True):
        a, b = np.atleast_2d(np.asarray(a, np.float64)), np.atleast_2d(np.asarray(b, np.float64))
        if a.shape != b.shape:
            return -1.0
        norms = np.linalg.norm([a, b], axis=-1)
        if not (np.isfinite(norms) & (norms > 0)).all():
            return -1.0
        least = min(least, float((np.sum(a * b, axis=-1) / norms.prod(axis=0)).min()))
    return least


def _scores(queries, passages):
    """MaxSim; of one vector a text, the dot product."""
    as_rows = [[np.atleast_2d(v) for v in texts] for texts in (queries, passages)]
    return np.array([[(q @ p.T).max(1).sum() for p in as_rows[1]] for q in as_rows[0]])


def _same_order(theirs, ours):
    for a, b in zip(theirs, ours, strict=True):
        order = np.argsort(-b)
        # NaN is above nothing, so that a row of it would seem to be in order.
        if not (np.isfinite([a, b]).all() and (np.diff(a[order]) <= _TIE).all()):
            return False
    return True


def _arrays(vectors):
    return [v.float().numpy() if hasattr(v, "numpy") else np.asarray(v) for v in vectors]


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).absolute(), *sys.argv[2:]))
