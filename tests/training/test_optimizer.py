"""The optimizer against torch and closed forms, and what freezing and accumulation promise."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from clir_jax.config import Group, Optimizer
from clir_jax.training.optimizer import group_labels, make_optimizer, make_schedule
from clir_jax.tree import path_of, paths

# Names as in the models, and the shapes that stacked layers give: a bias has two axes.
SHAPES = {
    "encoder": {
        "embeddings": {"word": {"embedding": (7, 4)}, "norm": {"scale": (4,), "bias": (4,)}},
        "layers": {"query": {"kernel": (2, 4, 4), "bias": (2, 4)}, "norm": {"scale": (2, 4)}},
    },
    "projection": {"kernel": (4, 3)},
}


def _random(seed, scale=1.0):
    random = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: jnp.asarray(scale * random.normal(size=shape), jnp.float32),
        SHAPES,
        is_leaf=lambda node: isinstance(node, tuple),
    )


def _train(transform, params, gradients):
    """Parameters after an update with each of the gradients, and the optimizer's last state."""
    state = transform.init(params)
    for gradient in gradients:
        updates, state = jax.jit(transform.update)(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def _same(a, b, **tolerance):
    for path, leaf in paths(a).items():
        np.testing.assert_allclose(leaf, paths(b)[path], err_msg=path, **tolerance)


def test_twenty_steps_equal_torch_with_everything_switched_on():
    torch = pytest.importorskip("torch")
    steps, warmup, rate, decay = 20, 5, 0.02, 0.3
    groups = (
        Group("embeddings/word", learning_rate=0.1),
        Group("projection", learning_rate=3.0, weight_decay=0.0),
        Group("norm", freeze=True),
    )
    optimizer = Optimizer(
        learning_rate=rate,
        schedule="linear",
        warmup=warmup,
        weight_decay=decay,
        clip_norm=1.5,
        beta1=0.8,
        beta2=0.95,
        epsilon=1e-6,
        groups=groups,
    )
    params = _random(0)
    # Some norms are above the limit and some below it.
    gradients = [_random(n + 1, scale=0.05 * (n + 1)) for n in range(steps)]
    ours, _ = _train(make_optimizer(optimizer, steps, params), params, gradients)

    theirs = {path: torch.tensor(np.asarray(leaf)) for path, leaf in paths(params).items()}
    trained = {path: t.requires_grad_() for path, t in theirs.items() if "norm" not in path}
    settings = []
    for path, tensor in trained.items():
        factor = {"embeddings": 0.1, "kernel": 3.0}.get(path.split("/")[1], 1.0)
        spared = path.endswith(("bias", "scale")) or path.startswith("projection")
        settings.append(
            {
                "params": [tensor],
                "lr": rate * factor,
                "weight_decay": 0.0 if spared else decay,
            }
        )
    assert sorted(s["lr"] / rate for s in settings) == pytest.approx([0.1, 1.0, 1.0, 3.0])
    adamw = torch.optim.AdamW(settings, betas=(0.8, 0.95), eps=1e-6)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        adamw,
        lambda n: (n + 1) / warmup if n < warmup else (steps - n) / (steps - warmup),
    )
    clipped = []
    for gradient in gradients:
        for path, tensor in trained.items():
            tensor.grad = torch.tensor(np.asarray(paths(gradient)[path]))
        norm = torch.nn.utils.clip_grad_norm_(list(trained.values()), 1.5)
        clipped.append(bool(norm > 1.5))
        adamw.step()
        schedule.step()
    assert True in clipped
    assert False in clipped
    for path, leaf in paths(ours).items():
        expected = theirs[path].detach().numpy()
        np.testing.assert_allclose(leaf, expected, rtol=2e-5, atol=2e-6, err_msg=path)
        moved = np.abs(leaf - paths(params)[path]).max()
        assert (moved == 0) == ("norm" in path)


@pytest.mark.parametrize("schedule", ["linear", "constant"])
@pytest.mark.parametrize("warmup", [0, 1, 4])
def test_every_learning_rate(schedule, warmup):
    steps, rate = 10, 0.5
    ours = make_schedule(Optimizer(learning_rate=rate, schedule=schedule, warmup=warmup), steps)
    expected = []
    for n in range(steps):
        decay = (steps - n) / (steps - warmup) if schedule == "linear" else 1.0
        expected.append(rate * ((n + 1) / warmup if n < warmup else decay))
    np.testing.assert_allclose([float(ours(n)) for n in range(steps)], expected, rtol=1e-6)
    assert expected[0] > 0  # the first update moves
    assert expected[-1] > 0  # and so does the last
    assert max(expected) == rate


@pytest.mark.parametrize("warmup", [0, 4])
def test_the_cosine_is_torchs(warmup):
    torch = pytest.importorskip("torch")
    ours = make_schedule(Optimizer(learning_rate=0.5, schedule="cosine", warmup=warmup), 10)
    adamw = torch.optim.AdamW([torch.zeros(1)], lr=0.5)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adamw, T_max=10 - warmup)
    for n in range(warmup, 10):
        assert float(ours(n)) == pytest.approx(adamw.param_groups[0]["lr"], rel=1e-5)
        adamw.step()
        schedule.step()
    assert float(ours(10)) == 0  # after the last of ten, which still moved
    assert [float(ours(n)) for n in range(warmup)] == [0.125, 0.25, 0.375, 0.5][:warmup]


def test_the_inverse_square_root_halves_at_four_times_the_warm_up():
    settings = {"learning_rate": 0.5, "schedule": "inverse_sqrt"}
    ours = make_schedule(Optimizer(**settings, warmup=4), 1000)
    rates = [float(ours(n)) for n in (0, 1, 3, 15, 63)]
    np.testing.assert_allclose(rates, [0.125, 0.25, 0.5, 0.25, 0.125], rtol=1e-6)
    assert 0.44 < float(ours(4)) < 0.45  # 0.5 x sqrt(4 / 5): no jump after the warm-up
    cold = make_schedule(Optimizer(**settings), 1000)
    np.testing.assert_allclose([float(cold(n)) for n in (0, 3, 99)], [0.5, 0.25, 0.05], rtol=1e-6)


def test_with_accumulation_the_schedule_counts_updates():
    plain = make_schedule(Optimizer(learning_rate=1.0, warmup=4), 10)
    accumulated = make_schedule(Optimizer(learning_rate=1.0, warmup=4, accumulate=3), 30)
    for n in range(10):
        assert float(accumulated(n)) == float(plain(n))


def test_frozen_parameters_keep_their_bits_cost_no_memory_and_are_not_in_the_norm():
    params, gradients = _random(0), [_random(n, scale=3.0) for n in (1, 2, 3, 4)]
    frozen = Optimizer(groups=(Group("encoder", freeze=True),), learning_rate=0.1, accumulate=2)
    after, state = _train(make_optimizer(frozen, 4, params), params, gradients)
    for path, leaf in paths(after).items():
        same = np.asarray(leaf).tobytes() == np.asarray(paths(params)[path]).tobytes()
        assert same == path.startswith("encoder"), path
    # Adam's two moments and the sum of gradients, of the projection alone.
    large = [leaf.shape for leaf in jax.tree.leaves(state) if leaf.shape]
    assert large == [(4, 3)] * 3
    # Were the encoder's gradients in the norm, the projection's would be clipped to less.
    alone = {"projection": params["projection"]}
    theirs, _ = _train(
        make_optimizer(Optimizer(learning_rate=0.1, accumulate=2), 4, alone),
        alone,
        [{"projection": gradient["projection"]} for gradient in gradients],
    )
    _same({"projection": after["projection"]}, theirs, rtol=1e-6)


def test_clipping_is_of_the_norm_over_all_groups():
    params, gradient = _random(0), _random(1, scale=10.0)
    groups = (Group("projection", learning_rate=1.0),)
    # With such an epsilon Adam is proportional to the gradient, so the clipped length shows.
    settings = {"learning_rate": 1.0, "weight_decay": 0.0, "epsilon": 1e6, "schedule": "constant"}
    norm = float(optax.tree.norm(gradient))
    lengths = {}
    for clip in (None, 0.25 * norm):
        transform = make_optimizer(Optimizer(**settings, clip_norm=clip, groups=groups), 1, params)
        updates, _ = jax.jit(transform.update)(gradient, transform.init(params), params)
        lengths[clip] = float(optax.tree.norm(updates))
    assert lengths[0.25 * norm] == pytest.approx(0.25 * lengths[None], rel=1e-3)


@pytest.mark.parametrize("batches", [2, 4])
def test_accumulating_batches_is_one_batch_of_their_mean(batches):
    params = _random(0)
    updates = [[_random(10 * u + n) for n in range(batches)] for u in range(3)]
    flat = [gradient for update in updates for gradient in update]
    means = [jax.tree.map(lambda *x: sum(x) / len(x), *update) for update in updates]
    settings = {"learning_rate": 0.05, "schedule": "linear"}
    many = make_optimizer(Optimizer(**settings, accumulate=batches), 3 * batches, params)
    one = make_optimizer(Optimizer(**settings), 3, params)
    expected, _ = _train(one, params, means)
    told, _ = _train(many, params, flat)
    _same(told, expected, rtol=1e-5, atol=1e-6)
    # Nothing moves between updates.
    early, _ = _train(many, params, flat[: batches - 1])
    _same(early, params, rtol=0)


def test_every_parameter_belongs_to_the_first_group_that_matches_it():
    groups = (Group("word"), Group("encoder", learning_rate=0.1), Group(r"kernel$"))
    labels = paths(group_labels(Optimizer(groups=groups), _random(0)))
    assert labels.keys() == paths(_random(0)).keys()
    assert labels == {
        path: 0 if "word" in path else 1 if path.startswith("encoder") else 2 for path in labels
    }
    assert set(labels.values()) == {0, 1, 2}
    labels = paths(group_labels(Optimizer(groups=groups[:1]), _random(0)))
    assert {path for path, label in labels.items() if label == -1} == {
        path for path in labels if "word" not in path
    }


@pytest.mark.parametrize(
    ("groups", "told"),
    [
        ((Group("decoder"),), r"'decoder' matches no parameter.*encoder/embeddings/word"),
        ((Group("encoder"), Group("layers")), "'layers' matches no parameter left to it"),
        ((Group("word"), Group("word", freeze=True)), "'word' matches no parameter left to it"),
        ((Group("encoder", freeze=True), Group(".", freeze=True)), "freeze every parameter"),
    ],
)
def test_groups_that_do_nothing_are_refused(groups, told):
    with pytest.raises(ValueError, match=told):
        make_optimizer(Optimizer(groups=groups), 10, _random(0))


@pytest.mark.parametrize(
    ("steps", "told"), [(10, r"set steps to 8 or 12$"), (3, r"set steps to 4$")]
)
def test_steps_that_would_be_lost_are_refused(steps, told):
    with pytest.raises(ValueError, match=told):
        make_optimizer(Optimizer(accumulate=4), steps, _random(0))


def test_a_pattern_called_base_is_a_pattern():
    params = {"base": {"kernel": jnp.ones((2, 2))}, "other": {"kernel": jnp.ones((2, 2))}}
    transform = make_optimizer(Optimizer(groups=(Group("base", freeze=True),)), 2, params)
    after, _ = _train(transform, params, [params])
    assert (after["base"]["kernel"] == 1).all()
    assert (after["other"]["kernel"] < 1).all()


def test_float64_stays_float64():
    with jax.enable_x64(True):
        params = {"kernel": jnp.ones((3, 3), jnp.float64)}
        transform = make_optimizer(Optimizer(clip_norm=1e-3, warmup=2, accumulate=2), 4, params)
        after, _ = _train(transform, params, [params, params])
        assert after["kernel"].dtype == jnp.float64
        assert (after["kernel"] < 1).all()


def test_paths_are_what_people_write():
    keys = jax.tree_util.tree_leaves_with_path({"encoder": {"layers": {"kernel": 1}}})[0][0]
    assert path_of(keys) == "encoder/layers/kernel"
