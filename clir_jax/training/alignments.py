"""A picture of what a stage that aligns tokens has learned: the plan between a sentence pair."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from clir_jax.config import Run, Stage
from clir_jax.data.records import Bitext
from clir_jax.data.tokenization import RequestTokenizer
from clir_jax.evaluation.pictures import Plan
from clir_jax.files import read_json, write_text
from clir_jax.mesh import on_host, put_whole, row_shards
from clir_jax.models.formats import LoadedRetriever
from clir_jax.models.requests import Embeddings, EncodeQuery
from clir_jax.objectives.alignment import TokenAlignmentDistillation
from clir_jax.ops.distance import cosine_cost
from clir_jax.ops.transport import marginals

FILE = "alignment.json"
# The pair that is drawn: the first of these records that a person takes in at a glance.
_LOOKED_AT = 500
_WORDS = range(5, 12)


def draw(
    run: Run, stage: Stage, label: str, directory: Path, mesh: Mesh, student: Any, teachers: Any
) -> None:
    """Save the plan of one pair of the first task that aligns tokens, if one does.

    Args:
      run: the run, for its data root.
      stage: the stage.
      label: its name in the report.
      directory: the stage's ``evaluation/``.
      mesh: the mesh that the parameters are on.
      student: the ``LoadedRetriever`` after training.
      teachers: ``LoadedRetriever`` by name.
    """
    for task in stage.tasks:
        if isinstance(task.objective, TokenAlignmentDistillation):
            records: Any = task.sources["bitext"].open(run.data_root)
            pair = _readable(records)
            title = f"{label}: student in rows, teacher in columns"
            plan = _plan(task.objective, title, pair, mesh, student, teachers["teacher"])
            text = json.dumps(dataclasses.asdict(plan) | {"plan": np.asarray(plan.plan).tolist()})
            if jax.process_index() == 0:
                write_text(directory / FILE, text)
            return


def read(run_dir: Path) -> list[Plan]:
    """The plans that the stages of a run saved."""
    files = sorted(run_dir.glob(f"stages/*/evaluation/{FILE}"))
    values = [read_json(file, dict, "remove it, and the report shows no picture") for file in files]
    return [Plan(**(value | {"plan": np.asarray(value["plan"])})) for value in values]


def _readable(records: Any) -> Bitext:
    shown: list[Bitext] = [records[i] for i in range(min(_LOOKED_AT, len(records)))]
    short = (r for r in shown if len(r.english.split()) in _WORDS and len(r.other) < 90)
    return next(short, shown[0])


def _plan(
    objective: TokenAlignmentDistillation,
    title: str,
    pair: Bitext,
    mesh: Mesh,
    student: LoadedRetriever,
    teacher: LoadedRetriever,
) -> Plan:
    x, x_pieces = _content(student, pair.other, objective, mesh)
    y, y_pieces = _content(teacher, pair.english, objective, mesh)

    def solve(x: Embeddings, y: Embeddings) -> Any:
        # Every token weighs the same here: a picture of single tokens, whatever the marginals.
        cost = cosine_cost(jnp.asarray(x.vectors), jnp.asarray(y.vectors))
        masks = jnp.asarray(x.mask), jnp.asarray(y.mask)
        return objective.plan(cost, marginals(masks[0]), marginals(masks[1]))

    with jax.set_mesh(mesh):
        plan = on_host(jax.jit(solve)(x, y))
    rows, columns = np.flatnonzero(np.asarray(x.mask)[0]), np.flatnonzero(np.asarray(y.mask)[0])
    kept = np.asarray(plan)[0][np.ix_(rows, columns)]
    return Plan(kept, x_pieces, y_pieces, title)


def _content(
    model: LoadedRetriever, text: str, objective: TokenAlignmentDistillation, mesh: Mesh
) -> tuple[Any, list[str]]:
    """Vectors of a text's own pieces, and the pieces; as many copies as the mesh has row shards."""
    tokenizer = RequestTokenizer(model.tokenizer, model.spec, skiplist=model.skiplist)
    texts = [text] * row_shards(mesh)
    request = tokenizer.tokenize(EncodeQuery, texts, content=True, length=objective.length)
    with jax.set_mesh(mesh):
        out = jax.jit(
            lambda params, r: nnx.merge(model.graphdef, params)(r, layer=objective.layer)
        )(model.params, put_whole(request, mesh))
    tokens = request.tokens
    return on_host(out), tokenizer.pieces(tokens.ids[0][tokens.keep[0]].tolist())
