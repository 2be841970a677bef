"""The field selector."""

import dataclasses

import pytest

from clir_jax.data.records import Bitext, Passage, Ranking, Text, check_field, read

BITEXT = Bitext(3, "Good morning", "Habari", "sw")
TEXT = Text(0, "Hello", "en")
RANKING = Ranking(
    query_id=0,
    queries={"sw": "nani?", "en": "who?"},
    positives=(Passage(1, "yes"),),
    negatives=(Passage(2, "no"), Passage(4, "never")),
    scores=None,
    known=(1,),
)
TOLD = dataclasses.replace(
    RANKING,
    positives=(Passage(1, "yes", {"en": "yes", "de": "ja"}),),
    negatives=(Passage(2, "no", {"en": "no", "de": "nein"}),),
)


@pytest.mark.parametrize(
    ("record", "field", "expected"),
    [
        (BITEXT, "english", "Good morning"),
        (BITEXT, "other", "Habari"),
        (TEXT, "text", "Hello"),
        (RANKING, "query", "nani?"),
        (RANKING, "query.en", "who?"),
        (RANKING, "query.sw", "nani?"),
        (RANKING, "passages", ("yes", "no", "never")),
        (RANKING, "positive", "yes"),
        (TOLD, "passages", ("yes", "no")),
        (TOLD, "passages.de", ("ja", "nein")),
        (TOLD, "language.passages.de", "de"),
        (RANKING, "language.query", "sw"),
        (RANKING, "language.query.en", "en"),
        (BITEXT, "language.english", "en"),
        (BITEXT, "language.other", BITEXT.language),
        (TEXT, "language.text", TEXT.language),
    ],
)
def test_read(record, field, expected):
    assert read(record, field) == expected


@pytest.mark.parametrize(
    ("record", "field", "sentence"),
    [
        (BITEXT, "othr", 'a bitext record; write "other" (one of: english, other)'),
        (BITEXT, "id", 'a bitext record; write "other" (one of: english, other)'),
        (TEXT, "txt", 'a text record; write "text" (one of: text)'),
        (
            RANKING,
            "query.so",
            'a ranking record; write "query.sw" (one of: query, passages, positive, query.sw, '
            "query.en)",
        ),
        (
            RANKING,
            "positives",
            'a ranking record; write "positive" (one of: query, passages, positive, query.sw, '
            "query.en)",
        ),
        (
            TOLD,
            "passages.so",
            'a ranking record; write "passages" (one of: query, passages, positive, query.sw, '
            "query.en, passages.en, passages.de)",
        ),
    ],
)
def test_an_unknown_field_names_the_nearest(record, field, sentence):
    with pytest.raises(ValueError) as error:
        read(record, field)
    assert str(error.value).startswith(f'"{field}" is not a field of {sentence[:10]}')
    if field != "id":
        assert str(error.value) == f'"{field}" is not a field of {sentence}'


def test_the_language_of_passages_is_not_known():
    with pytest.raises(ValueError, match=r'"language.passages": .* write "language.query"'):
        read(RANKING, "language.passages")
    with pytest.raises(ValueError, match=r'"query.so" is not a field of a ranking record'):
        read(RANKING, "language.query.so")


def test_passages_in_a_language_need_a_source_that_has_them():
    with pytest.raises(ValueError) as error:
        read(RANKING, "passages.de")
    assert str(error.value) == (
        '"passages.de": the languages of passages are not known; put an InLanguages with corpora '
        'around every source, or write "passages"'
    )


def test_an_empty_field_is_refused_too():
    with pytest.raises(ValueError, match='"" is not a field of a text record; write "text"'):
        check_field(Text, "", ())


def test_records_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        BITEXT.id = 1  # type: ignore[misc]
