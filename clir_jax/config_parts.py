"""The parts a configuration is made of: models, vocabularies, optimizer, evaluation."""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Literal, NoReturn

from clir_jax.config_types import Checked, named, require, require_name
from clir_jax.data.bitext import BitextMoses, BitextTSV
from clir_jax.data.collections import (
    AtlasRetrieval,
    BitextPairs,
    BitextRetrieval,
    IRDatasetRetrieval,
    Retrieval,
)
from clir_jax.data.dpr import DPRJSON
from clir_jax.data.gold_alignment import GoldAlignment
from clir_jax.data.hub_datasets import HubDataset
from clir_jax.data.ir import IRDataset
from clir_jax.data.languages import InLanguages
from clir_jax.data.rankings import Beir, RankingJSONL, TriplesTSV
from clir_jax.data.sources import Atlas, CorpusJSONL, Mixture, TextLines
from clir_jax.data.tfds import TFDS
from clir_jax.evaluation.metrics import ALIGNMENT_METRICS, BITEXT_METRICS, metric_name
from clir_jax.models.cross_encoder import CrossEncoder
from clir_jax.models.encoder import EncoderConfig
from clir_jax.models.generator import Generator
from clir_jax.models.retriever import Dense, LateInteraction
from clir_jax.models.t5_config import T5Config


@dataclasses.dataclass(frozen=True)
class MeshShape(Checked):
    """How devices are arranged; see ``clir_jax.mesh.make_mesh``. ``data=-1`` takes what is left."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.data == -1 or self.data >= 1, "mesh: data", self.data, "-1 or at least 1")
        require(self.fsdp >= 1, "mesh: fsdp", self.fsdp, "at least 1")
        require(self.tensor >= 1, "mesh: tensor", self.tensor, "at least 1")


@dataclasses.dataclass(frozen=True)
class Artifact(Checked):
    """The records that an earlier ``Mine``, ``Score`` or ``Generate`` of this run writes.

    Args:
      name: of that work.
    """

    name: str

    def open(self, data_root: str) -> NoReturn:
        """Refuse: where an artifact lies is known to the run only, which opens it in its place."""
        raise ValueError(
            f"artifact {self.name!r} is written by a run and can be read there only; give the file "
            "itself to read it elsewhere"
        )


Source = (
    BitextTSV
    | BitextMoses
    | TriplesTSV
    | Beir
    | RankingJSONL
    | DPRJSON
    | IRDataset
    | TFDS
    | HubDataset
    | TextLines
    | CorpusJSONL
    | Atlas
    | InLanguages
    | Mixture
    | Artifact
)
Collection = Retrieval | IRDatasetRetrieval | AtlasRetrieval | BitextRetrieval
Model = Dense | LateInteraction | CrossEncoder | Generator
# What is not retrieval has metrics of its own.
_METRICS_OF: Mapping[type, tuple[str, ...]] = {
    BitextPairs: BITEXT_METRICS,
    GoldAlignment: ALIGNMENT_METRICS,
}


@dataclasses.dataclass(frozen=True)
class FromStage(Checked):
    """The model an earlier stage of this run trained.

    Args:
      stage: its name.
      which: ``"best"`` by that stage's selection metric, or ``"last"``.
    """

    stage: str
    which: Literal["best", "last"] = "best"


@dataclasses.dataclass(frozen=True)
class Scratch(Checked):
    """A model with random weights; its vocabulary's size and tokens follow the stage's vocabulary.

    Args:
      encoder: its encoder; of a generator, its T5.
    """

    encoder: EncoderConfig | T5Config


@dataclasses.dataclass(frozen=True)
class TrainVocabulary(Checked):
    """Train a WordPiece vocabulary on the text of ``sources``."""

    sources: tuple[Source, ...]
    size: int = 8_000
    lowercase: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.sources), "vocabulary: sources", self.sources, "at least one source")
        require(self.size >= 1, "vocabulary: size", self.size, "at least 1")


@dataclasses.dataclass(frozen=True)
class ReplaceVocabulary(Checked):
    """Give the model another tokenizer, and keep of it what ``trim_to`` uses.

    Pieces that both vocabularies have keep their vectors; others start as the mean of the pieces
    they were made of.

    Args:
      tokenizer: directory or hub name with a tokenizer, or a ``.txt`` file with one WordPiece a
        line; relative to ``data_root`` where it exists there.
      trim_to: sources, collections and gold alignments whose pieces are kept; empty keeps the whole
        vocabulary.
    """

    tokenizer: str
    trim_to: tuple[Source | Collection | GoldAlignment, ...] = ()


Init = str | FromStage | Scratch
Vocabulary = TrainVocabulary | ReplaceVocabulary


@dataclasses.dataclass(frozen=True)
class Group(Checked):
    """What differs for parameters in whose path the regular expression ``pattern`` is found.

    The first group that matches a parameter holds for it; the rest follow the optimizer itself.

    Args:
      pattern: searched in paths such as ``encoder/embeddings/word/embedding``.
      learning_rate: as a multiple of the optimizer's; None leaves it.
      weight_decay: replaces the optimizer's; None leaves it.
      freeze: these parameters do not change, and cost no optimizer memory.
    """

    pattern: str
    learning_rate: float | None = None
    weight_decay: float | None = None
    freeze: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(
                f"group: pattern {self.pattern!r} is no regular expression ({error}); correct it"
            ) from None
        for name in ("learning_rate", "weight_decay"):
            value = getattr(self, name)
            holds = value is None or 0 <= value < math.inf
            require(holds, f"group: {name}", value, "a finite number of at least 0, or None")


@dataclasses.dataclass(frozen=True)
class Optimizer(Checked):
    """AdamW with warm-up, decay and clipping.

    Args:
      learning_rate: after warm-up.
      schedule: of the rate after warm-up: ``"constant"``; ``"linear"`` or ``"cosine"`` down to 0 at
        the stage's last step; ``"inverse_sqrt"``, falling with the root of the update's number.
      warmup: updates of linear growth from 0.
      weight_decay: decoupled; biases and layer norms are spared.
      clip_norm: gradients with a larger global norm are scaled to it; None does not clip.
      beta1, beta2, epsilon: Adam's.
      accumulate: batches whose mean gradient makes one update; a step is still one batch.
      ema: decay of an exponential moving average of the parameters, 0.999 for instance; what is
        evaluated and saved is then the average. None keeps none.
      groups: exceptions by parameter path.
    """

    learning_rate: float = 2e-5
    schedule: Literal["constant", "linear", "cosine", "inverse_sqrt"] = "linear"
    warmup: int = 0
    weight_decay: float = 0.01
    clip_norm: float | None = 1.0
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    accumulate: int = 1
    ema: float | None = None
    groups: tuple[Group, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("learning_rate", "weight_decay"):
            value = getattr(self, name)
            holds = 0 <= value < math.inf
            require(holds, f"optimizer: {name}", value, "a finite number of at least 0")
        for name in ("beta1", "beta2"):
            value = getattr(self, name)
            require(0 <= value < 1, f"optimizer: {name}", value, "at least 0 and below 1")
        averages = self.ema is None or 0 < self.ema < 1
        require(averages, "optimizer: ema", self.ema, "above 0 and below 1, or None")
        for name in ("epsilon", "clip_norm"):
            value = getattr(self, name)
            holds = (value is None) or 0 < value < math.inf
            require(holds, f"optimizer: {name}", value, "a finite number above 0")
        require(self.warmup >= 0, "optimizer: warmup", self.warmup, "at least 0")
        require(self.accumulate >= 1, "optimizer: accumulate", self.accumulate, "at least 1")


@dataclasses.dataclass(frozen=True)
class Evaluate(Checked):
    """What is measured while a stage trains, and which checkpoint is best.

    Args:
      collections: test sets by name; the name is the dataset of summary rows.
      every: steps between evaluations; 0 evaluates only when the stage ends.
      every_seconds: seconds of training between evaluations, besides; None counts steps only. What
        the clock decides is not repeated to the bit by another run.
      metrics: of retrieval, in ir-measures' spelling; its aliases are replaced, ``"MRR@10"`` by
        ``"RR@10"``. ``BitextPairs`` and ``GoldAlignment`` have metrics of their own, those named
        in ``evaluation.metrics``.
      best: ``"metric collection"``, as ``"nDCG@10 sw"``; higher is better. Empty takes the first
        metric of the first collection.
      baselines: systems measured once before training: ``"bm25"``, ``"teacher"`` (every teacher of
        the stage), ``"student_before"``.
      depth: passages kept a query. A cross-encoder or a generator reranks so many candidates.
      candidates: by collection: the file of a TREC run, under ``data_root``, whose passages a
        cross-encoder or a generator reranks. Where there is none, it reranks those that BM25 finds
        for the query as it is; for questions in another language than the passages', name a run.
    """

    collections: Mapping[str, Collection | BitextPairs | GoldAlignment]
    every: int = 0
    every_seconds: float | None = None
    metrics: tuple[str, ...] = ("nDCG@10", "RR@10", "R@100")
    best: str = ""
    baselines: tuple[Literal["bm25", "teacher", "student_before"], ...] = ()
    depth: int = 100
    candidates: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.collections or not self.metrics:
            raise ValueError("evaluate: collections and metrics need at least one entry each")
        for name in self.collections:
            require_name(name, "evaluate: a collection")
        for name in self.candidates:
            if name not in self.collections or self._of(name) is not self.metrics:
                ranked = [other for other in self.collections if self._of(other) is self.metrics]
                raise ValueError(
                    f"evaluate: candidates has {name!r}, and the collections that are searched are "
                    f"{named(ranked)}; name one of these"
                )
        require(self.every >= 0, "evaluate: every", self.every, "at least 0")
        seconds = self.every_seconds is None or 0 < self.every_seconds < math.inf
        require(seconds, "evaluate: every_seconds", self.every_seconds, "above 0, or None")
        require(self.depth >= 1, "evaluate: depth", self.depth, "at least 1")
        metrics = tuple(dict.fromkeys(map(metric_name, self.metrics)))
        for metric in metrics:
            cutoff = metric.rpartition("@")[2]
            if cutoff.isdecimal() and int(cutoff) > self.depth:
                raise ValueError(
                    f"evaluate: depth is {self.depth}, and {metric} looks at {cutoff} passages; "
                    f"set depth to at least {cutoff}"
                )
        object.__setattr__(self, "metrics", metrics)
        metric, _, name = self.best.rpartition(" ")
        choices = [f"{metric} {name}" for name in self.collections for metric in self._of(name)]
        if name in self.collections and self._of(name) is self.metrics:
            object.__setattr__(self, "best", f"{metric_name(metric)} {name}")
        if metric == "AER" and self.best in choices:
            raise ValueError(
                f"evaluate: best is {self.best!r}, whose lowest value is best, and the checkpoint "
                f"of the highest is kept; write {f'F1 {name}'!r}"
            )
        if self.selection not in choices:
            raise ValueError(
                f"evaluate: best is {self.best!r}; write one of {', '.join(map(repr, choices))}"
            )

    def files(self) -> tuple[str, ...]:
        """The runs of ``candidates``."""
        return tuple(self.candidates.values())

    @property
    def repeats(self) -> bool:
        """Whether there are evaluations before the stage ends."""
        return self.every > 0 or self.every_seconds is not None

    @property
    def selection(self) -> str:
        """The metric and collection that choose the best checkpoint."""
        first = next(iter(self.collections))
        return self.best or f"{self._of(first)[0]} {first}"

    def _of(self, name: str) -> tuple[str, ...]:
        """The metrics of a collection."""
        return _METRICS_OF.get(type(self.collections[name]), self.metrics)


@dataclasses.dataclass(frozen=True)
class Stop(Checked):
    """End a stage after ``patience`` evaluations without a better selection metric."""

    patience: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.patience >= 1, "stop: patience", self.patience, "at least 1")


@dataclasses.dataclass(frozen=True)
class OnPlateau(Checked):
    """Multiply the learning rate by ``factor`` after ``patience`` evaluations without a better."""

    factor: float = 0.5
    patience: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.factor < 1, "on_plateau: factor", self.factor, "above 0 and below 1")
        require(self.patience >= 1, "on_plateau: patience", self.patience, "at least 1")
