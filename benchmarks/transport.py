"""Time the two solvers of optimal transport: `python benchmarks/transport.py --rows 32`.

Each line is one shape and one pair of solver options: milliseconds of one plan and of the loss with
its gradient (the best of several calls, after compilation), and the mass by which the two plans
differ. Vectors are noisy copies of each other in another order, as translations are after some
training; random vectors converge faster and flatter the solvers.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clir_jax.ops.distance import cosine_cost
from clir_jax.ops.transport import SOLVERS, marginals, transport_plan


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--threshold", type=float, default=1e-3)
    parser.add_argument("--repeats", type=int, default=10)
    arguments = parser.parse_args()
    print(f"{jax.devices()[0].device_kind}, {arguments.rows} rows, threshold {arguments.threshold}")
    columns = [f"{name} {what}" for what in ("plan", "loss+grad") for name in SOLVERS]
    print("tokens  epsilon  iterations  " + "  ".join(columns) + "  (ms)  plans differ by")
    for tokens in (32, 64):
        x, y, a, b = _pairs(arguments.rows, tokens)
        for epsilon in (0.05, 0.1):
            for iterations in (50, 100):
                options = {
                    "epsilon": epsilon,
                    "iterations": iterations,
                    "threshold": arguments.threshold,
                }
                times, plans = [], []
                for solver in SOLVERS:
                    plan = jax.jit(_plan(options | {"solver": solver}))
                    times.append(_milliseconds(plan, arguments.repeats, x, y, a, b))
                    plans.append(plan(x, y, a, b))
                for solver in SOLVERS:
                    gradient = jax.jit(jax.value_and_grad(_loss(options | {"solver": solver})))
                    times.append(_milliseconds(gradient, arguments.repeats, x, y, a, b))
                shown = "  ".join(f"{t:{len(c)}.2f}" for t, c in zip(times, columns, strict=True))
                apart = float(jnp.abs(plans[0] - plans[1]).sum(axis=(1, 2)).max())
                print(f"{tokens:6}  {epsilon:7}  {iterations:10}  {shown}        {apart:.1e}")


def _plan(options: dict[str, Any]) -> Callable[..., jax.Array]:
    return lambda x, y, a, b: transport_plan(cosine_cost(x, y), a, b, **options)


def _loss(options: dict[str, Any]) -> Callable[..., jax.Array]:
    def loss(x: jax.Array, y: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
        cost = cosine_cost(x, y)
        return (cost * transport_plan(cost, a, b, **options)).sum()

    return loss


def _pairs(rows: int, tokens: int) -> tuple[jax.Array, ...]:
    rng = np.random.default_rng(0)
    y = rng.normal(size=(rows, tokens, 128)) / np.sqrt(128)
    order = np.argsort(rng.random((rows, tokens)), axis=1)
    x = np.take_along_axis(y, order[:, :, None], axis=1) + 0.08 * rng.normal(size=y.shape)
    lengths = rng.integers(tokens // 4, tokens + 1, size=(2, rows, 1))
    a, b = (marginals(jnp.asarray(np.arange(tokens) < n)) for n in lengths)
    return jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32), a, b


def _milliseconds(f: Callable[..., Any], repeats: int, *arguments: jax.Array) -> float:
    jax.block_until_ready(f(*arguments))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(f(*arguments))
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)


if __name__ == "__main__":
    main()
