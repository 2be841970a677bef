"""Values against annotations."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import pytest

from clir_jax.config_types import Checked, fits, named, options, shown, spelled, walk


@dataclasses.dataclass(frozen=True)
class Leaf:
    size: int


@dataclasses.dataclass(frozen=True)
class Branch(Checked):
    leaves: tuple[Leaf, ...] = ()
    by_name: Mapping[str, Leaf] = dataclasses.field(default_factory=dict)


@pytest.mark.parametrize(
    ("hint", "good", "bad"),
    [
        (int, [0, -3], [1.0, True, "1", None]),
        (float, [0, 0.5, float("inf")], [True, "1", None]),
        (bool, [True], [1, None]),
        (str, [""], [b"", None]),
        (int | None, [None, 1], ["", True]),
        (Literal["a", 1], ["a", 1], ["b", True, 1.0]),
        (tuple[str, ...], [(), ("a", "b")], [["a"], ("a", 1), "ab"]),
        (tuple[float, ...] | None, [None, (1, 2.0)], [("a",), [1.0]]),
        (Mapping[str, int], [{}, {"a": 1}], [{1: 1}, {"a": "b"}, ()]),
        (dict[str, Any], [{"a": None}], [{1: None}]),
        (list[str], [["a"]], [("a",)]),
        (Leaf, [Leaf(1)], [Leaf, 1]),
        (Any, [None, object()], []),
    ],
)
def test_fits(hint, good, bad):
    assert [value for value in good if not fits(value, hint)] == []
    assert [value for value in bad if fits(value, hint)] == []


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (int, "a whole number"),
        (float | None, "a number or None"),
        (Literal["x", "y"], "'x' or 'y'"),
        (tuple[Leaf, ...], "a tuple (in JSON a list) of Leaf"),
        (Mapping[str, str | Leaf], "a mapping from text to text or Leaf"),
    ],
)
def test_spelled(hint, words):
    assert spelled(hint) == words


def test_what_is_inside_is_checked_with_its_place():
    assert Branch((Leaf(1),), {"a": Leaf(2)}).leaves[0].size == 1
    with pytest.raises(ValueError, match=r"^Branch\.leaves\.1\.size is 'x'; it must be a whole"):
        Branch((Leaf(1), Leaf("x")))
    with pytest.raises(ValueError, match=r"^Branch\.by_name\.a\.size is None; it must be a whole"):
        Branch((), {"a": Leaf(None)})


def test_walk_finds_every_dataclass_outer_first():
    branch = Branch((Leaf(1),), {"a": Leaf(2)})
    assert list(walk((branch, 5))) == [branch, Leaf(1), Leaf(2)]


def test_words():
    assert named(["b", "a"]) == "a, b"
    assert named([]) == "(none)"
    assert shown("x" * 100) == "'" + "x" * 76 + "..."
    assert options(int) == (int,)
