"""AdamW from a configuration: schedule, clipping, groups of parameters, accumulation."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import optax

from clir_jax import config
from clir_jax.tree import path_of, paths

_BASE, _FROZEN, _TRAINED = -1, "frozen", "trained"
# Biases and layer norms: one vector a layer, so stacked layers give them two axes, not one.
_SPARED = re.compile(r"(^|/)(bias|scale)$")


def make_schedule(optimizer: config.Optimizer, steps: int) -> optax.Schedule:
    r"""The learning rate by update number: linear warm-up, then the schedule.

    With U updates, W = ``warmup`` and r = ``learning_rate``, update u (from 0) takes
    :math:`r (u + 1) / W` while u < W, and after that

    .. math::
      r \text{ (constant)}, \quad r \frac{U - u}{U - W} \text{ (linear)}, \quad
      \frac{r}{2} \Big(1 + \cos \pi \frac{u - W}{U - W}\Big) \text{ (cosine)}, \quad
      r \sqrt{\frac{\max(W, 1)}{u + 1}} \text{ (inverse_sqrt)},

    so the first update already moves, and the last is the smallest and not lost.

    Args:
      optimizer: the configuration.
      steps: batches of the stage; with ``accumulate`` there are fewer updates.

    Returns:
      A function from the update number to the rate.
    """
    updates = max(1, steps // optimizer.accumulate)
    warm, rate = optimizer.warmup, optimizer.learning_rate
    decays = {
        "constant": optax.constant_schedule(rate),
        "linear": optax.linear_schedule(rate, 0.0, max(1, updates - warm)),
        "cosine": optax.cosine_decay_schedule(rate, max(1, updates - warm)),
        "inverse_sqrt": lambda after: rate * jnp.sqrt(max(warm, 1) / (after + warm + 1.0)),
    }
    warmup = optax.linear_schedule(rate / max(1, warm), rate, max(1, warm - 1))
    return optax.join_schedules([warmup, decays[optimizer.schedule]], [warm])


def make_optimizer(
    optimizer: config.Optimizer, steps: int, params: Any
) -> optax.GradientTransformation:
    """Build the gradient transformation of one stage.

    Args:
      optimizer: the configuration.
      steps: batches of the stage.
      params: the parameters, real or abstract; only paths are read.

    Returns:
      Clipping by global norm over what is trained, then AdamW a group. What is frozen has no memory
      in it, and no part in the norm.

    Raises:
      ValueError: if a group's pattern matches no parameter that an earlier group left, everything
        is frozen, or the last batches would make no update.
    """
    if steps % optimizer.accumulate:
        fewer = steps - steps % optimizer.accumulate
        choices = [str(n) for n in (fewer, fewer + optimizer.accumulate) if n]
        raise ValueError(
            f"optimizer: accumulate is {optimizer.accumulate} and the stage has {steps} steps, so "
            f"the last batches would make no update; set steps to {' or '.join(choices)}"
        )
    labels = group_labels(optimizer, params)
    schedule = make_schedule(optimizer, steps)
    transforms = {_BASE: _adamw(optimizer, schedule, optimizer.weight_decay)}
    for place, group in enumerate(optimizer.groups):
        factor = 1.0 if group.learning_rate is None else group.learning_rate
        decay = optimizer.weight_decay if group.weight_decay is None else group.weight_decay
        transforms[place] = _adamw(optimizer, _scaled(schedule, factor), decay)
    transform = optax.partition(transforms, lambda part: _labels(optimizer, part))
    if optimizer.clip_norm is not None:
        transform = optax.chain(_clip(optimizer.clip_norm), transform)
    if optimizer.accumulate > 1:
        transform = optax.MultiSteps(transform, optimizer.accumulate).gradient_transformation()
    frozen = {place for place, group in enumerate(optimizer.groups) if group.freeze}
    if frozen:
        # Around all else, so that the norm, the moments and the accumulated gradients leave it out.
        transform = optax.partition(
            {_FROZEN: optax.set_to_zero(), _TRAINED: transform},
            jax.tree.map(lambda label: _FROZEN if label in frozen else _TRAINED, labels),
        )
    return _promoting(transform)


def group_labels(optimizer: config.Optimizer, params: Any) -> Any:
    """Each parameter's group, as a tree of places in ``optimizer.groups``; -1 where none matches.

    Raises:
      ValueError: see ``make_optimizer``.
    """
    labels = _labels(optimizer, params)
    used = set(jax.tree.leaves(labels))
    for place, group in enumerate(optimizer.groups):
        if place not in used:
            raise ValueError(
                f"optimizer: the group {group.pattern!r} matches no parameter left to it; the "
                f"parameters are {', '.join(paths(params))}"
            )
    if all(place != _BASE and optimizer.groups[place].freeze for place in used):
        raise ValueError("optimizer: its groups freeze every parameter; leave something to train")
    return labels


def _labels(optimizer: config.Optimizer, params: Any) -> Any:
    def label(keys: tuple[Any, ...], _: Any) -> int:
        path = path_of(keys)
        matches = (n for n, g in enumerate(optimizer.groups) if re.search(g.pattern, path))
        return next(matches, _BASE)

    return jax.tree_util.tree_map_with_path(label, params)


def _adamw(
    optimizer: config.Optimizer, schedule: optax.Schedule, decay: float
) -> optax.GradientTransformation:
    return optax.adamw(
        schedule,
        b1=optimizer.beta1,
        b2=optimizer.beta2,
        eps=optimizer.epsilon,
        weight_decay=decay,
        mask=_decayed,
    )


def _clip(limit: float) -> optax.GradientTransformation:
    """Scale to a global norm of at most ``limit``.

    One factor for every element, where Optax chooses between two results: with the choice, the
    compiler keeps a second gradient in memory.
    """

    def update(gradient: Any, _: Any) -> Any:
        factor = limit / jnp.maximum(optax.tree.norm(gradient), limit)
        return jax.tree.map(lambda g: g * factor.astype(g.dtype), gradient)

    return optax.stateless(update)


def _promoting(transform: optax.GradientTransformation) -> optax.GradientTransformation:
    """The same under JAX's strict promotion, which Optax's powers of a counter do not pass."""

    def update(gradient: Any, state: Any, params: Any) -> Any:
        with jax.numpy_dtype_promotion("standard"):
            return transform.update(gradient, state, params)

    return optax.GradientTransformation(transform.init, update)


def _decayed(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(
        lambda keys, _: _SPARED.search(path_of(keys)) is None, params
    )


def _scaled(schedule: optax.Schedule, factor: float) -> optax.Schedule:
    return lambda count: factor * schedule(count)
