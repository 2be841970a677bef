"""The command that prepares bitext."""

import subprocess
import sys
from pathlib import Path

import pytest

from clir_jax.data import demo
from clir_jax.data.records import Bitext
from clir_jax.data.tfds import TFDS
from clir_jax.prepare import main

# A TensorFlow that is installed, and that nobody may import.
REFUSE = """
import importlib.machinery, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "tensorflow":
            return importlib.machinery.ModuleSpec(name, self)
    def create_module(self, spec):
        raise AssertionError("TensorFlow is imported")
    def exec_module(self, module):
        pass
sys.meta_path.insert(0, Refuse())
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Pairs as tab-separated lines, and in two files; the working directory."""
    (tmp_path / "a.tsv").write_text("1\tone\tmoja\n2\ttwo\tmbili\n")
    (tmp_path / "b.tsv").write_text("3\tthree\ttatu\n")
    (tmp_path / "c.en").write_text("one\ntwo\n")
    (tmp_path / "c.sw").write_text("moja\nmbili\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(*source, language="sw", out="out"):
    return ["--source", *source, "--language", language, "--name", "words", "--out", out]


def test_written_and_read_without_tensorflow(folder):
    code = (
        f"{REFUSE}\n"
        "from clir_jax.prepare import main\n"
        f"assert main({[*command('*.tsv'), '--shards', '2']!r}) == 0\n"
        "from clir_jax.data.tfds import TFDS\n"
        "import tensorflow_datasets as tfds\n"
        "theirs = tfds.data_source('words', split='train', data_dir='out')\n"
        "ours = TFDS('words', data_dir='out').open('.')\n"
        "assert [row['other'].decode() for row in theirs] == ['moja', 'mbili', 'tatu']\n"
        "assert [ours[i].other for i in range(3)] == ['moja', 'mbili', 'tatu']\n"
        "assert 'tensorflow' not in sys.modules\n"
        "try:\n"
        "    import tensorflow\n"
        "except AssertionError:\n"
        "    sys.exit(0)\n"
        "sys.exit('an import of TensorFlow would not be seen')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        '3 pairs in out/words/1.0.0; read them with TFDS("words", data_dir="out")\n'
    )


def test_two_aligned_files(folder, capsys):
    assert main(command("c.en", "c.sw")) == 0
    records = TFDS("words", data_dir="out").open(".")
    assert [records[0], records[1]] == [
        Bitext(0, "one", "moja", "sw"),
        Bitext(1, "two", "mbili", "sw"),
    ]


def test_the_built_in_data_as_files(folder, capsys):
    assert main(["--atlas", "--out", "atlas"]) == 0
    assert capsys.readouterr().out == (
        f"atlas: {len(demo.passages()):,} passages, questions and bitext in "
        "ar, de, en, es, hi, ru, so, sw, zh\n"
    )
    demo.write("expected")
    files = [{p.name: p.read_bytes() for p in Path(d).iterdir()} for d in ("atlas", "expected")]
    assert files[0] == files[1]
    assert {"corpus.jsonl", "queries.sw.test.tsv", "qrels.test.trec"} < files[0].keys()


def test_what_is_left_out_is_told(folder, capsys):
    (folder / "b.tsv").write_text("three\ttatu\n")
    assert main([*command("*.tsv"), "--on-bad-record", "skip"]) == 0
    assert capsys.readouterr().out == (
        "prepare words  left out: 1 x wrong number of fields\n"
        "prepare words    b.tsv:1: the line has 2 fields, not 3; write id<TAB>English<TAB>other\n"
        '2 pairs in out/words/1.0.0; read them with TFDS("words", data_dir="out")\n'
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            command("d.tsv"),
            "d.tsv: there is no such file under data_root '.'; write a file that is there",
        ),
        (
            command("a.tsv", "b.tsv", "c.tsv"),
            "--source names 3 files; write one of pairs or two of lines, and put a pattern that "
            'names several in quotes: --source "bitext/*.tsv"',
        ),
        (
            command("a.tsv", out="gs://bucket/data"),
            "--out gs://bucket/data: that is no local directory; write one, and copy it",
        ),
        (
            command("a.tsv", out="b.tsv"),
            "--out b.tsv: that is no local directory; write one, and copy it",
        ),
        (
            [*command("a.tsv"), "--shards", "3"],
            "shards is 3 for 2 pairs; write 1 to 2",
        ),
        (
            ["--source", "a.tsv", "--language", "sw", "--out", "out"],
            "--name is missing; write it, or --atlas for the built-in data",
        ),
        (
            ["--atlas", "--on-bad-record", "skip", "--out", "out"],
            "--atlas brings all that it writes; leave it or --on-bad-record out",
        ),
        (
            ["--atlas", "--out", "gs://bucket/data"],
            "--out gs://bucket/data: that is no local directory; write one, and copy it",
        ),
        (
            ["--atlas", "--out", "."],
            ".: is there already and is not overwritten; write the name of a new directory",
        ),
    ],
)
def test_a_mistake_is_one_sentence(folder, arguments, sentence, capsys):
    assert main(arguments) == 2
    told = capsys.readouterr()
    assert (told.out, told.err) == ("", f"error: {sentence}\n")


def test_interrupted(folder, monkeypatch, capsys):
    def write(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr("clir_jax.data.builders.bitext.prepare", write)
    assert main(command("a.tsv")) == 130
    assert capsys.readouterr().err == (
        "stopped; the same command goes on from the last whole shard\n"
    )
