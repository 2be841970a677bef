"""``--check``: build every stage without weights, network or training, and look for its data."""

import dataclasses
import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from jax.sharding import Mesh
from rich.console import Console

from clir_jax.config import FromStage, ReplaceVocabulary, Rounds, Run, Scratch, Stage, Task, Work
from clir_jax.config_files import ConfigError, naming
from clir_jax.config_types import mapped, walk
from clir_jax.data.reading import DataError, find_files
from clir_jax.mesh import make_mesh, shardings
from clir_jax.models.cross_encoder import CrossEncoder
from clir_jax.models.generator import Generator
from clir_jax.objectives.base import ModelFacts
from clir_jax.training.kinds import (
    CROSS_ENCODER,
    GENERATOR,
    Backbone,
    Spec,
    abstract,
    facts,
    kind_of,
)
from clir_jax.training.optimizer import make_optimizer
from clir_jax.training.positions import Position, positions
from clir_jax.training.supported import check_tasks, refuse_unsupported


def check(run: Run, *, data_required: bool) -> int:
    """Build every stage abstractly and print what it is and what data it lacks.

    Args:
      run: the configuration.
      data_required: whether missing data are an error.

    Returns:
      The exit status: 1 if data are missing and required, else 0.

    Raises:
      ConfigError: if a stage cannot be built, or training would refuse the run.
    """
    refuse_unsupported(run, max(run.mesh.data, 1) * run.mesh.fsdp)
    console = Console(highlight=False, soft_wrap=True, markup=False)
    # One device: what is checked does not depend on how many there are.
    mesh = make_mesh(devices=jax.devices()[:1])
    encoders: dict[str, Backbone] = {}
    resized: set[str] = set()
    for position in positions(run):
        if position.round > 1:
            continue
        if not isinstance(position.item, Stage):
            console.print(f"{position.label}: {type(position.item).__name__}")
            continue
        stage = _first_round(position, encoders)
        encoders[stage.name] = _encoder(stage, encoders)
        before = isinstance(stage.init, FromStage) and stage.init.stage in resized
        if before or isinstance(stage.vocabulary, ReplaceVocabulary):
            resized.add(stage.name)
        parameters = _build(stage, run, encoders, mesh)
        console.print(
            f"{position.label}: {type(stage.model).__name__}, {parameters / 1e6:.1f} M parameters"
            f"{' before its vocabulary is replaced' if stage.name in resized else ''}, "
            f"{stage.steps} steps of "
            + ", ".join(f"{task.title} ({task.batch_size})" for task in stage.tasks)
        )
    for group in run.stages:
        if isinstance(group, Rounds):
            names = ", ".join(item.name for item in group.stages)
            console.print(f"{group.name}: {group.count} rounds of {names}")
    missing = [path for step in run.flat() for path in _missing(step, run.data_root)]
    for path in dict.fromkeys(missing):
        console.print(f"missing: {path}")
    if missing:
        console.print("set data_root to the directory that holds these, as in --set data_root=DIR")
    return 1 if missing and data_required else 0


def _first_round(position: Position, earlier: Mapping[str, Backbone]) -> Stage:
    """The stage with the models in it that its rounds start with, where they come to it first."""

    def known(part: Any) -> Any:
        while isinstance(part, FromStage) and part.stage not in earlier:
            assert position.group is not None  # Run has checked it.
            part = position.group.start[part.stage]
        return part

    stage: Stage = mapped(position.item, known)
    return stage


def _build(stage: Stage, run: Run, encoders: Mapping[str, Backbone], mesh: Mesh) -> int:
    """Everything of a stage that has a shape; returns the number of parameters."""
    encoder = encoders[stage.name]
    stages = {other.name: other for other in run.training_stages()}
    if isinstance(stage.init, FromStage):
        _refuse_other_kind(stage, stages[stage.init.stage].model)
    with naming(f"stages.{stage.name}"):
        _, params = abstract(stage.model, encoder)
        shardings(params, mesh)
        jax.eval_shape(make_optimizer(stage.optimizer, stage.steps, params).init, params)
    if isinstance(stage.init, FromStage):
        before = stages[stage.init.stage].model
        _, saved = abstract(before, encoder)
        same = kind_of(before) is kind_of(stage.model)
        if same and jax.tree.map(jnp.shape, saved) != jax.tree.map(jnp.shape, params):
            raise ConfigError(
                f"stages.{stage.name}.model has other parameters than that of stage "
                f"{stage.init.stage!r}, from which it starts; make it the same, but for lengths"
            )
    teachers: dict[str, ModelFacts] = {}
    for task in stage.tasks:
        for name, model in task.teachers.items():
            if isinstance(model, FromStage):
                other = stages[model.stage]
                teachers[name] = facts(other.model, encoders[other.name])
            else:
                teachers[name] = _expected(task, name, stage.model, encoder)
    check_tasks(stage, facts(stage.model, encoder), teachers)
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def _refuse_other_kind(stage: Stage, before: Spec) -> None:
    ours, theirs = kind_of(stage.model), kind_of(before)
    if ours is not theirs and (theirs is CROSS_ENCODER or GENERATOR in (ours, theirs)):
        wanted = "a T5 or a generator" if ours is GENERATOR else "an encoder or a retriever"
        raise ConfigError(
            f"stages.{stage.name}.init is a {theirs.name}, and its model is a {ours.name}, which "
            f"starts from {wanted}; name such a model"
        )


def _expected(task: Task, teacher: str, spec: Spec, encoder: Backbone) -> ModelFacts:
    """A teacher that is no stage is whatever its directory says: here, what it is asked to be."""
    asked = {ask.kind for ask in task.asks(teacher).values()}
    for other in (CrossEncoder(), Generator()):
        if asked & set(kind_of(other).answers):
            return facts(other, encoder)
    return facts(spec, encoder)


def _encoder(stage: Stage, earlier: Mapping[str, Backbone]) -> Backbone:
    init, where = stage.init, f"stages.{stage.name}.init"
    if isinstance(init, FromStage):
        return earlier[init.stage]
    if isinstance(init, Scratch):
        size = getattr(stage.vocabulary, "size", init.encoder.vocab_size)
        return dataclasses.replace(init.encoder, vocab_size=size)
    kind = kind_of(stage.model)
    if init not in kind.known and not Path(init).is_dir():
        close = difflib.get_close_matches(init, kind.known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else "training may find it on the hub"
        raise ConfigError(
            f"{where} is {init!r}, which is no directory here and none of the architectures that "
            f"--check knows without a network; {hint}"
        )
    with naming(where):
        return kind.config(init)


def _missing(stage: Stage | Work, data_root: str) -> Iterator[str]:
    """The paths of data below a stage at which there is no file."""
    for node in walk(stage):
        # What reads no files, but an id or a name, has no such method.
        paths = list(node.files()) if hasattr(node, "files") else []
        if isinstance(node, ReplaceVocabulary) and node.tokenizer.endswith(".txt"):
            paths += [] if Path(node.tokenizer).is_file() else [node.tokenizer]
        for path in paths:
            if not _found(data_root, path):
                yield str(epath.Path(data_root) / path)


def _found(data_root: str, path: str) -> bool:
    try:
        return bool(find_files(data_root, path))
    except DataError:
        return False
