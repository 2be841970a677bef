"""The ``README.md`` of an exported model: what it is, how to load it, its training, its figures."""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from clir_jax.models.cross_encoder_files import LoadedCrossEncoder
from clir_jax.models.encoder import EncoderConfig
from clir_jax.models.formats import LoadedRetriever
from clir_jax.models.generator_files import LoadedGenerator
from clir_jax.models.hub import KNOWN_ARCHITECTURES, in_hub_cache
from clir_jax.models.model_card_code import Model, loading
from clir_jax.models.retriever import Dense
from clir_jax.models.t5_files import KNOWN_T5

_LIBRARIES = {"pylate": "PyLate", "colbert": "colbert-ai"}
_KEYS = ("dataset", "language", "metric", "system", "value")
# The first models of the hub had no owner.
_OWNERS = ("google-bert", "FacebookAI", "google-t5")


@dataclasses.dataclass(frozen=True)
class Training:
    """What a card tells of the training of a model.

    Args:
      title: what the model is called if nobody says it.
      told: Markdown.
      stage: that the model is from, as rows call it.
      rows: of ``summary.json``.
      languages: that it was trained in.
      bases: what its weights began as, of queries and of passages: a name on the hub or of a
        package, a directory, or ``""`` for random weights. Empty where it is not known.
    """

    title: str
    told: str
    stage: str
    rows: Sequence[Mapping[str, Any]] = ()
    languages: Sequence[str] = ()
    bases: Sequence[str] = ()


def model_card(
    model: Model,
    layout: str,
    name: str,
    remarks: Sequence[str] = (),
    training: Training | None = None,
) -> str:
    """Describe an exported model.

    Args:
      model: the model.
      layout: that it was exported to, one of ``exports.LAYOUTS``.
      name: what it is called.
      remarks: what the library does otherwise, as ``exports.export`` says.
      training: how it was trained; None where that is not known.

    Returns:
      Markdown, with the front matter of the Hugging Face hub.

    Raises:
      ValueError: if a row of the summary is damaged.
    """
    languages = sorted(set(training.languages)) if training else []
    bases = training.bases if training else ()
    parts = [
        _front_matter(model, layout, languages, bases),
        f"# {name}\n\n{_what(model, languages)}",
        f"## Loading\n\n{loading(model, layout)}",
        "## Settings\n\n" + _settings(model),
    ]
    if remarks:
        parts.append("## Other vectors\n\n" + "\n".join(f"* {remark}." for remark in remarks))
    if training:
        parts.append(f"## Training\n\nWith clir_jax. {_bases(bases)}\n\n{training.told}")
        parts.append("## Measured\n\n" + _measured(training.rows, training.stage))
    return "\n\n".join(parts) + "\n"


def shown(model: str) -> str:
    """A model's name as code; of a directory on somebody's machine, its last part."""
    return f"`{Path(model).name if model.startswith(('/', '~')) else model}`"


def _front_matter(model: Model, layout: str, languages: Sequence[str], bases: Sequence[str]) -> str:
    task, tag = "sentence-similarity", "dense-retrieval"
    if isinstance(model, LoadedCrossEncoder):
        task, tag = "text-ranking", "cross-encoder"
    elif isinstance(model, LoadedGenerator):
        task, tag = "text2text-generation", "query-generation"
    elif model.spec.late_interaction:
        tag = "ColBERT"
    known = list(dict.fromkeys(name for name in map(_hub_name, bases) if name))
    facts: dict[str, Any] = {
        "language": languages,
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
    if not told:
        return "What it began as is not known here."
    if len(set(told)) == 1:
        return f"It began as {told[0]}."
    return f"What encodes queries began as {told[0]}, what encodes passages as {told[1]}."


def _hub_name(model: str) -> str:
    """The name of a model that is known to be the hub's; ``""`` for what may be a directory."""
    if Path(model).exists():
        return ""
    known = KNOWN_ARCHITECTURES | KNOWN_T5
    names = (model, *(f"{owner}/{model}" for owner in _OWNERS))
    named = next((name for name in names if "/" in name and name in known), "")
    return named or (model if in_hub_cache(model) else "")


def _what(model: Model, languages: Sequence[str]) -> str:
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


def _table(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [heads, ["---"] * len(heads), *lines]
    return "\n".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows
    )
