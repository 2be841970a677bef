"""Works: what writes an artifact that later stages read."""

import dataclasses
import math
from typing import Literal

from clir_jax.config_parts import Collection, FromStage, Source
from clir_jax.config_types import Checked, named, require, require_name, walk
from clir_jax.data.languages import InLanguages
from clir_jax.models.generator import Beam, Greedy, Sample


@dataclasses.dataclass(frozen=True)
class _Work(Checked):
    """What writes the artifact ``name``."""

    name: str

    def __post_init__(self) -> None:
        super().__post_init__()
        require_name(self.name, "work")

    def _refuse_languages(self, source: Source) -> None:
        """Refuse a choice of languages for each reading: an artifact is one reading for all."""
        if any(isinstance(node, InLanguages) for node in walk(source)):
            raise ValueError(
                f"work {self.name}: its source is InLanguages, and what it writes would not be in "
                f"turn in these; give it the source inside, and write InLanguages(Artifact"
                f"({self.name!r}), ...) where the artifact is read"
            )


@dataclasses.dataclass(frozen=True)
class Mine(_Work):
    r"""Write ``source`` with hard negatives: passages that ``model`` ranks high.

    Of the ranks after ``skip`` up to ``depth``, the filters leave out passages that may be relevant
    after all; ``negatives`` of the rest are kept. With :math:`s^+` the score of the positive that
    scores lowest, a negative's score :math:`s` satisfies

    .. math::
      s \le s^+ - \mathtt{margin}, \qquad
      s \le s^+ - (1 - \mathtt{max\_relative}) |s^+|

    where these are given. ``hard`` and ``semi_hard`` count what triplets are made of: hard is
    :math:`s > s^+`, semi-hard :math:`s^+ > s > s^+ - \mathtt{semi\_hard\_margin}`.

    Args:
      name: of the artifact.
      model: the retriever that searches, or ``"bm25"``.
      source: rankings; passages known to be relevant are never negatives.
      corpus: whose passages are searched.
      negatives: kept a question.
      depth: passages looked at.
      skip: of them, the first so many ranks are passed over.
      sampling: ``"random"`` draws from what the filters leave, ``"top"`` takes the first.
      query_language: the questions are searched in; empty for the source's own language.
      margin: absolute, in the model's scores; None for none.
      max_relative: of the positive's score, .95 for instance; None for no limit.
      hard: how many negatives may be hard. With ``semi_hard``, it makes up ``negatives``.
      semi_hard: how many may be semi-hard.
      semi_hard_margin: the margin of the triplet loss.
      duplicates: leave out passages whose words are so much alike to a known positive's: the
        Jaccard index of the sets of words, without case and punctuation; 1 is the same words. None
        compares nothing. (Chinese, Japanese and Thai have a clause for a word.)
      other_documents: leave out passages of a positive's document, which are those with its title;
        a positive that is not in the corpus has none.
      judge: a retriever, ``"bm25"``, a cross-encoder or a query generator, that leaves out what it
        scores above ``judge_max_relative`` of its score of the positive; None for no judge. The
        latter two read every question with each of its passages.
      judge_max_relative: as ``max_relative``. The scores of a cross-encoder and a generator are
        logarithms, of which a share has no meaning: with them it is the share of :math:`e^{s^+}`,
        so that :math:`s \le s^+ + \ln(\mathtt{judge\_max\_relative})`; .1, for instance, leaves out
        what gets more than a tenth of what the positive gets in a softmax over passages.
      judge_language: that the judge reads questions in; empty for ``query_language``.
      drop_empty: leave out records without any negative; they are kept otherwise.

    Example:
      CL-ReLKT's step 1 searches with the English question and passes the first rank over; its step
      2 walks the whole corpus by falling score, and drops what has no negative:

      >>> from clir_jax.data.collections import Retrieval
      >>> from clir_jax.data.sources import Atlas
      >>> asked = Atlas("ranking", "sw")
      >>> corpus = Retrieval("corpus.jsonl", "queries.tsv", "qrels.trec", "en")  # with titles
      >>> first = Mine("first", "bm25", asked, corpus, negatives=3, skip=1, sampling="top",
      ...     query_language="en", other_documents=True)
      >>> second = Mine("second", FromStage("warm"), asked, corpus, negatives=5, depth=2000,
      ...     sampling="top", hard=2, semi_hard=3, semi_hard_margin=0.27, other_documents=True,
      ...     drop_empty=True)

    References:
      Moreira et al., NV-Retriever: Improving text embedding models with effective hard-negative
      mining, 2024, arXiv:2407.15831 (margins relative to the positive); Limkonchotiwat et al.,
      CL-ReLKT: Cross-lingual Language Knowledge Transfer for Multilingual Retrieval Question
      Answering, Findings of NAACL 2022.
    """

    model: str | FromStage
    source: Source
    corpus: Source | Collection
    negatives: int = 8
    depth: int = 100
    skip: int = 0
    sampling: Literal["random", "top"] = "random"
    query_language: str = ""
    margin: float | None = None
    max_relative: float | None = None
    hard: int = 0
    semi_hard: int = 0
    semi_hard_margin: float | None = None
    duplicates: float | None = None
    other_documents: bool = False
    judge: str | FromStage | None = None
    judge_max_relative: float = 0.95
    judge_language: str = ""
    drop_empty: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._refuse_languages(self.source)
        where = f"work {self.name}"
        require(self.skip >= 0, f"{where}: skip", self.skip, "at least 0")
        enough = 1 <= self.negatives <= self.depth - self.skip
        wanted = "from 1 to depth - skip" if self.skip else "from 1 to depth"
        require(enough, f"{where}: negatives", self.negatives, wanted)
        holds = self.margin is None or 0 <= self.margin < math.inf
        require(holds, f"{where}: margin", self.margin, "a finite number of at least 0, or None")
        for name in ("max_relative", "duplicates"):
            value = getattr(self, name)
            holds = value is None or 0 < value <= 1
            require(holds, f"{where}: {name}", value, "above 0 and at most 1, or None")
        value = self.judge_max_relative
        require(0 < value < math.inf, f"{where}: judge_max_relative", value, "above 0 and finite")
        self._check_kinds(where)

    def _check_kinds(self, where: str) -> None:
        for name in ("hard", "semi_hard"):
            require(getattr(self, name) >= 0, f"{where}: {name}", getattr(self, name), "at least 0")
        kinds, margin = self.hard + self.semi_hard, self.semi_hard_margin
        if kinds and kinds != self.negatives:
            raise ValueError(
                f"{where}: negatives is {self.negatives}, and hard + semi_hard is {kinds}; set "
                f"negatives to {kinds}"
            )
        if (margin is not None) != (self.semi_hard > 0):
            raise ValueError(
                f"{where}: semi_hard is {self.semi_hard} and semi_hard_margin {margin}; give both, "
                "or neither"
            )
        holds = margin is None or 0 < margin < math.inf
        require(holds, f"{where}: semi_hard_margin", margin, "a finite number above 0")
        if self.hard and (self.margin is not None or self.max_relative is not None):
            raise ValueError(
                f"{where}: hard negatives score above the positive, which margin and max_relative "
                "leave out; set hard to 0, or both of these to None"
            )


@dataclasses.dataclass(frozen=True)
class Score(_Work):
    """Write ``source`` with ``model``'s scores of the passages of every record.

    A retriever's score is MaxSim or the inner product, a cross-encoder's its own, and a generator's
    the mean log-likelihood of the question's tokens, given the passage.

    Args:
      name: of the artifact.
      model: a retriever, a cross-encoder or a generator.
      source: rankings; scores that they have are replaced.
      query_language: the model reads questions in; empty for the source's own language. Of a
        generator it decides the prompt.
    """

    model: str | FromStage
    source: Source
    query_language: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._refuse_languages(self.source)


@dataclasses.dataclass(frozen=True)
class Generate(_Work):
    r"""Write ``each`` questions in each of ``languages`` for every passage of ``corpus``.

    What is written are rankings: a question in each language, with the passage as the positive.
    They are not translations of each other. Left out, one by one, and counted by language, are
    questions that are empty; unfinished, which come to the generator's ``target_length`` without an
    end; not found again in a **round trip**, in which ``round_trip`` searches the corpus for them
    and has to have the passage among the first ``round_trip_depth``; and written before, which a
    record in that language has already.

    Of the good questions of a passage, the first in each language make a record, then the second in
    each, and so on; what a language has more than another is left over. So every record has all
    languages, as all that reads it expects (an objective that names or compares them, ``Mine`` and
    ``Score``, ``InLanguages``), and a question that is lost takes none of another language with it
    where ``each`` is large enough. Where nothing compares languages, a work for each of them keeps
    every good question.

    All questions are kept beside the artifact, in ``NAME+written/``: with another ``round_trip``,
    depth or ``round_trip_languages``, none is written again. The vectors of a round trip are kept
    only until the artifact is whole: before, the same retriever encodes no passage of the corpus
    again; after it, all of them.

    Args:
      name: of the artifact.
      model: the generator.
      corpus: the passages.
      languages: of the questions; the first is the language of the rankings. One that the generator
        was not trained for is written in too, and told.
      each: questions a passage and language; as many records a passage at most.
      sample: passages to write for, a fixed random choice; None writes for all. A round trip
        searches all.
      decoding: how questions are written; ``each`` above 1 wants ``Sample``.
      round_trip: a retriever, or ``"bm25"``; None searches nothing.
      round_trip_depth: ranks that count as found.
      round_trip_languages: those whose questions must be found, because BM25, for instance, finds
        little for a question in another language than the passages'; None for all of ``languages``,
        ``()`` for none. The share that is found is told of every language, of all questions that
        are neither empty nor unfinished.

    References:
      Alberti et al., Synthetic QA Corpora Generation with Roundtrip Consistency, ACL 2019,
      arXiv:1906.05416; Zhuang et al., Bridging the Gap Between Indexing and Retrieval for
      Differentiable Search Index with Query Generation, 2022, arXiv:2206.10128 (10 questions a
      passage and language, drawn from the 10 likeliest tokens).
    """

    model: str | FromStage
    corpus: Source | Collection
    languages: tuple[str, ...]
    each: int = 1
    sample: int | None = None
    decoding: Greedy | Beam | Sample = dataclasses.field(default_factory=lambda: Sample(top_k=10))
    round_trip: str | FromStage | None = None
    round_trip_depth: int = 10
    round_trip_languages: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        where = f"work {self.name}"
        require(bool(self.languages), f"{where}: languages", (), "at least one language")
        distinct = len(set(self.languages)) == len(self.languages)
        require(distinct, f"{where}: languages", self.languages, "different languages")
        for name in ("each", "sample", "round_trip_depth"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"{where}: {name}", value, "at least 1")
        if self.each > 1 and not isinstance(self.decoding, Sample):
            raise ValueError(
                f"{where}: each is {self.each}, and {type(self.decoding).__name__} writes the same "
                "question every time; set decoding to Sample(...), or each to 1"
            )
        for name in ("round_trip_depth", "round_trip_languages"):
            value = getattr(self, name)
            if self.round_trip is None and value != getattr(Generate, name):
                raise ValueError(
                    f"{where}: {name} is {value}, and nothing is searched; name a retriever as "
                    "round_trip, or leave it out"
                )
        for language in self.round_trip_languages or ():
            if language not in self.languages:
                raise ValueError(
                    f"{where}: round_trip_languages has {language!r}, and questions are written in "
                    f"{named(self.languages)}; write some of these"
                )


@dataclasses.dataclass(frozen=True)
class EncodeTeacher(_Work):
    """Write what ``teacher`` will answer to ``task`` of the later ``stage``, which then reads it.

    The results are those without this work; it saves the teacher's time where a stage reads its
    data more than once.
    """

    stage: str
    task: str
    teacher: str = "teacher"


Work = Mine | Score | Generate | EncodeTeacher
