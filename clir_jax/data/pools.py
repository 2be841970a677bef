"""A corpus and its translations, searched as one pool."""

from collections.abc import Iterable, Mapping

from clir_jax.data.judgements import Corpus, Qrels
from clir_jax.data.reading import Intake

RELEVANT = ("any", "own", "language")
"""What may count in a pool; ``collections.Retrieval`` describes it."""


class Pool:
    """Passages by id: those of a corpus as it has them, those of a translation ``language:id``.

    Args:
      data_root: the folder that paths are relative to.
      corpus: as ``judgements.Corpus`` takes it.
      translations: the same in other languages, by language; passages of equal ids.
      intake: receives the bad lines.

    Raises:
      DataError: if a file is missing, or ``intake`` raises.
    """

    def __init__(
        self, data_root: str, corpus: str, translations: Mapping[str, str], intake: Intake
    ) -> None:
        self._paths = {"": corpus, **{f"{x}:": path for x, path in translations.items()}}
        self._corpora = {x: Corpus(data_root, path, intake) for x, path in self._paths.items()}
        self.originals = self._corpora[""].rows
        self._places: dict[str, tuple[str, int]] = {}
        for prefix, own in self._corpora.items():
            for name, row in own.rows.items():
                if prefix + name in self._places:
                    sentence = f'the passage "{name}" would be "{prefix}{name}", which {corpus} has'
                    intake.refuse(
                        self._paths[prefix], "duplicate passage id", f"{sentence}; rename it there"
                    )
                else:
                    self._places[prefix + name] = prefix, row

    @property
    def ids(self) -> list[str]:
        """Of all passages, the corpus's own first."""
        return list(self._places)

    def parts(self, passage: str) -> tuple[str, str]:
        """The title, which may be blank, and the text of a passage."""
        prefix, row = self._places[passage]
        return self._corpora[prefix].parts(row)

    def everywhere(self, qrels: Qrels, intake: Intake) -> Qrels:
        """Judgements of the corpus's passages, for these in every language.

        Args:
          qrels: by query id and id in the corpus.
          intake: receives judged passages that lack a translation.
        """
        for name in dict.fromkeys(name for judged in qrels.values() for name in judged):
            for prefix, own in self._corpora.items():
                if name not in own.rows:
                    sentence = f'there is no passage "{name}", which is judged; translate it'
                    intake.refuse(self._paths[prefix], "passage without a translation", sentence)
        return {
            query: {
                prefix + name: gain
                for name, gain in judged.items()
                for prefix, own in self._corpora.items()
                if name in own.rows
            }
            for query, judged in qrels.items()
        }

    def counted(self, qrels: Qrels, relevant: str, language: str, passages: Iterable[str]) -> Qrels:
        """What counts, of judgements in every language.

        Args:
          qrels: as ``everywhere`` gives them.
          relevant: one of ``RELEVANT``.
          language: of the queries.
          passages: that are searched.
        """
        if relevant == "any":
            return qrels
        prefix = f"{language}:" if f"{language}:" in self._corpora else ""
        if relevant == "language":
            all_of_it = {name: 1 for name in passages if self._places[name][0] == prefix}
            return dict.fromkeys(qrels, all_of_it)
        return {
            query: {name: gain for name, gain in own.items() if self._places[name][0] == prefix}
            for query, own in qrels.items()
        }
