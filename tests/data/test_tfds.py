"""TFDS data sets, against what TFDS itself writes and reads."""

import concurrent.futures
import json
import os
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from clir_jax import config_files
from clir_jax.config_parts import TrainVocabulary
from clir_jax.config_types import mapped
from clir_jax.data.hub_datasets import HubDataset
from clir_jax.data.reading import DataError
from clir_jax.data.records import Bitext, Passage, Text
from clir_jax.data.sources import Mixture
from clir_jax.data.tfds import TFDS

QUICKSTART = os.path.join(os.path.dirname(__file__), "../../configs/quickstart.py")
F = tfds.features
PAIRS = [{"en": f"word {n}", "sw": f"neno {n}"} for n in range(7)]


class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """TFDS's own writing, of rows in memory; it orders them by a hash of their keys."""

    VERSION = tfds.core.Version("1.2.0")
    url_infos = None  # nothing is downloaded

    def __init__(self, folder, name, features, splits):
        self.name, self.features, self.splits = name, F.FeaturesDict(features), splits
        super().__init__(data_dir=str(folder), file_format="array_record")

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=self.features)

    def _split_generators(self, dl_manager):
        return {name: self._generate_examples(rows) for name, rows in self.splits.items()}

    def _generate_examples(self, rows):
        return iter(enumerate(rows))


def write(folder, name, features, splits):
    Builder(folder, name, features, splits).download_and_prepare()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The folder above a folder of data sets: pairs, rankings and a bad text."""
    root = tmp_path_factory.mktemp("data")
    translation = {"translation": F.Translation(["en", "sw"])}
    rows = [{"translation": pair} for pair in PAIRS]
    write(root / "tfds", "pairs", translation, {"train": rows, "test": rows[:2]})
    ranking = {
        "query": F.Text(),
        "passages": F.Sequence({"text": F.Text(), "score": F.Scalar(np.float32)}),
        "negatives": F.Sequence(F.Text()),
        "score": F.Sequence(F.Scalar(np.float32)),
    }
    row = {
        "query": "q",
        "passages": {"text": ["p1", "p2"], "score": [2.0, 1.0]},
        "negatives": [],
        "score": [0.5, 0.25],
    }
    write(root / "tfds", "rankings", ranking, {"train": [row]})
    write(root / "tfds", "broken", {"text": F.Text()}, {"train": [{"text": b"ab\xff"}]})
    return root


COLUMNS = {"english": "translation.en", "other": "translation.sw"}
SOURCE = TFDS("pairs", columns=COLUMNS, language="sw", data_dir="tfds")


@pytest.mark.parametrize("split", ["train", "test", "train[2:5]"])
def test_translations_are_what_tfds_reads(prepared, split):
    source = TFDS("pairs", columns=COLUMNS, language="sw", data_dir="tfds", split=split)
    records = source.open(str(prepared))
    other = tfds.data_source("pairs", split=split, data_dir=str(prepared / "tfds"))
    theirs = [{k: v.decode() for k, v in row["translation"].items()} for row in other]
    ours = [records[i] for i in range(len(records))]
    assert ours == [Bitext(i, row["en"], row["sw"], "sw") for i, row in enumerate(theirs)]
    assert records.report.read == len(ours) > 0


def test_any_thread_may_read_any_record(prepared):
    records = SOURCE.open(str(prepared))
    alone = [records[i] for i in range(7)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(records.__getitem__, list(range(7)) * 20)) == alone * 20
    assert sorted(record.other for record in alone) == [pair["sw"] for pair in PAIRS]


def test_rankings_with_columns_inside_columns(prepared):
    columns = {"positives": "passages.text", "scores": "score"}
    records = TFDS("rankings", "ranking", columns, "en", data_dir="tfds").open(str(prepared))
    assert records[0].queries == {"en": "q"}
    assert records[0].positives == (Passage(0, "p1"), Passage(1, "p2"))
    assert records[0].negatives == ()
    assert records[0].scores == (0.5, 0.25)


def test_text_takes_one_column(prepared):
    source = TFDS("pairs:1.2.0", "text", {"text": "translation.sw"}, "sw", data_dir="tfds")
    records = source.open(str(prepared))
    assert records[0] == Text(0, SOURCE.open(str(prepared))[0].other, "sw")


def test_configurations_keep_it():
    source = TFDS("a/b:1.0.0", "ranking", {"positives": "p_*"}, data_dir="gs://bucket/tfds")
    hub = HubDataset("org/pairs", columns={"other": "sw"}, language="sw", subset="en-sw")
    vocabulary = TrainVocabulary((Mixture((source, hub)), hub))
    run = config_files.load(QUICKSTART)
    run = mapped(run, lambda part: vocabulary if isinstance(part, TrainVocabulary) else part)
    assert config_files.from_json(config_files.to_json(run)) == run
    assert "gs://bucket/tfds" in config_files.to_json(run)


def test_a_bucket_without_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(ImportError) as error:
        TFDS("words", data_dir="gs://bucket/tfds").open("data")
    assert str(error.value) == (
        "words: gs://bucket/tfds cannot be reached (Please install gcsfs to access Google "
        "Storage); install the package it names"
    )


def test_bytes_that_are_no_text(prepared):
    with pytest.raises(DataError) as error:
        TFDS("broken", "text", language="sw", data_dir="tfds").open(str(prepared))
    assert str(error.value) == (
        'broken train[0]: byte 3 (0xff) of the column "text" is not UTF-8; correct the record, or '
        'set on_bad_record="skip" to leave it out'
    )


def test_what_is_not_prepared(prepared):
    where = str(prepared / "tfds")
    with pytest.raises(DataError) as error:
        TFDS("pears", data_dir="tfds").open(str(prepared))
    assert str(error.value) == (
        f'pears: no data set of this name is prepared in "{where}"; run python -m clir_jax.prepare '
        f'for pairs of your own, or tfds.builder("pears", data_dir="{where}", '
        'file_format="array_record").download_and_prepare()'
    )


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"split": "trian"},
            'pairs: there is no split "trian"; write "train" (one of: test, train)',
        ),
        (
            {"columns": {"english": "translation.en", "other": "translation.so"}},
            'pairs train: there is no column "translation.so" for other; write columns={"other": '
            '"translation.sw"} (one of: translation.en, translation.sw)',
        ),
        (
            {"name": "two words"},
            "two words: what TFDS prepared cannot be read (Parsing builder name string two words "
            "failed.); correct the name, or prepare it again",
        ),
    ],
)
def test_a_mistake_is_one_sentence(prepared, change, sentence):
    given = {"name": "pairs", "columns": COLUMNS, "language": "sw", "data_dir": "tfds", **change}
    with pytest.raises(DataError) as error:
        TFDS(**given).open(str(prepared))
    assert str(error.value) == sentence


@pytest.fixture
def copied(tmp_path):
    """A data set of its own, to be damaged; its directory."""
    write(tmp_path, "pairs", {"english": F.Text(), "other": F.Text()}, {"train": [
        {"english": pair["en"], "other": pair["sw"]} for pair in PAIRS
    ]})  # fmt: skip
    return tmp_path / "pairs" / "1.2.0"


def refusal(copied):
    with pytest.raises(DataError) as error:
        TFDS("pairs", language="sw", data_dir=".").open(str(copied.parent.parent))
    return str(error.value)


def test_prepared_as_tfrecord(copied):
    info = json.loads((copied / "dataset_info.json").read_text())
    (copied / "dataset_info.json").write_text(json.dumps({**info, "fileFormat": "tfrecord"}))
    assert refusal(copied) == (
        "pairs: it was prepared as tfrecord, and only array_record is read here; with another "
        'data_dir run tfds.builder("pairs", data_dir="DIR", file_format="array_record")'
        ".download_and_prepare()"
    )


def test_a_damaged_data_set(copied):
    (shard,) = copied.glob("*array_record*")
    whole = shard.read_bytes()
    shard.write_bytes(whole[:1000])
    assert refusal(copied).startswith("pairs train: a file is damaged near record 0 (")
    assert refusal(copied).endswith("); prepare it again")
    shard.unlink()
    assert refusal(copied) == f"pairs train: its file {shard} is missing; prepare it again"
    shard.write_bytes(whole)
    (copied / "dataset_info.json").write_text("{")
    assert refusal(copied).startswith("pairs: what TFDS prepared cannot be read (")
