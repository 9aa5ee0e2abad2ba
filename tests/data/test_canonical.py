"""The canonical encoding: what is equal, what is not, and the exact bytes."""

import collections
import datetime
import decimal
import hashlib
import json
import pathlib

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from spo_verl.data import NotCanonicalError, canonical_json


def test_text_of_a_nested_value_is_exactly_this():
    value = {"b": [1, 2.5, True, None], "a": {"é": 'say "x"\n'}, "c": None, "d": {}}
    # Keys sorted, no spaces, ASCII escapes; "c" (None) and "d" (empty mapping) are left out, the list's None stays.
    assert canonical_json(value) == b'{"a":{"\\u00e9":"say \\"x\\"\\n"},"b":[1,2.5,true,null]}'


def test_bytes_are_their_blake2b_under_the_reserved_key():
    digest = hashlib.blake2b(b"content", digest_size=16).hexdigest()
    assert canonical_json(b"content") == json.dumps({"\0bytes": digest}, separators=(",", ":")).encode()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, "1"),
        (1, True),
        (0, False),
        (1.5, "1.5"),
        (1.5, 1),
        ("é", "e\u0301"),  # composed and decomposed: no normalisation
        ("a", "a "),
        (["a"], "a"),
        ([], None),
        ([None], []),
        ([["a"], "b"], ["a", ["b"]]),
        (["a", "b"], ["b", "a"]),
        ({"a": "b"}, ["a", "b"]),
        ({"a": 0}, {"a": None}),
        ({"a": ""}, {}),
        ({"a": []}, {}),
        (b"a", "a"),
        (b"a", b"b"),
        (b"a", [97]),
        (float("nan"), None),
        (float("nan"), "NaN"),
        (float("inf"), -float("inf")),
        (datetime.date(2024, 5, 1), "2024-05-01"),
        (decimal.Decimal("1.0"), 1),
        ({"path": "a"}, {"path": "b"}),
        ({"bytes": b"x", "path": "a"}, {"bytes": b"y", "path": "a"}),
        ({"bytes": "text", "path": "a"}, {"bytes": "text", "path": "b"}),  # not embedded content
    ],
)
def test_different_values_differ(one, other):
    assert canonical_json(one) != canonical_json(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 1.0),
        (0, -0.0),
        (10**20, 1e20),
        ((1, "a"), [1, "a"]),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ({"a": 1, "b": None}, {"a": 1}),
        ({"a": {"b": {"c": None}}}, {}),
        ({"a": [{"b": None, "c": 1}]}, {"a": [{"c": 1}]}),
        ({"bytes": b"x", "path": "a"}, {"bytes": b"x", "path": "b"}),
        ({"bytes": b"x", "path": "a"}, {"bytes": bytearray(b"x"), "path": None}),
        ({"bytes": None, "path": "a"}, {"path": "a"}),
        (pathlib.PurePosixPath("a/b.png"), "a/b.png"),
        (np.int32(7), 7),
        (np.float64(0.1), 0.1),
        (np.float32(0.5), 0.5),
        (np.bool_(True), True),
        (np.str_("x"), "x"),
        (np.bytes_(b"x"), b"x"),
        (np.array([1, 2]), [1, 2]),
        (np.array(3), 3),
        (np.array([[1.5, 2.0]]), [[1.5, 2]]),
        (np.array([{"role": "user", "content": None}], dtype=object), [{"role": "user"}]),
        (torch.tensor([1, 2]), [1, 2]),
        (pd.NA, None),
        (pd.NaT, None),
        (pd.Timestamp("2024-05-01 10:00"), datetime.datetime(2024, 5, 1, 10)),
        (pa.scalar("x"), "x"),
        (pa.scalar(None, pa.string()), None),
        (pa.array([1, None]), [1, None]),
        (pa.chunked_array([[1], [2]]), [1, 2]),
        (pa.scalar({"a": 1, "b": None}), {"a": 1}),
        ({"image": pa.scalar({"bytes": b"x", "path": "a"})}, {"image": {"bytes": b"x"}}),
        (collections.OrderedDict(b=1, a=2), {"a": 2, "b": 1}),
        (collections.deque([1, 2]), [1, 2]),
    ],
)
def test_representations_of_one_value_agree(one, other):
    assert canonical_json(one) == canonical_json(other)


def test_pictures_are_their_mode_size_and_pixels():
    red = Image.new("RGB", (2, 3), (255, 0, 0))
    assert canonical_json(red) == canonical_json(red.copy())
    others = [
        Image.new("RGB", (2, 3), (254, 0, 0)),
        Image.new("RGB", (3, 2), (255, 0, 0)),  # the same pixels in another shape
        red.convert("RGBA"),
    ]
    assert len({canonical_json(picture) for picture in [red, *others]}) == 4


def test_palette_pictures_with_equal_indices_differ_by_their_palette():
    one, other = Image.new("P", (2, 2)), Image.new("P", (2, 2))
    one.putpalette([255, 0, 0])
    other.putpalette([0, 255, 0])
    assert one.tobytes() == other.tobytes()
    assert canonical_json(one) != canonical_json(other)


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ({1, 2}, "builtins.set"),
        (1j, "builtins.complex"),
        (object(), "builtins.object"),
        (np.datetime64("2024-05-01T10:00:00", "ns"), "datetime64"),
        (np.array([1j]), "complex128"),
        ({1: "a"}, "mapping key 1"),
        ({"\0bytes": "forged"}, "mapping key"),
    ],
)
def test_what_has_no_canonical_form_is_refused_by_name(value, named):
    with pytest.raises(NotCanonicalError, match=named):
        canonical_json([value])


json_values = st.recursive(
    st.text() | st.integers() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner) | st.dictionaries(st.text().filter(lambda k: k[:1] != "\0"), inner, min_size=1),
    max_leaves=12,
)


def same(one, other):
    """Equality that tells Booleans from numbers, written independently of the encoding."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and one == other


@settings(max_examples=200, deadline=None)
@given(json_values)
def test_nothing_is_lost(value):
    assert same(json.loads(canonical_json(value)), value)


@settings(max_examples=200, deadline=None)
@given(json_values, json_values)
def test_equal_bytes_mean_equal_values(one, other):
    assert (canonical_json(one) == canonical_json(other)) == same(one, other)
