"""Whatever goes out comes in again as it was, in every form that the wire has."""

from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from aula.core.errors import InputError
from aula.servers.kserve.tensors import datatype_of, from_json, from_list, from_raw, to_list, to_raw
from tests.servers.kserve.serving import DTYPES

SHAPES = st.lists(st.integers(0, 4), max_size=4).map(tuple)


@st.composite
def arrays(draw: st.DrawFn, names: list[str]) -> tuple[str, NDArray[Any]]:
    name, shape, seed = draw(st.sampled_from(names)), draw(SHAPES), draw(st.integers(0, 2**32 - 1))
    random, kind = np.random.default_rng(seed), np.dtype(DTYPES[name])
    if name == "BYTES":
        array = np.empty(shape, object)
        for place in np.ndindex(shape):
            array[place] = random.bytes(int(random.integers(0, 5)))
        return name, array
    raw = random.bytes(int(np.prod(shape, dtype=np.int64)) * kind.itemsize)
    if name == "BOOL":
        return name, np.frombuffer(raw, np.uint8).reshape(shape) % 2 == 1
    return name, np.frombuffer(raw, kind).reshape(shape)


@given(arrays(list(DTYPES)), st.integers(0, 7))
def test_raw_bytes(drawn: tuple[str, NDArray[Any]], beside: int) -> None:
    """Also where the bytes begin at an odd place in memory."""
    name, array = drawn
    content = memoryview(bytes(beside) + bytes(to_raw(array)))[beside:]
    again = from_raw("x", name, array.shape, content)
    assert (again.dtype, again.shape) == (array.dtype, array.shape)
    assert bytes(to_raw(again)) == bytes(content)
    assert again.flags.aligned


@given(arrays([name for name in DTYPES if name not in ("FP16", "BF16", "BYTES")]))
def test_numbers_flat_nested_and_listed(drawn: tuple[str, NDArray[Any]]) -> None:
    name, array = drawn
    if array.dtype.kind == "f":
        array = np.nan_to_num(array, posinf=1.5, neginf=-1.5)
    flat, nested = to_list("x", array), array.tolist() if array.ndim else [array.item()]
    for again in (
        from_json("x", name, array.shape, msgspec.json.encode(flat)),
        from_json("x", name, array.shape, msgspec.json.encode(nested)),
        from_list("x", name, array.shape, flat),
    ):
        assert again.dtype == array.dtype
        assert np.array_equal(again, array)


@given(st.lists(st.text(max_size=5), max_size=5))
def test_text(strings: list[str]) -> None:
    array = from_json("x", "BYTES", [len(strings)], msgspec.json.encode(strings))
    assert [one.decode() for one in array] == strings == to_list("x", array)


def test_names_of_numpys_types() -> None:
    assert {name: datatype_of(np.dtype(dtype)) for name, dtype in DTYPES.items()} == {name: name for name in DTYPES}
    assert {name: datatype_of(np.dtype(dtype).name) for name, dtype in DTYPES.items()} == {
        name: name for name in DTYPES
    }
    assert datatype_of("<U5") == "BYTES"
    assert datatype_of("") == "", "not known yet"
    with pytest.raises(InputError, match="complex64"):
        datatype_of("complex64")
    with pytest.raises(InputError, match="no text"):
        to_list("y", np.array([b"\xff"], object))


def test_columns_and_slices_go_out_row_by_row() -> None:
    whole = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert bytes(to_raw(whole.T)) == np.ascontiguousarray(whole.T).tobytes()
    assert bytes(to_raw(whole[:, ::2])) == np.ascontiguousarray(whole[:, ::2]).tobytes()
    assert bytes(to_raw(np.array(7, np.float32))) == np.float32(7).tobytes()


def test_bytes_that_are_neither_true_nor_false() -> None:
    assert from_raw("x", "BOOL", [2], b"\x00\x01").tolist() == [False, True]
    with pytest.raises(InputError, match="0 or 1"):
        from_raw("x", "BOOL", [2], b"\x00\x02")
