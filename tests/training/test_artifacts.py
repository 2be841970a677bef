"""Artifacts: made once, gone on with, made again when they are stale, and the log says why."""

import contextlib
import dataclasses
import json

import pytest

from clir_jax.config import Artifact, Mine, Rounds, Run, Score
from clir_jax.data import demo
from clir_jax.data.collections import AtlasRetrieval, Retrieval
from clir_jax.data.languages import InLanguages
from clir_jax.data.rankings import Beir, RankingJSONL
from clir_jax.data.reading import DataError
from clir_jax.data.sources import Atlas, Mixture, TextLines
from clir_jax.training.artifacts import (
    content_print,
    ensure,
    finished,
    model_print,
    records_source,
    source_print,
)
from clir_jax.training.blocks import write_rankings
from tests.training.workshop import (
    CORPUS,
    RANKINGS,
    Killed,
    Workshop,
    bytes_of,
    stage,
    write_data,
)

WORK = Mine("mined", "bm25", RANKINGS, CORPUS)
INPUTS = {"model": "m1", "source": "s1"}


@pytest.fixture
def shop(tmp_path):
    return Workshop(tmp_path, (WORK,))


def make(directory, text="content"):
    (directory / "sub").mkdir(exist_ok=True)
    (directory / "sub" / "one.bin").write_text(text)
    (directory / "two.bin").write_text("2")
    return {"language": "sw"}


def refuse(directory):
    pytest.fail("it was made again")


def test_what_is_there_and_fresh_is_taken(shop):
    place = shop.place("mined")
    content = ensure(WORK, place, INPUTS, make)
    before = bytes_of(place.directory)
    assert ensure(WORK, place, INPUTS, refuse) == content == content_print(place.directory)
    assert bytes_of(place.directory) == before
    assert finished(WORK, place, INPUTS) == content
    assert finished(dataclasses.replace(WORK, negatives=3), place, INPUTS) is None
    assert shop.said == []
    about = json.loads(before["about.json"])
    assert about.pop("content") == content
    assert about == {
        "format": 1,
        "settings": {
            "type": "Mine",
            "name": "mined",
            "model": "bm25",
            "source": {
                "type": "RankingJSONL",
                "path": "rankings.jsonl",
                "query_language": "sw",
                "on_bad_record": "error",
            },
            "corpus": {
                "type": "TextLines",
                "path": "corpus.txt",
                "language": "en",
                "on_bad_record": "error",
            },
            "negatives": 8,
            "depth": 100,
            "skip": 0,
            "sampling": "random",
            "query_language": "",
            "margin": None,
            "max_relative": None,
            "hard": 0,
            "semi_hard": 0,
            "semi_hard_margin": None,
            "duplicates": None,
            "other_documents": False,
            "judge": None,
            "judge_max_relative": 0.95,
            "judge_language": "",
            "drop_empty": False,
        },
        "inputs": INPUTS,
        "facts": {"language": "sw"},
        "files": {"sub/one.bin": 7, "two.bin": 1},
    }


def test_the_content_decides_the_hash(shop):
    def hashed(name, text):
        return ensure(WORK, shop.place(name), INPUTS, lambda folder: make(folder, text))

    assert hashed("a", "content") == hashed("b", "content") != hashed("c", "Content")


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize(
    ("work", "inputs", "reason"),
    [
        (WORK, {"model": "m2", "source": "s1"}, "its model changed"),
        (WORK, {"model": "m1", "source": "s2"}, "its source changed"),
        (WORK, {"model": "m1"}, "its source changed"),
        (WORK, {**INPUTS, "corpus": "c1"}, "its corpus changed"),
        (dataclasses.replace(WORK, negatives=3), INPUTS, "its negatives changed from 8 to 3"),
        (
            dataclasses.replace(WORK, corpus=TextLines("corpus.txt", "fr")),
            INPUTS,
            'its corpus.language changed from "en" to "fr"',
        ),
        # The settings have other fields now, and too much to say.
        (
            dataclasses.replace(WORK, corpus=Retrieval("c.jsonl", "q.tsv", "r.trec", "en")),
            INPUTS,
            "its corpus changed",
        ),
    ],
)
def test_of_other_inputs_it_is_begun_anew(shop, whole, work, inputs, reason):
    def killed(directory):
        make(directory, "old")
        raise Killed

    if whole:
        ensure(WORK, shop.place("mined"), INPUTS, make)
    else:
        with pytest.raises(Killed):
            ensure(WORK, shop.place("mined"), INPUTS, killed)

    def from_nothing(directory):
        assert [path.name for path in directory.iterdir()] == ["about.json"]
        return make(directory, "new")

    shop.works = (work,)
    ensure(work, shop.place("mined"), inputs, from_nothing)
    assert shop.said == [f"artifact mined is built again: {reason}"]
    ensure(work, shop.place("mined"), inputs, refuse)


def test_lines_that_are_removed_are_told(shop):
    def write(directory):
        (directory / "unfinished").mkdir()
        (directory / "unfinished" / "records.jsonl").write_text("{}\n" * 1234)
        raise Killed

    for model in ("m1", "m2"):
        with pytest.raises(Killed):
            ensure(WORK, shop.place("mined"), {**INPUTS, "model": model}, write)
    told = "artifact mined is built again: its model changed; lines removed: 1,234"
    assert shop.said == [told]


@pytest.mark.parametrize("whole", [True, False])
def test_a_command_removes_nothing(shop, whole):
    def write(directory):
        (directory / "records.jsonl").write_text("{}\n" * 3)
        if not whole:
            raise Killed
        return {"language": "sw"}

    place = dataclasses.replace(shop.place("mined"), run=None)
    with contextlib.nullcontext() if whole else pytest.raises(Killed):
        ensure(WORK, place, INPUTS, write)
    before = bytes_of(place.directory)
    with pytest.raises(DataError) as error:
        ensure(dataclasses.replace(WORK, depth=50), place, INPUTS, refuse)
    assert str(error.value) == (
        f"{place.directory}: an output was begun here (lines written: 3), and its depth changed "
        "from 100 to 50; write what was given before, to go on with it, or remove this directory, "
        "to begin anew"
    )
    assert bytes_of(place.directory) == before
    (place.directory / "about.json").write_text("{")
    with pytest.raises(DataError, match=r"about\.json cannot be read; write what was given before"):
        ensure(WORK, place, INPUTS, refuse)


def test_a_command_that_has_made_nothing_may_be_corrected(shop):
    def killed(directory):
        raise Killed

    place = dataclasses.replace(shop.place("mined"), run=None)
    with pytest.raises(Killed):
        ensure(WORK, place, INPUTS, killed)
    ensure(dataclasses.replace(WORK, negatives=3), place, INPUTS, make)
    assert shop.said == ["artifact mined is built again: its negatives changed from 8 to 3"]


def damage(name, text):
    def change(directory):
        if text is None:
            (directory / name).unlink()
        else:
            (directory / name).write_text(text)

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (damage("two.bin", None), "two.bin is missing"),
        (damage("sub/one.bin", "short"), "sub/one.bin has 5 bytes and had 7"),
        (damage("about.json", None), "about.json is missing"),
        (damage("about.json", "{"), "about.json cannot be read"),
        (damage("about.json", "{}"), "about.json cannot be read"),
        (damage("about.json", "[]"), "about.json cannot be read"),
        (damage("about.json", '{"format": 0}'), "its format is 0, and this version writes 1"),
    ],
)
def test_what_is_damaged_is_made_again(shop, change, reason):
    place = shop.place("mined")
    content = ensure(WORK, place, INPUTS, make)
    whole = bytes_of(place.directory)
    change(place.directory)
    assert ensure(WORK, place, INPUTS, make) == content
    assert bytes_of(place.directory) == whole
    assert shop.said == [f"artifact mined is built again: {reason}"]


def test_what_was_interrupted_is_gone_on_with(shop):
    def killed(directory):
        make(directory)
        raise Killed

    place = shop.place("mined")
    with pytest.raises(Killed):
        ensure(WORK, place, INPUTS, killed)
    with pytest.raises(DataError) as error:
        content_print(place.directory)
    assert str(error.value) == (
        f"{place.directory}: there is no finished artifact here; let the run carry out the work "
        "that writes it"
    )

    def go_on(directory):
        assert (directory / "sub" / "one.bin").read_text() == "content"
        return {"language": "sw"}

    ensure(WORK, place, INPUTS, go_on)
    assert shop.said == []


def test_a_work_inside_rounds_has_its_settings_too(shop):
    inside = dataclasses.replace(
        shop.place("mined"), run=Run("r", (Rounds("g", 2, (WORK, stage())),))
    )
    ensure(WORK, inside, INPUTS, make)
    about = json.loads((inside.directory / "about.json").read_text())
    assert about["settings"]["name"] == "mined"


def test_a_question_is_read_in_a_language_that_all_have(tmp_path):
    write_data(tmp_path)
    line = '{"query": "where", "queries": {"sw": "wapi"}, "positives": ["p"]}\n'
    (tmp_path / "more.jsonl").write_text(line)
    both = Mixture((RANKINGS, RankingJSONL("more.jsonl", "en")))
    records = both.open(str(tmp_path))
    (tmp_path / "out").mkdir()
    none = [([], None)] * len(records)
    write_rankings(tmp_path / "out", records, 99, lambda *_: none, lambda *told: None)
    (tmp_path / "out" / "about.json").write_text('{"content": "", "facts": {"language": "sw"}}')
    again = records_source(tmp_path / "out").open("elsewhere")
    assert len(again) == len(records)
    for i in range(len(records)):
        assert again[i].queries == records[i].queries
        assert next(iter(again[i].queries)) == "sw"
    (tmp_path / "more.jsonl").write_text('{"query": "where", "positives": ["p"]}\n')
    none = Mixture((RANKINGS, RankingJSONL("more.jsonl", "fr")))
    work = Score("scored", "model", none)
    with pytest.raises(DataError) as error:
        Workshop(tmp_path, (work,)).place("scored").rankings(work, none)
    assert str(error.value) == (
        "work scored: the parts of its source ask their questions in no common language; give each "
        "part a work of its own"
    )


def test_a_work_on_something_else_than_rankings(tmp_path):
    write_data(tmp_path)
    work = Score("scored", "model", CORPUS)
    with pytest.raises(DataError) as error:
        Workshop(tmp_path, (work,)).place("scored").rankings(work, CORPUS)
    assert str(error.value) == (
        "work scored: its source gives text records; give rankings, which are questions with "
        "passages"
    )


def test_the_print_of_a_model_is_that_of_its_files(tmp_path):
    seen = set()

    def another():
        seen.add(model_print(tmp_path))
        return len(seen)

    (tmp_path / "a").write_text("1")
    assert another() == 1
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b").write_text("1")
    assert another() == 2
    (tmp_path / "a").write_text("2")
    assert another() == 3
    (tmp_path / "a").rename(tmp_path / "c")
    assert another() == 4
    (tmp_path / "c").rename(tmp_path / "a")
    (tmp_path / "a").write_text("1")
    assert another() == 4, "what is as it was has the print it had"


def test_the_print_of_a_source_is_that_of_what_it_reads(tmp_path):
    shop = Workshop(tmp_path)

    def printed(source):
        return source_print(source, shop.place("x"))

    names = ("c.jsonl", "q.tsv", "r.trec", "en.tsv", "a.txt", "b.txt")

    def write(changed=""):
        for name in names:
            (tmp_path / name).write_text(f"one\t{name == changed:d}\n")

    beir = Beir("c.jsonl", "q.tsv", "r.trec", "sw", translations={"en": "en.tsv", "so": 2})
    text = TextLines("[ab].txt", "sw")
    collection = Retrieval("c.jsonl", "q.tsv", "r.trec", "sw")
    mixture = Mixture((beir, Artifact("mined"), TextLines("a.txt", "sw")))
    languages = InLanguages(beir, corpora={"sw": "c.jsonl", "en": "b.txt"})
    reads = [(beir, names[:4]), (text, names[4:]), (collection, names[:3]), (mixture, names[:5])]
    reads.append((languages, (*names[:4], "b.txt")))
    for source, files in reads:
        write()
        before = printed(source)
        for name in names:
            write(name)
            assert (printed(source) != before) == (name in files), name
        write()
        assert printed(source) == before
    before = printed(mixture)
    shop.content = "two"
    assert printed(mixture) != before
    assert printed(text) != printed(dataclasses.replace(text, language="en"))


@pytest.mark.parametrize("change", [lambda found: found[1:], lambda found: found[::-1]])
def test_the_print_of_built_in_data_reads_them(tmp_path, monkeypatch, change):
    place = Workshop(tmp_path).place("x")
    sources = (Atlas("text", "sw"), Atlas("ranking", "sw"), AtlasRetrieval("sw"))
    before = [source_print(source, place) for source in sources]
    assert len(set(before)) == 3
    assert [source_print(source, place) for source in sources] == before
    for name in ("questions", "bitext"):
        whole = getattr(demo, name)
        monkeypatch.setattr(demo, name, lambda *given, whole=whole: change(whole(*given)))
    after = [source_print(source, place) for source in sources]
    assert all(one != other for one, other in zip(before, after, strict=True))
