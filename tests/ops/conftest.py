"""The operator's tests run on each implementation that there is here."""

import pytest

from keras_internimage.ops import dispatch, native


@pytest.fixture(params=["native", "portable"])
def implementation(request, monkeypatch):
    """Makes one implementation the preferred one, and names it.

    The portable one stays behind the native one, as for users: it takes what XLA compiles in
    TensorFlow, and float64 on a GPU.
    """
    portable = dispatch.IMPLEMENTATIONS[-1]
    if request.param == "portable":
        monkeypatch.setattr(dispatch, "IMPLEMENTATIONS", [portable])
    else:
        reason = native.Native().why_not()
        if reason is not None:
            pytest.skip(f"the kernels do not run here: {reason}")
    return request.param
