"""Retrieval metrics by ir-measures, over one fixed order of every ranking."""

import dataclasses
import difflib
import logging
from collections.abc import Mapping, Sequence
from typing import cast

import ir_measures

from clir_jax.evaluation.runs import Qrels, Run, ranked

BITEXT_METRICS = ("accuracy xx->en", "accuracy en->xx", "margin F1")
"""What ``evaluation.bitext`` measures of translation pairs."""

ALIGNMENT_METRICS = ("F1", "precision", "recall", "AER")
"""What ``evaluation.alignment`` measures of word alignments; of AER, the lowest is best."""

_log = logging.getLogger(__name__)

# Names in other tools that do not resemble those of ir-measures.
_ELSEWHERE = {"hit": "Success", "hits": "Success", "recip_rank": "RR", "map_cut": "AP"}


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The metrics of a run.

    Args:
      values: the mean over the judged queries by metric; one that the run lacks counts 0.
      per_query: for every metric, its value for every judged query, in the order of the judgements.
      missing: judged queries for which the run has no document.
      unjudged: queries of the run without judgements; they are in no mean.
      irrelevant: judged queries without one relevant document; they count 0, as in ir-measures.
    """

    values: Mapping[str, float]
    per_query: Mapping[str, Mapping[str, float]]
    missing: tuple[str, ...]
    unjudged: tuple[str, ...]
    irrelevant: tuple[str, ...]


def evaluate_run(qrels: Qrels, run: Run, metrics: Sequence[str]) -> dict[str, float]:
    """Measure a run, and tell the log which queries could not be judged.

    Args:
      qrels: for every query id, document ids and their relevance.
      run: for every query id, document ids and scores.
      metrics: names in the spelling of ir-measures: ``"nDCG@10"``, ``"RR@10"``, ``"R@100"``.

    Returns:
      The mean over the judged queries, by ``metric_name``: ``"MRR@10"`` comes back as ``"RR@10"``.

    Raises:
      ValueError: as ``evaluate_queries``.

    Example:
      >>> run = {"q1": [("x", 2.0), ("a", 1.0)]}
      >>> evaluate_run({"q1": {"a": 1}, "q2": {"b": 1}}, run, ["RR@10"])
      {'RR@10': 0.25}
    """
    result = evaluate_queries(qrels, run, metrics)
    for what, queries in (
        ("of the run have no judgements and are in no mean", result.unjudged),
        ("are judged but not in the run and count 0", result.missing),
        ("have no relevant document and count 0", result.irrelevant),
    ):
        if queries:
            _log.warning("%d queries %s, for example %r", len(queries), what, queries[0])
    return dict(result.values)


def evaluate_queries(qrels: Qrels, run: Run, metrics: Sequence[str]) -> Evaluation:
    """Measure a run, query by query.

    Every ranking is put in the order of ``runs.ranked`` first, because the tools behind ir-measures
    break ties differently, and two of them serve "nDCG@10" and "RR@10".

    Args:
      qrels: for every query id, document ids and their relevance.
      run: for every query id, document ids and scores.
      metrics: names in the spelling of ir-measures.

    Returns:
      Means, values per query, and the queries that were not measured.

    Raises:
      ValueError: if a metric is unknown, there is no judgement, or no query of the run is judged.
    """
    names = list(dict.fromkeys(metric_name(metric) for metric in metrics))
    if not qrels:
        raise ValueError("evaluation: no query has judgements; give qrels with at least one")
    unjudged = tuple(query for query in run if query not in qrels)
    if run and len(unjudged) == len(run):
        raise ValueError(
            f"evaluation: no query of the run is judged (the run has {next(iter(run))!r}, the "
            f"qrels {next(iter(qrels))!r}); give the qrels of the same collection"
        )
    # Places instead of scores: distinct, and exact in the float32 that pytrec_eval reads.
    places = {
        query: {d: float(-place) for place, (d, _) in enumerate(ranked(documents))}
        for query, documents in run.items()
        if query in qrels
    }
    measures = [ir_measures.parse_measure(name) for name in names]
    judged = {query: dict(documents) for query, documents in qrels.items()}
    answer = ir_measures.calc(measures, judged, places)
    values = cast(dict[ir_measures.Measure, float], answer.aggregated)
    per_query: dict[str, dict[str, float]] = {name: dict.fromkeys(qrels, 0.0) for name in names}
    for row in answer.per_query:
        per_query[str(row.measure)][row.query_id] = float(row.value)
    return Evaluation(
        values={
            name: float(values[measure]) for name, measure in zip(names, measures, strict=True)
        },
        per_query=per_query,
        missing=tuple(query for query in qrels if not places.get(query)),
        unjudged=unjudged,
        irrelevant=tuple(q for q in qrels if not any(rel > 0 for rel in qrels[q].values())),
    )


def metric_name(name: str) -> str:
    """Give a metric's name in the spelling of ir-measures, and say so where it is another one.

    Args:
      name: such as ``"nDCG@10"``, ``"R(rel=2)@100"``, or an alias that ir-measures knows, such as
        ``"MRR@10"`` or ``"Recall@100"``.

    Returns:
      The name that results carry: ``"RR@10"`` for ``"MRR@10"``.

    Raises:
      ValueError: if there is no such metric, with the nearest one; if its parameters do not fit; or
        if the package that computes it is not installed.

    Example:
      >>> metric_name("nDCG@10")
      'nDCG@10'
    """
    try:
        measure = ir_measures.parse_measure(name)
        measure.validate_params()  # type: ignore[no-untyped-call]
    except NameError:
        raise ValueError(f"metric {name!r} is unknown to ir-measures; {_nearest(name)}") from None
    except (AssertionError, ValueError):
        raise ValueError(
            f"metric {name!r} cannot be read; write a name, parameters if any, and a whole number "
            "as the cutoff, as in nDCG@10, R@100 or RR(rel=2)@10"
        ) from None
    cutoff = measure.params.get("cutoff")
    if cutoff is not None and cutoff < 1:
        raise ValueError(f"metric {name!r} looks at no document; write a cutoff of 1 or more")
    if not ir_measures.DefaultPipeline.supports(measure):  # type: ignore[no-untyped-call]
        raise ValueError(
            f"metric {name!r} needs a package that is not installed; see ir-measures' list of "
            "providers, or choose nDCG, RR, R, P, AP or Success"
        )
    if str(measure) != name:
        _log.warning("metric %r is reported as %r, its name in ir-measures", name, str(measure))
    return str(measure)


def _nearest(name: str) -> str:
    base, _, cutoff = name.partition("@")
    base = base.partition("(")[0].strip()
    known = {k.lower(): str(m.NAME) for k, m in ir_measures.measures.registry.items()} | _ELSEWHERE
    close = difflib.get_close_matches(base.lower(), known, n=1, cutoff=0.5)
    if not close:
        return "known are nDCG@10, RR@10, R@100, AP, P@10, Success@1 and others of its list"
    return f"did you mean {known[close[0]] + ('@' + cutoff if cutoff else '')!r}?"
