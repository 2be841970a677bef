"""Write every export of every backbone, and the vectors that this library makes of some texts.

``python -m tests.interop.write DIRECTORY``; ``check.py`` compares them in another environment.
"""

import functools
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from clir_jax.data.tokenization import RequestTokenizer
from clir_jax.models.exports import LAYOUTS, export
from clir_jax.models.foreign import stanford_skiplist
from clir_jax.models.formats import LoadedRetriever
from clir_jax.models.requests import Embeddings, EncodePassage, EncodeQuery, Tokens
from clir_jax.models.retriever import LateInteraction
from tests.interop.backbones import BACKBONES, PASSAGES, QUERIES, SPECS, minilm, tiny


def layouts_of(model: LoadedRetriever, layouts: Sequence[str]) -> list[str]:
    """Those of ``layouts`` that can say what a model does."""
    others = ("sentence-transformers",)
    if isinstance(model.spec, LateInteraction):
        others = ("pylate", "colbert") if model.spec.query_marker else ("pylate",)
    return [name for name in layouts if name in ("transformers", "onnx", *others)]


def vectors(model: LoadedRetriever) -> dict[str, np.ndarray]:
    """What this library makes of the texts: vectors, and which of them count.

    Args:
      model: the retriever, with one tower.

    Returns:
      ``queries [Q, T, E]``, ``passages [P, T, E]`` and their ``_mask``; ``alike [P]`` tells which
      passages have no token that Stanford's list of punctuation has and the model's has not, or
      the other way round.
    """
    tokenizer = RequestTokenizer(model.tokenizer, model.spec, skiplist=model.skiplist)
    asked = [
        tokenizer.tokenize(kind, texts).tokens
        for kind, texts in ((EncodeQuery, QUERIES), (EncodePassage, PASSAGES))
    ]
    width, pad = asked[1].ids.shape[1], model.tokenizer.id("pad")
    # One call for both: queries are passages with other tokens, masks and markers.
    parts = [[_wide(getattr(t, n), width, pad) for t in asked] for n in ("ids", "mask", "keep")]
    out = _answer(model.graphdef, model.params, Tokens(*map(np.concatenate, parts)))
    found = {}
    for side, rows in (("queries", slice(len(QUERIES))), ("passages", slice(len(QUERIES), None))):
        found |= {side: out.vectors[rows], f"{side}_mask": out.mask[rows]}
    if isinstance(model.spec, LateInteraction):
        other = set(stanford_skiplist(model.tokenizer)) ^ set(model.skiplist)
        length = model.spec.passage_length - 3
        pieces = model.tokenizer.encode(PASSAGES)
        found["alike"] = np.array([not other & set(ids[:length]) for ids in pieces])
    return {name: np.asarray(value) for name, value in found.items()}


@functools.partial(jax.jit, static_argnums=0)
def _answer(graphdef: Any, params: Any, tokens: Tokens) -> Embeddings:
    return nnx.merge(graphdef, params)(EncodePassage(tokens))


def _wide(x: np.ndarray, width: int, pad: int) -> np.ndarray:
    fill = pad if x.dtype == np.int32 else False
    return np.pad(x, ((0, 0), (0, width - x.shape[1])), constant_values=fill)


def write(
    directory: Path, backbones: Sequence[str], layouts: Sequence[str], kinds: Sequence[str]
) -> list[dict]:
    """Write ``texts.json``, exports and vectors; the cases that there are.

    Args:
      directory: exists.
      backbones: of ``BACKBONES``, and ``MiniLM``.
      layouts: of ``LAYOUTS``; those that cannot say what a model does are left out.
      kinds: of ``SPECS``.
    """
    texts = {"queries": QUERIES, "passages": PASSAGES}
    (directory / "texts.json").write_text(json.dumps(texts))
    cases = []
    for backbone in backbones:
        for kind in kinds:
            model = minilm(kind) if backbone == "MiniLM" else tiny(backbone, SPECS[kind])
            name = f"{backbone}-{kind}".replace(" ", "-").replace(",", "")
            np.savez(directory / f"{name}.npz", **vectors(model))
            for layout in layouts_of(model, layouts):
                remarks = export(model, layout, directory / f"{name}-{layout}", name)
                case = {"backbone": backbone, "kind": kind, "layout": layout, "name": name}
                cases.append(case | {"remarks": remarks})
    return cases


def main(directory: Path) -> None:
    """Write everything, ``cases.json`` too."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    cases = write(directory, (*BACKBONES, "MiniLM"), tuple(LAYOUTS), tuple(SPECS))
    (directory / "cases.json").write_text(json.dumps(cases, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
