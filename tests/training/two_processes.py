"""What each of two processes does for test_processes.py, and one process does to compare."""

import dataclasses
import os
import signal
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from clir_jax.data.pipeline import task_dataset
from clir_jax.data.tokenization import RequestTokenizer
from clir_jax.evaluation.retrieval import TextEncoder, nearest
from clir_jax.mesh import make_mesh, on_host, put_rows, row_share, shardings
from clir_jax.models.retriever import Retriever
from clir_jax.objectives.base import Batch
from clir_jax.objectives.contrastive import InfoNCE
from clir_jax.processes import anywhere, by_first, join
from clir_jax.training.checkpoint import Checkpoints
from clir_jax.training.preemption import Preemption
from clir_jax.training.step import Chunking, StepTask, TrainState, make_gradient
from clir_jax.tree import paths
from tests.training.workshop import LATE, RANKINGS, WORDS, retriever, sentence

WORKING = "working"
DTYPES = ("float64", "float32")
KERNEL = np.arange(24.0, dtype=np.float32).reshape(8, 3)


def gradient(mesh, folder):
    """Loss and gradient of one batch by dtype, dropout on, and the questions of three batches."""
    loaded, task = retriever(), InfoNCE()
    rank, world = row_share(mesh)
    batches = task_dataset(
        task.student,
        task.teacher,
        {"ranking": RANKINGS.open(str(folder))},
        {"student": RequestTokenizer(loaded.tokenizer, LATE)},
        batch_size=8,
        seed=0,
        rank=rank,
        world=world,
        passages=2,
    )
    told = {"ids": np.stack([batches[n]["labels"]["ranking.query_id"] for n in range(3)])}
    for dtype in DTYPES:
        config = dataclasses.replace(
            loaded.encoder_config, dtype=dtype, hidden_dropout_prob=0.2, remat=False
        )
        with jax.enable_x64(dtype == "float64"), jax.set_mesh(mesh):
            graphdef, params = nnx.split(Retriever(LATE, config, rngs=nnx.Rngs(0)))
            params = jax.tree.map(lambda x, dtype=dtype: np.asarray(on_host(x), dtype), params)
            params = jax.device_put(params, shardings(params, mesh))
            tasks = {"ir": StepTask(task)}
            make = make_gradient(graphdef, {}, tasks, seed=0, chunking=Chunking(200))
            batch = put_rows(Batch(**batches[1]), mesh)
            found, metrics = jax.jit(make)(params, {}, {"ir": batch}, np.int32(1))
            leaves = paths(found).items()
            told |= {f"{dtype} gradient {path}": on_host(leaf) for path, leaf in leaves}
            told[f"{dtype} loss"] = on_host(metrics["loss"])
    return told


def search(mesh):
    """Scores and places of what a retriever finds."""
    rng = np.random.default_rng(0)
    passages = [f"{sentence(rng, 2, 14)} {word}" for word in WORDS]
    encoder = TextEncoder.of(retriever(mesh=mesh), mesh)
    queries = encoder.queries([sentence(rng, 1, 4) for _ in range(5)])
    scores, places = nearest(queries, encoder.passages(passages), 4, mesh)
    return {"scores": scores, "places": places}


def state(mesh, kernel):
    """A train state, split over fsdp; without ``kernel``, what a checkpoint is read onto."""
    weights = jax.device_put(KERNEL if kernel is None else kernel, NamedSharding(mesh, P("fsdp")))
    step = jax.device_put(jnp.int32(3), NamedSharding(mesh, P()))
    made = TrainState({"kernel": weights}, optax.EmptyState(), step)
    if kernel is not None:
        return made
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), made)


def agreements(index, folder):
    """What processes agree on, and what only the first does."""

    def fail():
        raise ValueError("the first one fails")

    told = {"anywhere": anywhere(index == 1), "nowhere": anywhere(False)}
    by_first(lambda: (folder / "first").write_text(str(index)))
    told["written"] = (folder / "first").read_text()
    try:
        by_first(fail)
    except ValueError:
        told["failed"] = "ValueError"
    except SystemExit as stopped:
        told["failed"] = f"SystemExit {stopped.code}"
    status = 0
    try:
        with Preemption() as preemption, preemption.after_steps():
            told["before"] = preemption.reached()
            if index == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            told["reached"] = preemption.reached()
    except SystemExit as stopped:
        status = stopped.code
    return told | {"status": status}


def wait_for_the_first(folder):
    """One works for longer than the test lasts; the other has joined, and waits for it."""

    def work():
        (folder / WORKING).touch()
        time.sleep(600)

    with Preemption():
        by_first(work)


def main(port, index, folder):
    """Join, and save what comes of all of it."""
    jax.config.update("jax_num_cpu_devices", 2)
    join(f"localhost:{port}", 2, index)
    mesh = make_mesh(fsdp=2)
    told = agreements(index, folder) | gradient(mesh, folder) | search(mesh)
    with Checkpoints(folder / "of-one") as checkpoints:
        restored, about = checkpoints.restore(3, state(mesh, None))
    told |= {"restored": on_host(restored.params["kernel"]), "about": about["n"]}
    with Checkpoints(folder / "of-two") as checkpoints:
        checkpoints.save(3, state(mesh, KERNEL + 1), {"n": 2}, None)
    np.savez(folder / f"{index}.npz", **told)
    wait_for_the_first(folder)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
