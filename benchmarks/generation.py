"""Time the writing of questions: `python benchmarks/generation.py --model small --rows 8`.

Each line is one way to choose tokens: tokens per second with the keys and values of earlier tokens
kept, and with the whole text read again for every token, which is how the cache's results are
checked. Without the cache, the source is still encoded once, and every token reads all `--length`
places of the text, as a compiled loop has to. Weights are random, and no text ends before its last
token, so every row writes `--length` tokens.
"""

import argparse
import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from clir_jax.models.generator import (
    Beam,
    Decoding,
    Generator,
    GeneratorModel,
    Greedy,
    Sample,
    generate,
    search,
)
from clir_jax.models.requests import Tokens
from clir_jax.models.t5 import T5Config
from clir_jax.models.t5_files import load_t5_config
from clir_jax.ops.decoding import Written

_TINY = T5Config(vocab_size=4096, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4)
MODELS = {"tiny": _TINY, "small": load_t5_config("google/mt5-small")}
WAYS: dict[str, Decoding] = {
    "greedy": Greedy(),
    "sample top_k=10": Sample(top_k=10),
    "beam 4": Beam(beams=4),
}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=MODELS, default="tiny")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--source", type=int, default=128, help="tokens a prompt")
    parser.add_argument("--length", type=int, default=32, help="tokens a question")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-uncached", action="store_true", help="time the cache only")
    arguments = parser.parse_args()
    config = load(arguments.model, arguments.dtype)
    spec = Generator(source_length=arguments.source, target_length=arguments.length)
    make = jax.jit(lambda: nnx.split(GeneratorModel(spec, config, rngs=nnx.Rngs(0)))[1])
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: GeneratorModel(spec, config, rngs=nnx.Rngs(0))))
    params, source = make(), _prompts(arguments.rows, arguments.source, config.vocab_size)
    ids = jnp.arange(arguments.rows, dtype=jnp.uint32)
    kind = jax.devices()[0].device_kind
    print(
        f"{kind}, {arguments.model} {arguments.dtype}, {arguments.rows} rows, "
        f"{arguments.source} tokens read, {arguments.length} written"
    )
    print("decoding          cached tokens/s  uncached tokens/s  faster by")
    for name, decoding in WAYS.items():
        rates = []
        for run in (generate, uncached)[: 1 if arguments.no_uncached else 2]:
            written = jax.jit(functools.partial(run, graphdef, decoding=decoding))
            taken = _seconds(written, arguments.repeats, params, source, ids)
            rates.append(arguments.rows * arguments.length / taken)
        ratio = f"{rates[0] / rates[-1]:8.1f} x" if len(rates) > 1 else ""
        shown = "".join(f"{rate:19,.0f}" for rate in rates)
        print(f"{name:15}{shown}{ratio}")


def load(name: str, dtype: str) -> T5Config:
    """A model whose end token is one that its random weights do not choose in time."""
    config = MODELS[name]
    return dataclasses.replace(config, dtype=dtype, eos_token_id=config.vocab_size - 1)


def uncached(
    graphdef: Any, params: Any, source: Tokens, row_ids: jax.Array, decoding: Decoding
) -> Written:
    """``generate``, but every token reads the whole text again."""
    model = nnx.merge(graphdef, params)
    t5, config, length = model.t5, model.t5.config, model.spec.target_length
    beams = decoding.beams if isinstance(decoding, Beam) else 1
    mask = jnp.repeat(source.mask, beams, axis=0)
    encoded = jnp.repeat(t5.encode(source.ids, source.mask), beams, axis=0)

    def step(tokens: jax.Array, place: jax.Array, state: None) -> tuple[jax.Array, None]:
        flat = tokens[:, :, :-1].reshape(-1, length)
        hidden = jax.lax.dynamic_slice_in_dim(t5.decode(flat, encoded, mask), place, 1, axis=1)
        return t5.logits(hidden).reshape(*tokens.shape[:2], -1), state

    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(row_ids)
    rows = source.ids.shape[0]
    return search(step, None, lambda none, _: none, rows, length, config, decoding, keys)


def _prompts(rows: int, tokens: int, vocabulary: int) -> Tokens:
    random = np.random.default_rng(0)
    mask = jnp.asarray(np.arange(tokens) < random.integers(tokens // 2, tokens + 1, (rows, 1)))
    ids = jnp.asarray(random.integers(3, vocabulary - 1, (rows, tokens)), jnp.int32)
    return Tokens(ids, mask, mask)


def _seconds(run: Callable[..., Written], repeats: int, *arguments: Any) -> float:
    jax.block_until_ready(run(*arguments))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(run(*arguments))
        times.append(time.perf_counter() - start)
    return min(times)


if __name__ == "__main__":
    main()
