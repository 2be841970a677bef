"""Gold alignments: two forms that say the same, and bad lines by number."""

import json

import pytest

from clir_jax.data.gold_alignment import GoldAlignment
from clir_jax.data.reading import DataError

ROWS = [
    {"id": "a", "src": ["good", "day"], "tgt": ["bon", "jour", "!"], "sure": [[0, 0], [1, 1]]},
    {"src": ["no"], "tgt": ["non", "non"], "sure": [[0, 0]], "possible": [[0, 1], [-1, 1]]},
]


def written(folder, *rows):
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "gold.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return str(folder)


def facts(opened):
    return [(p.source.words, p.target.words, p.sure, p.possible) for p in opened.pairs]


def test_both_forms(tmp_path):
    opened = GoldAlignment("gold.jsonl", "fr").open(written(tmp_path, *ROWS))
    assert facts(opened) == [
        (["good", "day"], ["bon", "jour", "!"], {(0, 0), (1, 1)}, {(0, 0), (1, 1)}),
        (["no"], ["non", "non"], {(0, 0)}, {(0, 0), (0, 1)}),
    ]
    assert [pair.place for pair in opened.pairs] == ["gold.jsonl:1", "gold.jsonl:2"]
    assert opened.report.read == 2
    assert opened.report.skipped == {"word linked to nothing (-1)": 1}
    (tmp_path / "a.en").write_text("good  day\nno\n")
    (tmp_path / "a.fr").write_text("bon jour !\nnon non\n")
    (tmp_path / "a.links").write_text("1-1 0-0\n0p1 0-0 -1p1\n")
    source = GoldAlignment("a.links", "fr", "a.en", "a.fr")
    assert facts(source.open(str(tmp_path))) == facts(opened)
    assert source.files() == ("a.links", "a.en", "a.fr")
    assert GoldAlignment("gold.jsonl", "fr").files() == ("gold.jsonl",)


GOOD = {"src": ["a", "b"], "tgt": ["c"], "sure": [[0, 0]]}
BEYOND = (
    "write 0 to {last}, -1 for a word without a counterpart, or leave such lines out with "
    '--on-bad-record skip (on_bad_record="skip" in a configuration)'
)


@pytest.mark.parametrize(
    ("change", "reason", "sentence"),
    [
        (
            {"sure": [[2, 0]]},
            "link beyond the sentence",
            f"the link [2, 0] asks for source word 2 of 2; {BEYOND.format(last=1)}",
        ),
        (
            {"possible": [[0, 1]]},
            "link beyond the sentence",
            f"the link [0, 1] asks for target word 1 of 1; {BEYOND.format(last=0)}",
        ),
        (
            {"sure": [[-2, 0]]},
            "link beyond the sentence",
            f"the link [-2, 0] asks for source word -2 of 2; {BEYOND.format(last=1)}",
        ),
        (
            {"sure": [[-1, -1]]},
            "link beyond the sentence",
            f"the link [-1, -1] asks for source word -1 of 2; {BEYOND.format(last=1)}",
        ),
        (
            {"sure": [[0, True]]},
            "bad link",
            '"sure" holds [0, True]; write pairs of word numbers, [source, target]',
        ),
        ({"tgt": []}, "no words", '"tgt" has no words; write the words of a sentence'),
        ({"src": ["a", " "]}, "bad word", "\"src\" holds ' '; write a list of words"),
        ({"src": ["a", 3]}, "bad word", '"src" holds a number; write a list of words'),
        (
            {"src": "a b"},
            "wrong JSON type",
            '"src" is a string; write a list',
        ),
    ],
)
def test_a_bad_line_is_refused_or_counted(change, reason, sentence, tmp_path):
    root = written(tmp_path, GOOD, GOOD | change)
    with pytest.raises(DataError) as refused:
        GoldAlignment("gold.jsonl", "fr").open(root)
    assert str(refused.value) == f"gold.jsonl:2: {sentence}"
    opened = GoldAlignment("gold.jsonl", "fr", on_bad_record="skip").open(root)
    assert len(opened.pairs) == 1
    assert opened.report.skipped == {reason: 1}
    assert opened.report.places == [f"gold.jsonl:2: {sentence}"]


def test_bad_links_of_pharaoh(tmp_path):
    (tmp_path / "en").write_text("a b\nc\n")
    (tmp_path / "fr").write_text("d\ne\n")
    gold = GoldAlignment("links", "fr", "en", "fr")
    for links, sentence in {
        "0-0\n0:0\n": "links:2: '0:0' is no link; write 0-0 for a sure one and 0p0 for a possible",
        "0-0 1-1\n0-0\n": "links:1: the link [1, 1] asks for target word 1 of 1; "
        + BEYOND.format(last=0),
        "0-0\n": "en: 2 lines beside 1 of links; write the words of one sentence for every line of "
        "links",
        "0p0\n0p0\n": "links: no link is sure, and recall is of sure links; write those that are "
        'under "sure", or with - in the place of p',
    }.items():
        (tmp_path / "links").write_text(links)
        with pytest.raises(DataError) as refused:
            gold.open(str(tmp_path))
        assert str(refused.value) == sentence


def test_options_that_cannot_be():
    with pytest.raises(ValueError, match="source is the only file of sentences; write both"):
        GoldAlignment("links", "fr", source="en")
    with pytest.raises(ValueError, match=r"GoldAlignment\.layer is 0; write one above 0, or None"):
        GoldAlignment("gold.jsonl", "fr", layer=0)
