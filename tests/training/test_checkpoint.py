"""Checkpoints: bitwise back, on any mesh; which stay; what is said of those that do not fit."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from clir_jax.mesh import make_mesh
from clir_jax.training.checkpoint import CheckpointError, Checkpoints
from clir_jax.training.step import TrainState
from clir_jax.tree import paths


def _state(step=0, mesh=None, width=8):
    """A state with numbers of its own, its matrices split over fsdp."""
    random = np.random.default_rng(step)
    params = {
        "kernel": jnp.asarray(random.normal(size=(16, width)), jnp.float32),
        "half": jnp.asarray(random.normal(size=(16, 4)), jnp.bfloat16),
    }
    opt = optax.adam(1e-3).init(params)
    opt = jax.tree.map(lambda x: x + jnp.asarray(step + 1, x.dtype), opt)
    state = TrainState(params, opt, jnp.asarray(step, jnp.int32))
    return state if mesh is None else jax.device_put(state, _places(state, mesh))


def _places(state, mesh):
    return jax.tree.map(
        lambda x: NamedSharding(mesh, P("fsdp", *[None] * (x.ndim - 1)) if x.ndim else P()), state
    )


def _target(state, mesh):
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        state,
        _places(state, mesh),
    )


def _same_bits(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for path, leaf in paths(a).items():
        other = paths(b)[path]
        assert leaf.dtype == other.dtype, path
        assert np.asarray(leaf).tobytes() == np.asarray(other).tobytes(), path


def _steps(directory):
    return sorted(int(p.name) for p in directory.iterdir() if p.name.isdecimal())


def test_a_state_comes_back_bitwise_on_eight_four_and_one_device(tmp_path):
    written = _state(3, make_mesh(fsdp=8))
    assert len(written.params["kernel"].sharding.device_set) == 8
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, written, {"any": [1, "thing"]}, None)
    for count in (8, 4, 1):
        mesh = make_mesh(fsdp=count, devices=jax.devices()[:count])
        target = _target(written, mesh)
        with Checkpoints(tmp_path) as checkpoints:
            assert checkpoints.latest == 3
            read, meta = checkpoints.restore(3, target)
        assert meta == {"any": [1, "thing"]}
        _same_bits(read, written)
        for path, leaf in paths(read).items():
            assert leaf.sharding == paths(target)[path].sharding, path
            assert len(leaf.sharding.device_set) == count


def test_a_state_saved_may_be_donated_at_once(tmp_path):
    mesh = make_mesh()
    state, expected = _state(1, mesh), _state(1)
    spoil = jax.jit(lambda s: jax.tree.map(lambda x: x * 0, s), donate_argnums=0)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {}, None)
        spoil(state)
        checkpoints.wait()
        read, _ = checkpoints.restore(1, _target(expected, mesh))
    _same_bits(read, expected)


def test_the_latest_two_and_the_best_stay(tmp_path):
    measured = {1: 0.1, 2: 0.7, 3: None, 4: 0.3, 5: 0.6, 6: None, 7: None}
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest is None
        assert checkpoints.best is None
        for step, metric in measured.items():
            checkpoints.save(step, _state(step), {}, metric)
        checkpoints.wait()
        assert (checkpoints.latest, checkpoints.best) == (7, 2)
    assert _steps(tmp_path) == [2, 6, 7]
    with Checkpoints(tmp_path) as checkpoints:  # another process finds the same
        assert (checkpoints.latest, checkpoints.best) == (7, 2)
        checkpoints.save(8, _state(8), {}, 0.8)
        checkpoints.save(9, _state(9), {}, None)
        checkpoints.save(10, _state(10), {}, None)
        checkpoints.wait()
        assert checkpoints.best == 8
    assert _steps(tmp_path) == [8, 9, 10]


@pytest.mark.parametrize("reopen", [False, True])
def test_of_equals_the_first_is_best(tmp_path, reopen):
    """Also where an attempt was killed in between."""
    checkpoints = Checkpoints(tmp_path)
    for step, metric in {1: 0.0, 2: 0.5, 3: 0.5, 4: 0.25, 5: 0.5, 6: 0.5}.items():
        if reopen:
            checkpoints.__exit__(None, None, None)
            checkpoints = Checkpoints(tmp_path)
        checkpoints.save(step, _state(step), {}, metric)
    checkpoints.wait()
    assert checkpoints.best == 2
    checkpoints.__exit__(None, None, None)
    assert _steps(tmp_path) == [2, 5, 6]


def test_negative_metrics_and_zero_are_compared_too(tmp_path):
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        for step, metric in {1: -2.0, 2: -1.0, 3: -3.0}.items():
            checkpoints.save(step, _state(step), {}, metric)
        assert checkpoints.best == 2
        checkpoints.save(4, _state(4), {}, 0.0)
        assert checkpoints.best == 4


def test_saving_a_step_again_keeps_the_first(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, _state(1), {}, 0.5)
        checkpoints.save(1, _state(2), {}, 0.9)
        checkpoints.wait()
        read, _ = checkpoints.restore(1, _target(_state(1), make_mesh()))
    _same_bits(read, _state(1))


def test_a_half_written_checkpoint_is_removed_and_never_taken(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, _state(1), {}, None)
    half = tmp_path / "2.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "1", half)
    (half / "commit_success.txt").unlink(missing_ok=True)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest == 1
        checkpoints.save(2, _state(2), {}, None)
    assert _steps(tmp_path) == [1, 2]
    assert not half.exists()


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (
            lambda s: _state(1, width=4),
            r"kernel is \[16, 8\] there and \[16, 4\] here \(3",
        ),
        (
            lambda s: TrainState({"kernel": s.params["kernel"]}, s.opt, s.step),
            r"params/half is \[16, 4\] there and absent here \(1 differ\)",
        ),
        (
            lambda s: TrainState(s.params | {"new": s.params["half"]}, s.opt, s.step),
            r"params/new is absent there and \[16, 4\] here \(1 differ\)",
        ),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(tmp_path, changed, told):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, _state(1), {}, None)
        checkpoints.wait()
        target = _target(changed(_state(1)), make_mesh())
        with pytest.raises(CheckpointError, match=f"checkpoint 1 does not fit.*{told}"):
            checkpoints.restore(1, target)


# Orbax drops a coroutine of its own when it fails to read.
@pytest.mark.filterwarnings("ignore:.*_get_array_metadatas")
def test_a_damaged_checkpoint_is_named(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, _state(step), {}, None)
    (tmp_path / "2" / "state" / "manifest.ocdbt").unlink()
    with Checkpoints(tmp_path) as checkpoints:
        target = _target(_state(2), make_mesh())
        with pytest.raises(CheckpointError, match=r"/2: this checkpoint cannot be read"):
            checkpoints.restore(2, target)
    (tmp_path / "1" / "meta" / "metadata").write_text("{")
    with pytest.raises(CheckpointError, match=r"/1: this checkpoint cannot be read"):
        Checkpoints(tmp_path)
