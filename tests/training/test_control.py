"""Plateaus, stopping and averages, against torch and against loops."""

import jax.numpy as jnp
import numpy as np
import pytest

from clir_jax.config import OnPlateau, Stop
from clir_jax.training.checkpoint import CheckpointError
from clir_jax.training.control import Control, moving_average

torch = pytest.importorskip("torch")
VALUES = np.random.default_rng(0).integers(0, 12, 60) / 12


@pytest.mark.parametrize("patience", [1, 2, 5])
def test_the_rate_falls_as_torch_lowers_it(patience):
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(
        # Torch acts when there were more bad epochs than its patience.
        optimizer, "max", factor=0.5, patience=patience - 1, threshold=0.0, eps=0.0,
    )  # fmt: skip
    control = Control()
    for value in map(float, VALUES):
        schedule.step(value)
        control = control.after(value, None, OnPlateau(0.5, patience))
        assert control.rate == optimizer.param_groups[0]["lr"]
    assert control.rate < 0.1


@pytest.mark.parametrize("patience", [1, 3])
def test_a_stage_stops_when_so_many_evaluations_were_no_better(patience):
    control = Control()
    for seen in range(1, len(VALUES) + 1):
        control = control.after(float(VALUES[seen - 1]), Stop(patience), None)
        best = int(np.argmax(VALUES[:seen]))  # the first of equals
        assert control.best == VALUES[best]
        assert control.stopped == (seen - 1 - best >= patience)
        if control.stopped:
            break
    assert control.stopped


def test_what_a_checkpoint_holds_is_read_back():
    control = Control(0.25, 3, 1, 0.5, True)
    assert Control.from_json(control.to_json(), "here") == control


@pytest.mark.parametrize("change", [{"patience": 1}, {"stale": None}])
def test_what_another_version_wrote_is_named(change):
    told = {k: v for k, v in (Control().to_json() | change).items() if change.get(k, 0) is not None}
    with pytest.raises(CheckpointError) as error:
        Control.from_json(told, "checkpoints/3")
    assert str(error.value) == (
        f"checkpoints/3: of its evaluations this checkpoint tells {', '.join(sorted(told))}, and "
        "this version reads best, rate, stale, stopped, waited; go on with the version that wrote "
        "it, or choose another --run-dir"
    )


@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_average_is_torchs(accumulate):
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    random = np.random.default_rng(1)
    linear = torch.nn.Linear(3, 2, dtype=torch.float64)
    averaged = AveragedModel(linear, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    renew = moving_average(0.9, accumulate)
    average = {"weight": jnp.zeros((2, 3)), "bias": jnp.zeros(2)}
    for done in range(1, 13):
        if done % accumulate == 0:
            for tensor in linear.parameters():
                tensor.data = torch.tensor(random.normal(size=tuple(tensor.shape)))
            averaged.update_parameters(linear)
        params = {
            n: jnp.asarray(p.detach().numpy(), jnp.float32) for n, p in linear.named_parameters()
        }
        average = renew(average, params, jnp.int32(done))
        if done >= accumulate:
            for name, expected in averaged.module.named_parameters():
                np.testing.assert_allclose(average[name], expected.detach().numpy(), atol=1e-6)
