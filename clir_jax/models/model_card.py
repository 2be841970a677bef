"""The ``README.md`` of an exported model: what it is, how to load it, its training, its figures."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from clir_jax.files import read_json
from clir_jax.models.cross_encoder_files import LoadedCrossEncoder
from clir_jax.models.encoder import EncoderConfig
from clir_jax.models.formats import LoadedRetriever
from clir_jax.models.generator_files import LoadedGenerator
from clir_jax.models.model_card_code import Model, loading
from clir_jax.models.model_card_training import (
    Place,
    Trained,
    began_as,
    history,
    hub_name,
    shown,
    training,
)
from clir_jax.models.retriever import Dense

_LIBRARIES = {"pylate": "PyLate", "colbert": "colbert-ai"}
_KEYS = ("dataset", "language", "metric", "system", "value")


def model_card(
    model: Model,
    layout: str,
    name: str,
    remarks: Sequence[str] = (),
    trained: Trained | None = None,
) -> str:
    """Describe an exported model.

    Args:
      model: the model.
      layout: that it was exported to, one of ``exports.LAYOUTS``.
      name: what it is called.
      remarks: what the library does otherwise, as ``exports.export`` says.
      trained: the stage that trained it; None where there is none.

    Returns:
      Markdown, with the front matter of the Hugging Face hub.

    Raises:
      ValueError: if the run's files are damaged.
    """
    config: Mapping[str, Any] = {}
    places: list[Place] = []
    rows: list[Any] = []
    if trained:
        config = read_json(trained.run / "config.json", dict)
        places = history(config, trained.stage)
        summary = trained.run / "summary.json"
        rows = read_json(summary, list) if summary.is_file() else []
    towers = (False, True) if isinstance(model, LoadedRetriever) and model.passage else (False,)
    bases = [began_as(places, passages) for passages in towers] if places else []
    parts = [
        _front_matter(model, layout, config, bases),
        f"# {name}\n\n{_what(model, config)}",
        f"## Loading\n\n{loading(model, layout)}",
        "## Settings\n\n" + _settings(model),
    ]
    if remarks:
        parts.append("## Other vectors\n\n" + "\n".join(f"* {remark}." for remark in remarks))
    if places:
        told = f"With clir_jax. {_bases(bases)}\n\n{training(places)}"
        parts.append(f"## Training\n\n{told}")
        parts.append("## Measured\n\n" + _measured(rows, places[-1].label))
    return "\n\n".join(parts) + "\n"


def run_of(model: str) -> Trained | None:
    """Find the run that a model is of.

    Args:
      model: a run, or the directory of one of its stages; or ``model/`` in either.

    Returns:
      The stage that trained it; None for any other directory or name.

    Raises:
      ValueError: if the run's configuration is damaged.
    """
    place = Path(os.path.abspath(model))
    place = place.parent if place.name == "model" else place
    stage = ""
    if place.parent.name == "stages":
        stage, run = place.name.partition("-")[2], place.parent.parent
    else:
        run = place
    config = run / "config.json"
    if not (place / "model").is_dir() or not config.is_file():
        return None
    return Trained(run, stage) if read_json(config, dict).get("type") == "Run" else None


def _front_matter(
    model: Model, layout: str, config: Mapping[str, Any], bases: Sequence[str]
) -> str:
    task, tag = "sentence-similarity", "dense-retrieval"
    if isinstance(model, LoadedCrossEncoder):
        task, tag = "text-ranking", "cross-encoder"
    elif isinstance(model, LoadedGenerator):
        task, tag = "text2text-generation", "query-generation"
    elif model.spec.late_interaction:
        tag = "ColBERT"
    known = list(dict.fromkeys(name for name in map(hub_name, bases) if name))
    facts: dict[str, Any] = {
        "language": _languages(config),
        "library_name": _LIBRARIES.get(layout, layout),
        "pipeline_tag": task,
        "tags": ["clir_jax", "cross-lingual-retrieval", tag],
        "base_model": known[0] if len(known) == 1 else known,
    }
    lines = [f"{key}: {json.dumps(value)}" for key, value in facts.items() if value]
    return "\n".join(["---", *lines, "---"])


def _bases(bases: Sequence[str]) -> str:
    """What the weights began as, also where the hub does not have it."""
    told = [shown(base) if base else "random weights" for base in bases]
    if len(set(told)) == 1:
        return f"It began as {told[0]}."
    return f"What encodes queries began as {told[0]}, what encodes passages as {told[1]}."


def _what(model: Model, config: Mapping[str, Any]) -> str:
    languages = _languages(config)
    of = f" in {', '.join(languages)}" if languages else ""
    if isinstance(model, LoadedGenerator):
        t5 = model.t5_config
        return (
            f"A generator that reads a passage and writes a question for it{of}. It is a T5 of "
            f"{t5.num_layers} layers, {t5.d_model} wide, with a vocabulary of {t5.vocab_size:,} "
            "pieces."
        )
    encoder = _encoder(model.encoder_config)
    if isinstance(model, LoadedCrossEncoder):
        return (
            f"A cross-encoder for questions and passages{of}: it reads both together and gives one "
            f"score, higher where the passage answers the question. Its encoder is {encoder}."
        )
    spec = model.spec
    size = spec.embedding_size(model.encoder_config.hidden_size)
    kind = f"a vector of {size} numbers a text"
    if spec.late_interaction:
        kind = f"late interaction, a vector of {size} numbers a token, compared by MaxSim"
    made = f"Its encoder is {encoder}."
    if model.passage:
        other = _encoder(model.passage.encoder_config)
        made = f"Queries and passages have encoders of their own, each {encoder}."
        if other != encoder:
            made = f"Queries have an encoder of their own, {encoder}; that of passages is {other}."
    return f"A retriever for questions and passages{of}: {kind}. {made}"


def _encoder(config: EncoderConfig) -> str:
    return (
        f"a {config.model_type} of {config.num_hidden_layers} layers, {config.hidden_size} wide, "
        f"with a vocabulary of {config.vocab_size:,} pieces"
    )


def _settings(model: Model) -> str:
    facts = [(name, _shown(value)) for name, value in _facts(model)]
    if isinstance(model, LoadedRetriever) and model.passage:
        others = {name: _shown(value) for name, value in _facts(model.passage)}
        facts = [
            (name, value if others.get(name) == value else _of_each(value, others.get(name)))
            for name, value in facts
        ]
    return _table(("setting", "value"), facts)


def _of_each(query: str, passage: str | None) -> str:
    """A setting in which towers differ."""
    return f"{query} in `query/`, {passage} in `passage/`"


def _facts(model: Model) -> list[tuple[str, Any]]:
    if isinstance(model, LoadedGenerator):
        return [
            ("tokens a prompt, at most", model.spec.source_length),
            ("tokens a question, at most", model.spec.target_length),
            ("prompt", model.spec.prompt),
            ("languages of questions", ", ".join(model.spec.languages) or "not known"),
        ]
    if isinstance(model, LoadedCrossEncoder):
        return [
            ("tokens a pair, at most", model.spec.length),
            ("pieces of a query, at most", model.spec.query_length),
            ("put before a query", model.spec.query_prompt),
            ("put before a passage", model.spec.passage_prompt),
        ]
    spec = model.spec
    facts: list[tuple[str, Any]] = [
        ("tokens a query, at most", spec.query_length),
        ("tokens a passage, at most", spec.passage_length),
    ]
    if isinstance(spec, Dense):
        return [
            *facts,
            ("pooling", spec.pooling),
            ("projection", spec.projection or "none"),
            ("vectors of length 1", spec.normalize),
            ("put before a query", spec.query_prompt),
            ("put before a passage", spec.passage_prompt),
        ]
    return [
        *facts,
        ("marker of queries", spec.query_marker),
        ("marker of passages", spec.passage_marker),
        ("queries filled up with mask tokens", spec.expansion),
        ("these are attended to", spec.attend_to_expansion),
        ("tokens left out of passages", len(model.skiplist) if spec.skip_punctuation else 0),
        ("vectors of the text's own tokens only", spec.content_only),
    ]


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str) and not value.isalpha():  # spaces at its ends count
        return f"`{json.dumps(value, ensure_ascii=False)}`" if value else "nothing"
    return str(value)


def _measured(rows: Sequence[Mapping[str, Any]], stage: str) -> str:
    """The figures of the stage that the model is from."""
    for number, row in enumerate(rows, 1):
        missing = [key for key in (*_KEYS, "stage") if key not in row]
        if missing:
            raise ValueError(f"summary.json: row {number} lacks {missing[0]!r}; restore the file")
    last = [row for row in rows if row["stage"] == stage]
    if not last:
        return f"Nothing was measured after `{stage}`, the stage that this model is from."
    systems = list(dict.fromkeys(row["system"] for row in last))
    lines: dict[tuple[str, ...], dict[str, str]] = {}
    for row in last:
        place = tuple(str(row[key]) for key in _KEYS[:3])
        lines.setdefault(place, {})[row["system"]] = f"{float(row['value']):.3f}"
    return "This model is `student`.\n\n" + _table(
        (*_KEYS[:3], *systems),
        ((*place, *(cells.get(s, "") for s in systems)) for place, cells in lines.items()),
    )


def _languages(config: Any) -> list[str]:
    """Every language that a configuration names, sorted."""
    found: set[str] = set()
    if isinstance(config, Mapping):
        for key, value in config.items():
            if key == "language" and isinstance(value, str) and value:
                found.add(value)
            elif key == "languages" and isinstance(value, list):
                found |= {v for v in value if isinstance(v, str)}
            found |= set(_languages(value))
    elif isinstance(config, list):
        found = {language for part in config for language in _languages(part)}
    return sorted(found)


def _table(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [heads, ["---"] * len(heads), *lines]
    return "\n".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows
    )
