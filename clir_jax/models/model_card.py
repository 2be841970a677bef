"""The ``README.md`` of an exported model: what it is, how to load it, its training, its figures."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from clir_jax.files import read_json
from clir_jax.models.cross_encoder_files import LoadedCrossEncoder
from clir_jax.models.generator_files import LoadedGenerator
from clir_jax.models.model_card_code import Model, loading
from clir_jax.models.retriever import Dense

_LIBRARIES = {"pylate": "PyLate", "colbert": "colbert-ai"}
_KEYS = ("dataset", "language", "metric", "system", "value")


def model_card(
    model: Model,
    layout: str,
    name: str,
    remarks: Sequence[str] = (),
    run: Path | None = None,
) -> str:
    """Describe an exported model.

    Args:
      model: the model.
      layout: that it was exported to, one of ``exports.LAYOUTS``.
      name: what it is called.
      remarks: what the library does otherwise, as ``exports.export`` says.
      run: the directory of the run that trained it; None where there is none.

    Returns:
      Markdown, with the front matter of the Hugging Face hub.

    Raises:
      ValueError: if the run's files are damaged.
    """
    config = read_json(run / "config.json", dict) if run else {}
    summary = run / "summary.json" if run else None
    rows = read_json(summary, list) if summary and summary.is_file() else []
    parts = [
        _front_matter(model, layout, config),
        f"# {name}\n\n{_what(model, config)}",
        f"## Loading\n\n{loading(model, layout)}",
        "## Settings\n\n" + _settings(model),
    ]
    if remarks:
        parts.append("## Other vectors\n\n" + "\n".join(f"* {remark}." for remark in remarks))
    if config:
        parts.append("## Training\n\nWith clir_jax.\n\n" + _training(config))
        parts.append("## Measured\n\n" + _measured(rows, _last(config)))
    return "\n\n".join(parts) + "\n"


def run_of(model: str) -> Path | None:
    """The directory of the run that ``model``, a run or its ``model/``, is of; None without one."""
    run = Path(model)
    run = run.parent if run.name == "model" else run
    config = run / "config.json"
    if not (run / "model").is_dir() or not config.is_file():
        return None
    return run if read_json(config, dict).get("type") == "Run" else None


def _front_matter(model: Model, layout: str, config: Mapping[str, Any]) -> str:
    task, tag = "sentence-similarity", "dense-retrieval"
    if isinstance(model, LoadedCrossEncoder):
        task, tag = "text-ranking", "cross-encoder"
    elif isinstance(model, LoadedGenerator):
        task, tag = "text2text-generation", "query-generation"
    elif model.spec.late_interaction:
        tag = "ColBERT"
    facts: dict[str, Any] = {
        "language": _languages(config),
        "library_name": _LIBRARIES.get(layout, layout),
        "pipeline_tag": task,
        "tags": ["clir_jax", "cross-lingual-retrieval", tag],
    }
    bases = [stage["init"] for stage in _stages(config) if isinstance(stage.get("init"), str)]
    # A directory of somebody's machine means nothing to others.
    facts["base_model"] = next((b for b in bases if not Path(b).exists() and b[0] not in "/.~"), "")
    lines = [f"{key}: {json.dumps(value)}" for key, value in facts.items() if value]
    return "\n".join(["---", *lines, "---"])


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
    encoder = model.encoder_config
    made = (
        f"Its encoder is a {encoder.model_type} of {encoder.num_hidden_layers} layers, "
        f"{encoder.hidden_size} wide, with a vocabulary of {encoder.vocab_size:,} pieces."
    )
    if isinstance(model, LoadedCrossEncoder):
        return (
            f"A cross-encoder for questions and passages{of}: it reads both together and gives one "
            f"score, higher where the passage answers the question. {made}"
        )
    spec = model.spec
    size = spec.embedding_size(encoder.hidden_size)
    kind = f"a vector of {size} numbers a text"
    if spec.late_interaction:
        kind = f"late interaction, a vector of {size} numbers a token, compared by MaxSim"
    towers = " Queries and passages have encoders of their own." if model.passage else ""
    return f"A retriever for questions and passages{of}: {kind}. {made}{towers}"


def _settings(model: Model) -> str:
    return _table(("setting", "value"), ((name, _shown(value)) for name, value in _facts(model)))


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


def _training(config: Mapping[str, Any]) -> str:
    lines = []
    for step in _stages(config):
        if step.get("type") != "Stage":
            lines.append((str(step.get("name", "")), str(step.get("type")), "", "", ""))
            continue
        tasks = step.get("tasks", [])
        lines.append(
            (
                str(step["name"]),
                _origin(step.get("init")),
                "; ".join(_type(task.get("objective")) for task in tasks),
                "; ".join(_origin(s) for task in tasks for s in task.get("sources", {}).values()),
                f"{step.get('steps')} of {', '.join(str(t.get('batch_size')) for t in tasks)}",
            )
        )
    return _table(("stage", "starts from", "method", "data", "steps of batch"), lines)


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


def _last(config: Mapping[str, Any]) -> str:
    """What ``summary.json`` calls the last stage, in the last of its rounds."""
    name = ""
    for item in config.get("stages", []):
        group = item.get("type") == "Rounds"
        for stage in item["stages"] if group else [item]:
            if stage.get("type") == "Stage":
                name = f"{stage['name']}.{item['count']}" if group else stage["name"]
    return name


def _stages(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Stages and works, those of rounds among them."""
    for item in config.get("stages", []):
        if item.get("type") == "Rounds":
            yield from _stages(item)
        else:
            yield item


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


def _origin(value: Any) -> str:
    """Where a model or data come from, in few words."""
    if not isinstance(value, Mapping):
        return str(value)
    kind = value.get("type")
    if kind == "Scratch":
        return "random weights"
    if kind == "FromStage":
        return f"stage {value['stage']}"
    words = [str(v) for k, v in value.items() if k != "type" and isinstance(v, str) and v]
    return f"{kind}({', '.join(words)})"


def _type(value: Any) -> str:
    return str(value.get("type")) if isinstance(value, Mapping) else str(value)


def _table(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [heads, ["---"] * len(heads), *lines]
    return "\n".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows
    )
