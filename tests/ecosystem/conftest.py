"""JAX compiles training steps for these tests without its costly passes: twice as fast here."""

import keras
import pytest


@pytest.fixture(autouse=True)
def _quick_compilation():
    if keras.config.backend() != "jax":
        yield
        return
    import jax

    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
