"""What evaluations decide while a stage trains: when the rate falls, and when it ends."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from clir_jax.config import OnPlateau, Stop
from clir_jax.config_types import named
from clir_jax.training.checkpoint import CheckpointError


@dataclasses.dataclass(frozen=True)
class Control:
    """What the evaluations so far have decided; JSON values, so that a checkpoint holds them.

    Args:
      best: the highest selection metric; None before the first evaluation.
      stale: evaluations since then.
      waited: the same, but counted anew when the rate falls.
      rate: what the learning rate is multiplied by.
      stopped: whether the stage has ended before its last step.

    Example:
      >>> control = Control()
      >>> for value in (0.5, 0.4, 0.5):
      ...     control = control.after(value, Stop(patience=2), OnPlateau(0.5, patience=1))
      >>> control
      Control(best=0.5, stale=2, waited=0, rate=0.25, stopped=True)
    """

    best: float | None = None
    stale: int = 0
    waited: int = 0
    rate: float = 1.0
    stopped: bool = False

    def after(self, value: float, stop: Stop | None, on_plateau: OnPlateau | None) -> "Control":
        """What holds after another evaluation; an equal value is no better.

        Args:
          value: of the selection metric; higher is better.
          stop: when to end.
          on_plateau: when to lower the rate.

        Returns:
          The next state.
        """
        if self.best is None or value > self.best:
            return dataclasses.replace(self, best=value, stale=0, waited=0)
        stale, waited, rate = self.stale + 1, self.waited + 1, self.rate
        if on_plateau is not None and waited >= on_plateau.patience:
            waited, rate = 0, rate * on_plateau.factor
        stopped = stop is not None and stale >= stop.patience
        return Control(self.best, stale, waited, rate, stopped)

    def to_json(self) -> dict[str, Any]:
        """The values by name."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any], where: str) -> "Control":
        """Read what ``to_json`` gave.

        Args:
          values: by name.
          where: the checkpoint, for messages.

        Raises:
          CheckpointError: if another version wrote other values.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        if set(known) != set(values):
            raise CheckpointError(
                f"{where}: of its evaluations this checkpoint tells {named(values)}, and this "
                f"version reads {named(known)}; go on with the version that wrote it, or choose "
                "another --run-dir"
            )
        return cls(**values)


def moving_average(decay: float, accumulate: int) -> Callable[[Any, Any, Array], Any]:
    r"""An exponential moving average of the parameters, renewed with every update.

    After the first update it is the parameters themselves, so that it does not drag the start
    along; after update u

    .. math:: \bar\theta_u = d\, \bar\theta_{u-1} + (1 - d)\, \theta_u

    with d = ``decay``.

    Args:
      decay: what is kept of the average.
      accumulate: batches an update; between updates the average stays.

    Returns:
      ``(average, parameters, batches seen) -> average``.

    References:
      Polyak, Juditsky, Acceleration of Stochastic Approximation by Averaging, SIAM Journal on
      Control and Optimization, 1992: the idea, there with equal weights.
    """

    def renew(average: Any, params: Any, done: Int[Array, ""]) -> Any:
        kept = jnp.where(done == accumulate, 0.0, decay)
        kept = jnp.where(done % accumulate == 0, kept, 1.0)

        def mean(old: Array, new: Array) -> Array:
            share = kept.astype(old.dtype)
            return share * old + (1 - share) * new

        return jax.tree.map(mean, average, params)

    return renew
