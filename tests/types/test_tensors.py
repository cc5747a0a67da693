import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from covey.types.errors import LayoutError
from covey.types.tensors import (
    flatten_tensors,
    pack_tensors,
    packed_num_bytes,
    specs_of,
    unflatten_tensors,
    unpack_tensors,
)

DTYPES = ["float32", "int32", "uint32", "bool", "float64", "int64"]


@st.composite
def tensors(draw):
    names = draw(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=4, unique=True))
    return {
        n: draw(arrays(draw(st.sampled_from(DTYPES)), draw(array_shapes(min_dims=0, max_dims=3, max_side=4))))
        for n in names
    }


@settings(deadline=None, max_examples=50)
@given(tensors())
def test_unpacking_is_the_inverse_of_packing(values):
    specs = specs_of(values)
    data = pack_tensors(values, specs)
    assert len(data) == packed_num_bytes(specs)
    back = unpack_tensors(specs, data)
    assert list(back) == sorted(values)
    for name, array in values.items():
        assert back[name].dtype == array.dtype and back[name].shape == array.shape
        assert back[name].tobytes() == array.tobytes()


def test_any_other_number_of_bytes_is_refused():
    values = {"a": np.ones(3, np.float32), "b": np.zeros((2, 2), np.int32)}
    specs, data = specs_of(values), pack_tensors(values)
    for wrong in (data[:-1], data + b"\0", b""):
        with pytest.raises(LayoutError):
            unpack_tensors(specs, wrong)


def test_flattening_is_canonical_and_reversible():
    values = {"b": np.arange(4, dtype=np.float32).reshape(2, 2), "a": np.array(9.0, np.float32)}
    specs = specs_of(values)
    flat = flatten_tensors(values, specs)
    assert flat.tolist() == [9, 0, 1, 2, 3]
    back = unflatten_tensors(flat, specs)
    assert all(np.array_equal(back[k], values[k]) for k in values)


@pytest.mark.parametrize("wrong", [{"a": np.ones(3, np.float32)}, {"a": np.ones(2)}, {}, {"b": np.ones(2, np.float32)}])
def test_tensors_that_are_not_those_of_the_specs_are_refused(wrong):
    specs = specs_of({"a": np.ones(2, np.float32)})
    with pytest.raises(LayoutError):
        pack_tensors(wrong, specs)
