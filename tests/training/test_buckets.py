"""Training on buckets is training: what a batch teaches does not depend on how wide it is."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from clir_jax.data.pipeline import task_dataset
from clir_jax.models.encoder import EncoderConfig
from clir_jax.models.requests import Tokens
from clir_jax.models.retriever import Retriever
from clir_jax.objectives.alignment import TokenAlignmentDistillation
from clir_jax.objectives.base import Batch
from clir_jax.objectives.contrastive import PairwiseSoftmax
from clir_jax.training.step import Chunking, StepTask, TrainState, answer, make_train_step
from tests.data import short_texts

N, FULL = 30, 24
# One side, which is half the time to compile; the teacher reads the other.
TRANSPORT = TokenAlignmentDistillation(length=FULL, query_weight=1.0)


def model(seed, dropout=0.0):
    config = EncoderConfig(
        vocab_size=len(short_texts.SPECIAL) + len(short_texts.WORDS),
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=32,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        dtype="float64",
    )
    return nnx.split(Retriever(short_texts.SPEC, config, rngs=nnx.Rngs(seed)))


def dataset(objective, sources, **options):
    tokenizers = {name: short_texts.tokenizer() for name in ("student", "teacher")}
    return task_dataset(
        objective.student,
        objective.teacher,
        sources,
        tokenizers,
        seed=0,
        token_labels=objective.token_labels,
        **options,
    )


def widened(batch):
    """The same batch, every text padded to its full length."""
    pad = short_texts.tokenizer().tokenizer.id("pad")

    def wide(x, fill=0):
        spare = FULL - x.shape[-1]
        return np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, spare)], constant_values=fill)

    def tokens(t):
        return Tokens(wide(t.ids, pad), wide(t.mask), wide(t.keep))

    sides = jax.tree.map(
        tokens, (batch.student, batch.teacher), is_leaf=lambda x: isinstance(x, Tokens)
    )
    labels = {k: wide(v) if k.count(".") == 2 else v for k, v in batch.labels.items()}
    return Batch(*sides, batch.weight, labels)


def test_an_epoch_of_buckets_ends_where_the_same_batches_at_full_width_end(tmp_path):
    opened, _ = short_texts.bitext(tmp_path, N)
    batches = dataset(TRANSPORT, {"bitext": opened}, batch_size=8, buckets=2)
    epoch = [Batch(**batches[step]) for step in range(4)]
    assert len({batch.student["other"].tokens.ids.shape for batch in epoch}) == 2
    assert sum(int(batch.weight.sum()) for batch in epoch) == N
    with jax.enable_x64(True):
        graphdef, params = model(0, dropout=0.2)
        teacher = model(1)
        optimizer = optax.sgd(1.0, momentum=0.9)
        step = jax.jit(
            make_train_step(
                graphdef, {"teacher": teacher[0]}, {"task": StepTask(TRANSPORT)}, optimizer,
                seed=3, chunking=Chunking(),
            )
        )  # fmt: skip

        def trained(epoch):
            state = TrainState(params, optimizer.init(params), jnp.asarray(0, jnp.int32))
            for batch in epoch:
                state, _ = step(state, {"teacher": teacher[1]}, {"task": batch})
            return jax.tree.leaves(jax.device_get(state.params))

        narrow, wide = trained(epoch), trained([widened(batch) for batch in epoch])
        moved = 0.0
        for one, other, start in zip(narrow, wide, jax.tree.leaves(params), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-10)
            moved = max(moved, np.abs(one - np.asarray(start)).max())
        assert moved > 1e-2


@pytest.mark.parametrize("objective", [TRANSPORT, PairwiseSoftmax()], ids=["bitext", "rankings"])
def test_the_losses_of_an_epoch_are_those_without_buckets(tmp_path, objective):
    if objective is TRANSPORT:
        sources = {"bitext": short_texts.bitext(tmp_path, N)[0]}
    else:
        sources = {"ranking": short_texts.rankings(tmp_path, N, positives=1, translated=False)[0]}
    bucketed = dataset(objective, sources, batch_size=8, buckets=2, passages=3)
    plain = dataset(objective, sources, batch_size=10, passages=3)
    with jax.enable_x64(True):
        graphdef, params = model(0)

        @jax.jit
        def loss(batch):
            student, teacher = (
                answer(graphdef, params, asked, None, Chunking())
                for asked in (batch.student, batch.teacher)
            )
            return objective.loss(student, teacher, batch)[0]

        def total(batches, steps):
            epoch = [Batch(**batches[step]) for step in range(steps)]
            widths = {tuple(x.shape for x in jax.tree.leaves(batch.student)) for batch in epoch}
            return sum(float(loss(b)) * float(b.weight.sum()) for b in epoch), len(widths)

        expected, one = total(plain, 3)
        got, two = total(bucketed, 4)
    assert (one, two) == (1, 2)
    assert expected > 0.1
    np.testing.assert_allclose(got, expected, rtol=1e-10)
