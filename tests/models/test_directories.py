"""New directories: whole or what they were before, wherever they are to be."""

import errno
import os
import shutil
from pathlib import Path

import pytest

from clir_jax import export
from clir_jax.models.directories import new_directory
from clir_jax.models.formats import is_saved
from clir_jax.models.hub import locate


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _write(path, replaced=False, text="new"):
    with new_directory(Path(path), lambda place: replaced, "a model") as temporary:
        (temporary / "1_Pooling").mkdir()
        (temporary / "1_Pooling" / "config.json").write_text(text)
        (temporary / "model").write_text(text)


def _read(path):
    path = Path(path)
    return {str(p.relative_to(path)): p.read_text() for p in path.rglob("*") if p.is_file()}


NEW = {"1_Pooling/config.json": "new", "model": "new"}


def _fails(path, sentence, replaced=False):
    """The error, before anything is written."""
    options = () if replaced is None else (lambda place: replaced, "a model")
    with pytest.raises(OSError) as error, new_directory(Path(path), *options):
        raise AssertionError("the work has begun")
    assert str(error.value) == sentence


@pytest.fixture
def mounted(home, monkeypatch):
    """An empty directory that the system refuses to rename, or to put another in its place."""
    place = home / "volume"
    place.mkdir()
    rename = os.rename

    def refuse(source, target, **options):
        if str(place) in (str(source), str(target)):
            raise OSError(errno.EBUSY, "Device or resource busy", str(source), None, str(target))
        return rename(source, target, **options)

    monkeypatch.setattr(os, "rename", refuse)
    return place


@pytest.mark.parametrize("seen", [True, False])
def test_a_mounted_directory_is_filled(mounted, monkeypatch, seen):
    # A directory of the same disk is mounted without a sign of it.
    monkeypatch.setattr(os.path, "ismount", lambda path: seen and path == mounted)
    number = mounted.stat().st_ino
    _write("volume")
    assert _read(mounted) == NEW
    assert mounted.stat().st_ino == number
    assert [p.name for p in mounted.parent.iterdir()] == ["volume"]


@pytest.mark.parametrize("seen", [True, False])
def test_a_mounted_directory_is_empty_after_an_error(mounted, monkeypatch, seen):
    monkeypatch.setattr(os.path, "ismount", lambda path: seen and path == mounted)
    move = shutil.move

    def full(source, target):
        if Path(target).name == "model":
            raise OSError(errno.ENOSPC, "No space left on device")
        return move(source, target)

    monkeypatch.setattr(shutil, "move", full)
    with pytest.raises(OSError) as error:
        _write("volume")
    assert str(error.value) == (
        "volume: the new directory cannot be put there (No space left on device); write another "
        "name"
    )
    assert list(mounted.iterdir()) == []
    assert [p.name for p in mounted.parent.iterdir()] == ["volume"]
    monkeypatch.setattr(shutil, "move", move)
    (mounted / ".volume.tmp").mkdir()  # as a kill leaves it
    _write("volume")
    assert _read(mounted) == NEW


def _as_killed(monkeypatch, place, work):
    """What a kill before each change to a directory would have left of it, in order.

    Copies of ``place``, each under its own name.
    """
    states = place.parent / "states"

    def before(module, name):
        change = getattr(module, name)

        def kept(*arguments, **options):
            target = states / str(len(list(states.iterdir()))) / place.name
            shutil.copytree(place, target)
            return change(*arguments, **options)

        patch.setattr(module, name, kept)

    states.mkdir()
    with monkeypatch.context() as patch:
        for module, name in ((shutil, "move"), (shutil, "rmtree"), (os, "replace")):
            before(module, name)
        before(Path, "unlink")
        work()
    shutil.move(states, place.parent / "done")
    found = sorted((place.parent / "done").iterdir(), key=lambda state: int(state.name))
    return [state / place.name for state in found]


@pytest.mark.parametrize("seen", [True, False])
def test_a_kill_at_any_file_leaves_nothing_to_clean_by_hand(mounted, monkeypatch, seen):
    monkeypatch.setattr(os.path, "ismount", lambda path: seen and path.name == "volume")
    names = {"1_Pooling", "README.md", "clir_jax.json", "config.json", "model.safetensors"}
    names |= {"modules.json", "tokenizer.json"}

    def write(path):
        with new_directory(path) as temporary:
            (temporary / "1_Pooling").mkdir()
            (temporary / "1_Pooling" / "config.json").write_text("new")
            for name in names - {"1_Pooling"}:
                (temporary / name).write_text("new")

    states = _as_killed(monkeypatch, mounted, lambda: write(mounted))
    counts = []
    for state in states:
        there = set(os.listdir(state)) - {".volume.tmp"}
        counts.append(len(there))
        assert there <= names
        if there == names:
            continue
        # Nobody takes it for a model, of this library or another.
        assert not is_saved(state)
        if (state / "config.json").exists():
            assert there == names - {"clir_jax.json"}
        if (state / "modules.json").exists():
            assert there >= names - {"clir_jax.json", "config.json"}
        if there:
            with pytest.raises(FileNotFoundError, match="a part of its files is there"):
                locate(state)
        again = _as_killed(monkeypatch, state, lambda state=state: write(state))
        assert set(_read(state)) == {*names - {"1_Pooling"}, "1_Pooling/config.json"}
        assert not (state / ".volume.tmp").exists()
        # A kill in the clearing up is no harm either.
        for second in again:
            if set(os.listdir(second)) - {".volume.tmp"} != names:
                write(second)
                assert set(os.listdir(second)) == names
    assert set(counts) == set(range(len(names) + 1))


def test_what_somebody_put_beside_a_part_stays(mounted, monkeypatch):
    monkeypatch.setattr(os.path, "ismount", lambda path: path.name == "volume")
    states = _as_killed(monkeypatch, mounted, lambda: _write(mounted))
    part = next(state for state in states if (state / "1_Pooling").exists())
    (part / "thesis.txt").write_text("years of work")
    _fails(part, f"{part}: holds something else than a model and is not overwritten; write the "
           "name of a new directory")  # fmt: skip
    assert (part / "thesis.txt").read_text() == "years of work"
    assert (part / ".volume.tmp" / "model").read_text() == "new"


def test_a_mounted_model_is_not_replaced(mounted, monkeypatch):
    (mounted / "model").write_text("old")
    monkeypatch.setattr(os.path, "ismount", lambda path: path == mounted)
    _fails(
        "volume",
        "volume: is mounted, or the directory you are in, and cannot be exchanged for a new one; "
        "empty it, or write the name of a new directory",
        replaced=True,
    )
    monkeypatch.setattr(os.path, "ismount", lambda path: False)
    with pytest.raises(OSError, match=r"^volume: the new directory cannot be put there \(Device"):
        _write("volume", replaced=True)
    assert _read(mounted) == {"model": "old"}


@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_and_the_data_are_where_it_leads(home, there):
    (home / "disk").mkdir()
    if there:
        (home / "disk" / "real").mkdir()
    (home / "link").symlink_to("disk/real")
    _write("link")
    assert (home / "link").is_symlink()
    assert _read(home / "disk" / "real") == NEW
    _write("link", replaced=True, text="newer")
    assert (home / "link").is_symlink()
    assert _read(home / "disk" / "real")["model"] == "newer"
    assert sorted(p.name for p in home.rglob("*") if p.parent != home / "disk" / "real") == [
        "config.json",
        "disk",
        "link",
        "real",
    ]


def test_the_directory_one_is_in_is_filled_and_not_exchanged(home):
    number = home.stat().st_ino
    _write(".")
    assert os.stat(".").st_ino == number
    assert _read(home) == _read(".") == NEW
    assert not list(home.parent.glob(f".{home.name}.*"))
    sentence = (
        "{}: is mounted, or the directory you are in, and cannot be exchanged for a new one; empty "
        "it, or write the name of a new directory"
    )
    _fails(".", sentence.format("."), replaced=True)
    os.chdir("1_Pooling")
    _fails("..", sentence.format(".."), replaced=True)
    assert _read(home) == NEW


def test_a_directory_in_one_that_may_not_be_written_to_is_filled(home, monkeypatch):
    (home / "out").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != home)
    with new_directory(home / "out", lambda place: False, "a model") as temporary:
        assert temporary.parent == home / "out"
        (temporary / "model").write_text("new")
    assert _read("out") == {"model": "new"}
    _fails("other/model", f"other/model: {home} may not be written to; write another name")
    assert sorted(p.name for p in home.iterdir()) == ["out"]


def test_what_cannot_be_a_directory_is_told_in_the_words_of_the_user(home):
    (home / "f").write_text("x")
    for name in ("f/x", "f/x/y"):
        _fails(name, f"{name}: {home / 'f'} is a file; write the name of a directory")
    _fails(
        "f",
        "f: holds something else than a model and is not overwritten; write the name of a new "
        "directory",
    )
    _fails(
        ".", ".: is there already and is not overwritten; write the name of a new directory", None
    )
    longest = "x" * 255  # with what we add to it, too long
    _fails(
        longest,
        f"{longest}: no directory can be made there (File name too long); write another name",
    )
    assert [p.name for p in home.iterdir()] == ["f"]


def test_what_a_kill_between_the_two_steps_has_left_is_not_lost(home):
    (home / ".model.old").mkdir()
    (home / ".model.old" / "model").write_text("old")
    with (
        pytest.raises(ValueError, match="no luck"),
        new_directory(Path("model"), lambda place: (place / "model").is_file(), "a model"),
    ):
        raise ValueError("no luck")
    assert _read("model") == {"model": "old"}
    assert [p.name for p in home.iterdir()] == ["model"]


def test_what_somebody_else_wrote_meanwhile_stays(home):
    def slowly():
        with new_directory(Path("out"), lambda place: False, "a model"):
            _write("out", text="theirs")

    with pytest.raises(FileExistsError, match=r"^out: holds something else"):
        slowly()
    assert _read("out")["model"] == "theirs"


def test_export_looks_at_the_directory_before_the_model(home, capsys):
    (home / "f").write_text("x")
    arguments = ["--model", "no/model", "--to", "transformers", "--output", "f/x"]
    assert export.main(arguments) == 2
    assert capsys.readouterr().err == (
        f"error: f/x: {home / 'f'} is a file; write the name of a directory\n"
    )
