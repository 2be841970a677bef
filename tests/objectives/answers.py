"""Answers of retrievers to test objectives on: random unit vectors, some of them left out."""

import jax
import jax.numpy as jnp
import numpy as np

from clir_jax.models.requests import Embeddings
from clir_jax.objectives.base import Batch


def embeddings(rng, *shape, width=4):
    """Unit vectors ``[*shape, width]``; the last axis of ``shape`` is tokens, the first counts."""
    x = rng.normal(size=(*shape, width))
    mask = (rng.random(shape) < 0.7) | (np.arange(shape[-1]) == 0)
    x = np.where(mask[..., None], x / np.linalg.norm(x, axis=-1, keepdims=True), 0)
    return Embeddings(x.astype(np.float32), mask)


def batch(weight, **labels):
    """A batch with ``ranking_passage_ids`` for the label ``ranking.passage_ids``."""
    named = {name.replace("_", ".", 1): np.asarray(values) for name, values in labels.items()}
    kinds = {name: np.float32 if name.endswith("scores") else np.int32 for name in named}
    labels = {name: values.astype(kinds[name]) for name, values in named.items()}
    return Batch({}, {}, np.float32(weight), labels)


def loss(objective, student, teacher, members):
    """The loss, its metrics and its gradient in the student's vectors, compiled."""
    vectors = {name: told.vectors for name, told in student.items()}

    def of(vectors, teacher, members):
        told = {name: Embeddings(x, jnp.asarray(student[name].mask)) for name, x in vectors.items()}
        return objective.loss(told, teacher, members)

    compiled = jax.jit(jax.value_and_grad(of, has_aux=True))
    (value, metrics), gradient = jax.device_get(compiled(vectors, teacher, members))
    return value, metrics, gradient


def max_sim(query, passages, b, c, n):
    """MaxSim of question b and passage n of list c, in float64."""
    own = np.float64(query.vectors[b][query.mask[b]])
    other = np.float64(passages.vectors[c, n][passages.mask[c, n]])
    return (own @ other.T).max(axis=1).sum()
