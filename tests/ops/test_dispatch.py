"""The choice of an implementation."""

import keras
import pytest

from keras_internimage.ops import DCNv3Geometry, dcnv3, dispatch

pytestmark = pytest.mark.any_backend


class Fake:
    description = "for this test"

    def __init__(self, name, reason, backends=("tensorflow", "jax", "torch")):
        self.name, self.reason, self.backends = name, reason, backends
        self.calls = 0

    def why_not(self, request=None):
        return self.reason

    def run(self, inputs, offset, mask, geometry, mask_activation):
        self.calls += 1
        return inputs + 1


@pytest.fixture
def fakes(monkeypatch):
    able, unable = Fake("able", None), Fake("unable", "no compiler was found")
    elsewhere = Fake("elsewhere", None, backends=("numpy",))
    monkeypatch.setattr(
        dispatch, "IMPLEMENTATIONS", [unable, elsewhere, able, *dispatch.IMPLEMENTATIONS]
    )
    return able, unable, elsewhere


def request(**changes):
    backend = keras.backend.backend()
    return dispatch.Request(**{"backend": backend, "geometry": DCNv3Geometry(), **changes})


def call(**arguments):
    zeros = keras.ops.zeros
    return dcnv3(
        zeros((1, 3, 3, 4)), zeros((1, 3, 3, 18)), zeros((1, 3, 3, 9)), groups=1, **arguments
    )


def test_portable_is_always_a_candidate_and_never_refuses():
    assert [i.name for i in dispatch.candidates()][-1] == "portable"
    assert dispatch.select(request()).why_not(request()) is None
    assert dispatch.select(request(), "portable").name == "portable"


def test_none_takes_the_first_that_can_run(fakes):
    able, unable, _ = fakes
    assert dispatch.select(request()) is able
    assert float(keras.ops.max(call())) == 1.0
    assert (able.calls, unable.calls) == (1, 0)


def test_a_name_is_an_order(fakes):
    able, _, _ = fakes
    assert float(keras.ops.max(call(implementation="portable"))) == 0.0
    assert able.calls == 0
    with pytest.raises(RuntimeError, match="'unable' .* cannot run: no compiler was found"):
        call(implementation="unable")
    with pytest.raises(RuntimeError, match="'elsewhere' .* does not support this backend"):
        call(implementation="elsewhere")


def test_unknown_name_lists_the_known_ones():
    known = r"None or one of \['native', 'pallas', 'triton', 'portable'\]. Received: .*'cuda'"
    with pytest.raises(ValueError, match=known):
        call(implementation="cuda")
    with pytest.raises(ValueError, match="Received: implementation='cuda'"):
        dcnv3(
            keras.KerasTensor((1, 3, 3, 4)),
            keras.KerasTensor((1, 3, 3, 18)),
            keras.KerasTensor((1, 3, 3, 9)),
            groups=1,
            implementation="cuda",
        )


def test_unsupported_backend():
    with pytest.raises(RuntimeError, match="must be one of .*Received: backend='numpy'"):
        dispatch.select(request(backend="numpy"))


def test_table_tells_what_runs_and_why_not(fakes):
    rows = {row[0]: row for row in dispatch.table()}
    assert list(rows) == ["unable", "elsewhere", "able", "native", "pallas", "triton", "portable"]
    assert rows["able"][2:] == (True, "for this test")
    assert rows["unable"][2:] == (False, "no compiler was found")
    assert rows["elsewhere"][2] is False
    assert rows["elsewhere"][3] == f"not written for the {keras.backend.backend()} backend"
    assert rows["portable"][1:3] == ("tensorflow, jax, torch", True)


def test_the_request_describes_the_call(fakes, monkeypatch):
    able, _, _ = fakes
    seen = []
    monkeypatch.setattr(able, "why_not", lambda request=None: seen.append(request))
    call(mask_activation="softmax", offset_scale=2.0)
    assert seen == [
        request(
            geometry=DCNv3Geometry(offset_scale=2.0),
            input_shape=(1, 3, 3, 4),
            dtype="float32",
            mask_activation="softmax",
            device=dispatch.device_of(keras.ops.zeros(())),
        )
    ]
