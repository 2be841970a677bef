"""The records of a JSON array, against json's own parsing of the whole file."""

import json
import random

import pytest
from etils import epath

from clir_jax.data.json_arrays import JSONArray
from clir_jax.data.reading import DataError


def opened(tmp_path, content):
    path = tmp_path / "x.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return JSONArray(epath.Path(path), "x.json")


def random_value(rng, depth):
    text = "".join(rng.choices(['"', "\\", "[", "]", "{", "}", ",", " ", "é", "你", "\n"], k=6))
    if depth == 0:
        return rng.choice([text, 1.5, None, True, -3])
    members = [random_value(rng, depth - 1) for _ in range(rng.randrange(3))]
    return members if rng.random() < 0.5 else {f"{text}{n}": m for n, m in enumerate(members)}


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("indent", [None, 2])
def test_random_records_are_those_that_json_finds(tmp_path, seed, indent):
    rng = random.Random(seed)
    values = [{"key": random_value(rng, 3)} for _ in range(30)]
    text = json.dumps(values, indent=indent, ensure_ascii=rng.random() < 0.5)
    found = opened(tmp_path, rng.choice(["", "\ufeff", " \r\n"]) + text + rng.choice(["", "\n"]))
    assert [json.loads(found.raw(i)) for i in range(len(found))] == values


def test_places(tmp_path):
    found = opened(tmp_path, '\n[{"a": "\\n"}, {"a":\n1}\n,{}]')
    places = [found.place(i) for i in range(len(found))]
    assert places == ["x.json:2 (record 1)", "x.json:2 (record 2)", "x.json:4 (record 3)"]


def test_an_array_without_records(tmp_path):
    assert len(opened(tmp_path, " [ ] ")) == 0


ARRAY = "write one JSON array of objects, [{...}, {...}], in UTF-8"
COMMA = "write objects only, with a comma between two of them"
CUT = "copy the file again if it was cut off, or add the missing bracket or quotation mark"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ('{"a": 1}\n{}', f"the file starts with '{{\"a\": 1}}\\n{{}}'; {ARRAY}"),
        ("[{}]".encode("utf-16"), "the file starts with '��[\\x00{\\x00}\\x00]\\x00'; " + ARRAY),
        ('[{"a": 1}, {"a": [2', f"the array does not end after record 1; {CUT}"),
        ('[{"a": 1}, {"a": "2}]', f"the array does not end after record 1; {CUT}"),
        ('[{"a": 1}, {"a": "]}"}', f"the array does not end after record 2; {CUT}"),
        ('[{"a": 1} {"a": 2}]', f"record 1 is followed by '{{\"a\": 2}}]'; {COMMA}"),
        ('[{"a": 1}, 5, {"a": 2}]', f"record 1 is followed by ', 5, {{\"a\": 2}}]'; {COMMA}"),
        ('[{"a": 1},]', f"record 1 is followed by ',]'; {COMMA}"),
        ('[{"a": 1},,{"a": 1}]', f"record 1 is followed by ',,{{\"a\": 1}}]'; {COMMA}"),
        ("[1, 2]", f"the array starts with '1, 2]'; {COMMA}"),
        ("[,{}]", f"the array starts with ',{{}}]'; {COMMA}"),
        ("[{}] [{}]", "the array is followed by '[{}]'; write one array a file"),
        ("", "the file is empty; write at least one record"),
    ],
)  # fmt: skip
def test_what_is_no_array(tmp_path, content, sentence):
    with pytest.raises(DataError) as error:
        opened(tmp_path, content)
    assert str(error.value) == f"x.json: {sentence}"
