"""Hub data sets, from files in the forms that ``datasets`` and publishers write; no network."""

import concurrent.futures
import json
import sys

import datasets
import huggingface_hub.constants
import pyarrow as pa
import pyarrow.parquet
import pytest

from clir_jax.data.hub_datasets import HubDataset
from clir_jax.data.reading import DataError
from clir_jax.data.records import Bitext, Passage, Text

PAIRS = [{"en": "one", "sw": "moja"}, {"en": "two", "sw": "mbili"}, {"en": "one", "sw": "mmoja"}]
TRANSLATED = {"english": "translation.en", "other": "translation.sw"}


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    """Nothing is asked of the hub, and what is prepared is kept with the test."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()


def translations(folder):
    features = datasets.Features({"translation": datasets.Translation(["en", "sw"])})
    rows = {"translation": PAIRS}
    return datasets.Dataset.from_dict(rows, features=features, split=datasets.Split.TRAIN)


def saved(folder):
    translations(folder).save_to_disk(folder / "pairs")
    return "pairs"


def saved_with_splits(folder):
    splits = {"train": translations(folder), "test": translations(folder)}
    datasets.DatasetDict(splits).save_to_disk(folder / "pairs")
    return "pairs"


def parquet(folder):
    translations(folder).to_parquet(folder / "pairs" / "train-00000-of-00001.parquet")
    return "pairs"


def json_lines(folder):
    lines = [json.dumps({"translation": pair}) for pair in PAIRS]
    (folder / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    return "pairs.jsonl"


@pytest.mark.parametrize("form", [saved, saved_with_splits, parquet, json_lines])
def test_translations_in_every_form(tmp_path, form):
    source = HubDataset(form(tmp_path), columns=TRANSLATED, language="sw")
    records = source.open(str(tmp_path))
    assert [records[i] for i in range(3)] == [
        Bitext(0, "one", "moja", "sw"),
        Bitext(1, "two", "mbili", "sw"),
        Bitext(0, "one", "mmoja", "sw"),
    ]
    assert records.report.read == 3


def test_a_part_of_a_split_and_many_threads(tmp_path):
    parquet(tmp_path)
    source = HubDataset("pairs", "text", {"text": "translation.sw"}, "sw", split="train[1:]")
    records = source.open(str(tmp_path))
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        read = list(pool.map(records.__getitem__, [0, 1] * 50))
    assert read == [Text(0, "mbili", "sw"), Text(1, "mmoja", "sw")] * 50


def test_a_ranking_as_sentence_transformers_has_it(tmp_path):
    rows = [
        {"query": "q", "positive": "p", "negative_2": "n2", "negative_1": "n1", "score": [3, 2, 1]},
        {"query": "r", "positive": "n2", "negative_2": "p", "negative_1": "n1", "score": [1, 1, 1]},
    ]
    pa.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    columns = {"positives": "positive", "negatives": "negative_*", "scores": "score"}
    records = HubDataset("train.parquet", "ranking", columns, "en").open(str(tmp_path))
    assert records[0].positives == (Passage(0, "p"),)
    assert records[0].negatives == (Passage(1, "n1"), Passage(2, "n2"))
    assert records[0].scores == (3.0, 2.0, 1.0)
    assert records[1].negatives == (Passage(1, "n1"), Passage(0, "p"))


def test_bytes_that_are_no_text(tmp_path):
    column = pa.array([b"a", b"b\xff"]).view(pa.string())
    lists = pa.array([["p"], ["p"]])
    pa.parquet.write_table(
        pa.table({"query": column, "positives": lists}), tmp_path / "train.parquet"
    )
    source = HubDataset("train.parquet", "ranking", language="en", on_bad_record="skip")
    records = source.open(str(tmp_path))
    assert [records[0].queries, len(records)] == [{"en": "a"}, 1]
    assert records.report.places == [
        'train.parquet train[1]: byte 2 (0xff) of the column "query" is not UTF-8; correct the '
        'record, or set on_bad_record="skip" to leave it out'
    ]


@pytest.mark.parametrize("form", [saved, saved_with_splits, parquet])
def test_a_split_that_is_not_there(tmp_path, form):
    with pytest.raises(DataError) as error:
        HubDataset(form(tmp_path), columns=TRANSLATED, language="sw", split="trian").open(
            str(tmp_path)
        )
    known = "test, train" if form is saved_with_splits else "train"
    assert str(error.value) == (
        f'pairs: there is no split "trian"; write "train" (one of: {known})'
    )


def test_what_cannot_be_loaded(tmp_path):
    def refusal(**options):
        with pytest.raises(DataError) as error:
            HubDataset(**options).open(str(tmp_path))
        return str(error.value)

    end = "); correct name, subset, split or revision"
    where = f"it cannot be loaded from data_root {str(tmp_path)!r} or the hub ("
    assert refusal(name="org/pears", subset="en-sw") == (
        f"org/pears/en-sw: {where}Couldn't reach 'org/pears' on the Hub (OfflineModeIsEnabled){end}"
    )
    (tmp_path / "empty").mkdir()
    assert refusal(name="empty") == (
        f"empty: {where}The directory at {tmp_path / 'empty'} doesn't contain any data files{end}"
    )
    (tmp_path / "pairs.jsonl").write_text('{"a" 1}\n')
    assert refusal(name="pairs.jsonl") == (
        f"pairs.jsonl: {where}JSON parse error: Missing a colon after a name of object member. in "
        f"row 0{end}"
    )


def test_without_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError) as error:
        HubDataset("org/pairs").open(str(tmp_path))
    assert str(error.value) == (
        'org/pairs: data sets of the hub need the package datasets; run pip install "clir_jax[hub]"'
    )
