"""The training step: requests of all tasks answered in chunks, objectives summed, one update.

The step sees arrays only. It does not know which objective it runs, and objectives do not know of
chunks, devices or dropout keys, so each of these is exact for all of the others.
"""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, UInt32

from clir_jax.mesh import row_shards, rowwise
from clir_jax.models.requests import Output, Request, Tokens, pytree
from clir_jax.objectives.base import Batch, Objective
from clir_jax.ops.chunking import map_rows

Encode = Literal["gather_once", "per_layer"]
Requests = Mapping[Any, Request]
Metrics = dict[str, Any]


@pytree
class TrainState:
    """What a step changes and a checkpoint holds.

    Args:
      params: the parameters.
      opt: the optimizer's state.
      step: batches seen.
      average: a moving average of the parameters, where one is kept.
      rate: what evaluations multiply the learning rate by, where they may.
    """

    params: Any
    opt: Any
    step: Int[Array, ""]
    average: Any = None
    rate: Float[Array, ""] | None = None

    @property
    def result(self) -> Any:
        """The parameters to evaluate and to save: the average, where one is kept."""
        return self.params if self.average is None else self.average


@dataclasses.dataclass(frozen=True)
class StepTask:
    """A task as the step knows it: its objective and its weight in the sum."""

    objective: Objective
    weight: float = 1.0


@dataclasses.dataclass(frozen=True)
class Chunking:
    """How requests are cut to fit memory; changes no result.

    Args:
      tokens_per_chunk: tokens encoded at once on each device; None encodes everything at once.
      encode: ``"gather_once"`` gives every device the whole parameters for the step and lets it
        encode its own rows; ``"per_layer"`` leaves placement to the compiler, which gathers one
        layer at a time, for models too big to gather.
    """

    tokens_per_chunk: int | None = None
    encode: Encode = "gather_once"


def answer(
    graphdef: Any,
    params: Any,
    requests: Requests,
    key: Array | None,
    chunking: Chunking,
    layers: Mapping[Any, int] = {},
) -> dict[Any, Output]:
    """Let one model answer many requests at once.

    Requests that one tower serves in one width are concatenated and encoded together, in chunks of
    ``chunking.tokens_per_chunk`` tokens a device whose intermediates are computed again in the
    backward pass.

    Args:
      graphdef: the model's structure, from ``nnx.split``.
      params: its parameters.
      requests: requests ``[B, ..., T]`` by name; B divisible by the mesh's row shards.
      key: the step's random key for dropout; None switches dropout off. Every row has its own seed,
        from its request's place in ``requests`` and its own place in the request, so chunks and
        devices do not change its mask.
      chunking: how to cut.
      layers: the layer that answers, for requests that ask one; without dropout or gradient.

    Returns:
      The outputs ``[B, ..., ...]``, by the same names.
    """
    names = sorted(requests)  # as jit sorts the keys of its arguments: seeds go by place
    seeds = [
        None
        if key is None or name in layers
        else _row_seeds(jax.random.fold_in(key, place), _leading(requests[name]))
        for place, name in enumerate(names)
    ]
    rows = [(requests[name], seed) for name, seed in zip(names, seeds, strict=True)]
    from_layer = [layers.get(name) for name in names]

    def encode(shared: Any, local: list[tuple[Request, Array | None]]) -> list[Output]:
        model = nnx.merge(graphdef, shared)
        return _answer_rows(model, local, from_layer, chunking.tokens_per_chunk, devices)

    if chunking.encode == "gather_once":
        devices = 1
        outputs = rowwise(encode, params, rows)
    else:
        devices = row_shards(jax.sharding.get_abstract_mesh())
        outputs = encode(params, rows)
    return dict(zip(names, outputs, strict=True))


def make_train_step(
    graphdef: Any,
    teachers: Mapping[str, Any],
    tasks: Mapping[str, StepTask],
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    chunking: Chunking,
    average: Callable[[Any, Any, Array], Any] | None = None,
) -> Callable[[TrainState, Mapping[str, Any], Mapping[str, Batch]], tuple[TrainState, Metrics]]:
    """Build the step of one stage; the caller jits it with the state donated.

    Args:
      graphdef: the student's structure.
      teachers: structure of each teacher, by name.
      tasks: what is trained, all of it in every step.
      optimizer: turns gradients into updates.
      seed: the root of every dropout mask; masks depend on (seed, step) and nothing else.
      chunking: how requests are cut.
      average: ``(average, parameters, batches seen) -> average``, for states that keep one.

    Returns:
      ``step(state, teacher_params, batches) -> (state, metrics)``. Metrics are scalars: ``loss``,
      ``grad_norm`` (of all parameters, before clipping and freezing) and, for each task,
      ``<task>/loss`` and ``<task>/<its metrics>``.
    """
    loss_and_gradient = make_gradient(graphdef, teachers, tasks, seed=seed, chunking=chunking)

    def step(
        state: TrainState, teacher_params: Mapping[str, Any], batches: Mapping[str, Batch]
    ) -> tuple[TrainState, Metrics]:
        gradient, metrics = loss_and_gradient(state.params, teacher_params, batches, state.step)
        updates, opt = optimizer.update(gradient, state.opt, state.params)
        if state.rate is not None:
            rate = state.rate
            updates = jax.tree.map(lambda update: update * rate.astype(update.dtype), updates)
        params = optax.apply_updates(state.params, updates)
        done, mean = state.step + 1, state.average
        if average is not None:
            mean = average(mean, params, done)
        metrics["grad_norm"] = optax.tree.norm(gradient)
        return TrainState(params, opt, done, mean, state.rate), metrics

    return step


def make_gradient(
    graphdef: Any,
    teachers: Mapping[str, Any],
    tasks: Mapping[str, StepTask],
    *,
    seed: int,
    chunking: Chunking,
) -> Callable[..., tuple[Any, Metrics]]:
    """Build ``(params, teacher_params, batches, step number) -> (gradient, metrics)``.

    Args and metrics are those of ``make_train_step``, which adds the optimizer.
    """

    layers = {
        (task, name): ask.layer
        for task, spec in tasks.items()
        for name, ask in spec.objective.student.items()
        if ask.layer is not None
    }

    def total(params: Any, heard: Any, batches: Any, step: Array) -> tuple[Array, Metrics]:
        key = jax.random.fold_in(jax.random.key(seed), step)
        asked = {(task, name): r for task, b in batches.items() for name, r in b.student.items()}
        told = answer(graphdef, params, asked, key, chunking, layers)
        loss = jnp.zeros(())
        metrics: Metrics = {}
        for task, spec in tasks.items():
            mine = {name: told[task, name] for name in batches[task].student}
            value, extra = spec.objective.loss(mine, heard[task], batches[task])
            loss = loss.astype(value.dtype) + jnp.asarray(spec.weight, value.dtype) * value
            metrics |= {f"{task}/{name}": x for name, x in {"loss": value, **extra}.items()}
        return loss, {"loss": loss, **metrics}

    def gradient(
        params: Any, teacher_params: Any, batches: Any, step: Array
    ) -> tuple[Any, Metrics]:
        heard = _teacher_outputs(teachers, teacher_params, tasks, batches, chunking)
        found: tuple[Any, Metrics] = jax.grad(total, has_aux=True)(params, heard, batches, step)
        return found

    return gradient


def _teacher_outputs(
    teachers: Mapping[str, Any],
    teacher_params: Mapping[str, Any],
    tasks: Mapping[str, StepTask],
    batches: Mapping[str, Batch],
    chunking: Chunking,
) -> dict[str, dict[str, Output]]:
    """The teachers' answers by task and name; stored answers are taken as they are."""
    heard: dict[str, dict[str, Any]] = {
        task: {name: _widened(given) for name, given in batches[task].teacher.items()}
        for task in tasks
    }
    for teacher, graphdef in teachers.items():
        asked = {
            (task, name): heard[task][name]
            for task, spec in tasks.items()
            for name, ask in spec.objective.teacher.items()
            if ask.model == teacher and isinstance(heard[task][name], Request)
        }
        if asked:
            from_layer = {key: tasks[key[0]].objective.teacher[key[1]].layer for key in asked}
            layers = {key: layer for key, layer in from_layer.items() if layer is not None}
            told = answer(graphdef, teacher_params[teacher], asked, None, chunking, layers)
            for (task, name), output in told.items():
                heard[task][name] = output
    return jax.lax.stop_gradient(heard)


def _widened(given: Request | Output) -> Any:
    """Stored answers as a model gives them: float32, whatever they take on disk."""
    return jax.tree.map(
        lambda x: jnp.asarray(x, jnp.float32) if x.dtype == jnp.float16 else x, given
    )


def _answer_rows(
    model: Any,
    local: list[tuple[Request, Array | None]],
    layers: list[int | None],
    tokens_per_chunk: int | None,
    devices: int,
) -> list[Output]:
    """Answer requests whose rows ``devices`` share: group what goes together, and cut in chunks."""
    groups: dict[Any, list[int]] = defaultdict(list)
    for place, (request, _) in enumerate(local):
        groups[model.tower(type(request)), _widths(request), layers[place]].append(place)

    told: list[Any] = [None] * len(local)
    for (_, widths, layer), places in groups.items():
        requests = [local[place][0] for place in places]
        # One tower answers each of its request kinds alike, so the first stands for all.
        structure = jax.tree.structure(requests[0])
        leaves = [
            jnp.concatenate(parts) for parts in zip(*map(_flat_leaves, requests), strict=True)
        ]
        seeds = [s.reshape(-1) for place in places if (s := local[place][1]) is not None]
        joined = jnp.concatenate(seeds) if seeds else None
        size = leaves[0].shape[0]
        if tokens_per_chunk is not None:
            size = devices * max(1, tokens_per_chunk // sum(widths))

        options = {} if layer is None else {"layer": layer}

        def read(rows: Any, structure: Any = structure, options: Any = options) -> Any:
            return model(jax.tree.unflatten(structure, rows[0]), row_seeds=rows[1], **options)

        output = map_rows(read, (leaves, joined), size, multiple=devices)
        if layer is not None:
            output = jax.lax.stop_gradient(output)
        start = 0
        for place, request in zip(places, requests, strict=True):
            shape = _leading(request)
            stop = start + math.prod(shape)
            told[place] = jax.tree.map(
                lambda x, a=start, b=stop, s=shape: x[a:b].reshape(*s, *x.shape[1:]), output
            )
            start = stop
    return told


def _flat_leaves(request: Request) -> list[Array]:
    leaves = map(jnp.asarray, jax.tree.leaves(request))
    return [leaf.reshape(-1, leaf.shape[-1]) for leaf in leaves]


def _widths(request: Request) -> tuple[int, ...]:
    """Tokens a row, of each text of the request."""
    texts = jax.tree.leaves(request, is_leaf=lambda node: isinstance(node, Tokens))
    return tuple(text.ids.shape[-1] for text in texts)


def _leading(request: Request) -> tuple[int, ...]:
    shape: tuple[int, ...] = jax.tree.leaves(request)[0].shape
    return shape[:-1]


def _row_seeds(key: Array, shape: tuple[int, ...]) -> UInt32[Array, "*rows"]:
    """One seed a row: a counter generator's bits, which do not depend on how many rows follow."""
    return jax.random.bits(key, shape, jnp.uint32)
