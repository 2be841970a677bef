"""The step: what is encoded together, what tasks add up to, and what the mesh does where."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from clir_jax.mesh import make_mesh, put_rows, shardings
from clir_jax.models.encoder import EncoderConfig
from clir_jax.models.requests import EncodePassage, EncodeQuery, Tokens
from clir_jax.models.retriever import LateInteraction, Retriever
from clir_jax.objectives.base import Batch
from clir_jax.objectives.contrastive import InfoNCE, PairwiseSoftmax
from clir_jax.training import step as module
from clir_jax.training.step import (
    Chunking,
    StepTask,
    TrainState,
    answer,
    make_gradient,
    make_train_step,
)
from tests.programs import collectives, loops_and_their_collectives


def _model(layers=2):
    config = EncoderConfig(
        vocab_size=51,
        hidden_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=24,
    )
    spec = LateInteraction(dimension=8, query_length=8, passage_length=16)
    return nnx.split(Retriever(spec, config, rngs=nnx.Rngs(0)))


def _tokens(rng, *shape):
    used = np.arange(shape[-1]) < rng.integers(2, shape[-1] + 1, shape[:-1])[..., None]
    return Tokens(rng.integers(5, 51, shape).astype(np.int32), used, used)


def _batch(rng, rows=16):
    requests = {
        "query": EncodeQuery(_tokens(rng, rows, 6)),
        "passages": EncodePassage(_tokens(rng, rows, 2, 10)),
    }
    ids = np.arange(rows * 2, dtype=np.int32).reshape(rows, 2)
    labels = {"ranking.passage_ids": ids, "ranking.known": ids[:, :1]}
    return Batch(requests, {}, np.ones(rows, np.float32), labels)


def test_requests_of_one_width_are_one_call_and_answers_are_those_of_each_alone(monkeypatch):
    rng = np.random.default_rng(0)
    graphdef, params = _model()
    requests = {
        "a": EncodeQuery(_tokens(rng, 4, 6)),
        "b": EncodePassage(_tokens(rng, 4, 3, 6)),
        "c": EncodePassage(_tokens(rng, 4, 10)),
    }
    calls = []
    plain = module.map_rows

    def counted(f, rows, *args, **kwargs):
        calls.append(rows[0][0].shape)
        return plain(f, rows, *args, **kwargs)

    monkeypatch.setattr(module, "map_rows", counted)
    told = jax.jit(lambda p, r: answer(graphdef, p, r, None, Chunking()))(params, requests)
    assert sorted(calls) == [(4, 10), (16, 6)]
    model = jax.jit(lambda params, request: nnx.merge(graphdef, params)(request))
    for name, request in requests.items():
        flat = jax.tree.map(lambda x: jnp.asarray(x.reshape(-1, x.shape[-1])), request)
        alone = model(params, flat).vectors.reshape(*request.tokens.ids.shape, 8)
        np.testing.assert_allclose(told[name].vectors, alone, atol=1e-5)
        np.testing.assert_array_equal(told[name].mask, request.tokens.keep)


def test_tasks_add_up_by_weight():
    rng = np.random.default_rng(1)
    graphdef, params = _model()
    batch = jax.tree.map(jnp.asarray, _batch(rng))
    tasks = {"a": StepTask(InfoNCE(), 2.0), "b": StepTask(PairwiseSoftmax(), 0.5)}

    def alone(name, place):
        def loss(params):
            # Place: a request's dropout seed comes from its place among all requests.
            asked = {(i, n): r for i in range(2) for n, r in batch.student.items()}
            key = jax.random.fold_in(jax.random.key(3), 4)
            told = answer(graphdef, params, asked, key, Chunking())
            mine = {n: told[place, n] for n in batch.student}
            return tasks[name].objective.loss(mine, {}, batch)[0]

        return jax.jit(jax.value_and_grad(loss))(params)

    gradient = jax.jit(make_gradient(graphdef, {}, tasks, seed=3, chunking=Chunking()))
    got, metrics = gradient(params, {}, {"a": batch, "b": batch}, jnp.asarray(4, jnp.int32))
    (loss_a, gradient_a), (loss_b, gradient_b) = alone("a", 0), alone("b", 1)
    np.testing.assert_allclose(metrics["loss"], 2 * loss_a + 0.5 * loss_b, rtol=1e-5)
    np.testing.assert_allclose(metrics["a/loss"], loss_a, rtol=1e-5)
    expected = jax.tree.map(lambda a, b: 2 * a + 0.5 * b, gradient_a, gradient_b)
    difference = optax.tree.norm(jax.tree.map(jnp.subtract, got, expected))
    assert float(difference) < 1e-5 * float(optax.tree.norm(expected))


def test_a_step_updates_counts_and_donates():
    rng = np.random.default_rng(2)
    graphdef, params = _model()
    optimizer = optax.sgd(0.1)
    tasks = {"ir": StepTask(InfoNCE())}
    step = make_train_step(graphdef, {}, tasks, optimizer, seed=0, chunking=Chunking())
    gradient = jax.jit(make_gradient(graphdef, {}, tasks, seed=0, chunking=Chunking()))
    batches = {"ir": jax.tree.map(jnp.asarray, _batch(rng))}
    direction, _ = gradient(params, {}, batches, jnp.asarray(0, jnp.int32))
    expected = jax.tree.map(lambda p, g: np.asarray(p - 0.1 * g), params, direction)
    state = TrainState(params, optimizer.init(params), jnp.asarray(0, jnp.int32))
    new, metrics = jax.jit(step, donate_argnums=0)(state, {}, batches)
    assert int(new.step) == 1
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), new.params, expected)
    np.testing.assert_allclose(metrics["grad_norm"], optax.tree.norm(direction), rtol=1e-5)
    assert jax.tree.leaves(state.params)[0].is_deleted()


@pytest.mark.parametrize("sizes", [(8, 1, 1), (1, 8, 1)])
def test_devices_talk_outside_the_chunks_only(sizes):
    """Gathered once, reduced once: a collective in the chunk loop would be paid for every chunk."""
    rng = np.random.default_rng(3)
    mesh = make_mesh(*sizes)
    with jax.set_mesh(mesh):
        graphdef, params = _model()
        place = shardings(params, mesh)
        params = jax.device_put(params, place)
        gradient = make_gradient(
            graphdef, {}, {"ir": StepTask(InfoNCE())}, seed=0, chunking=Chunking(20)
        )
        jitted = jax.jit(gradient, out_shardings=(place, NamedSharding(mesh, P())))
        batches = {"ir": put_rows(_batch(rng), mesh)}
        lowered = jitted.lower(params, {}, batches, jnp.asarray(0, jnp.int32))
        program = lowered.compile().as_text()
    loops, inside = loops_and_their_collectives(program)
    assert loops > 0
    assert collectives(program)
    assert inside == []
