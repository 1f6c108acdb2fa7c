"""What holds of every loader's batches."""

import numpy as np


def check_function_of_seed_epoch_and_index(make):
    """`make(**options)` makes a loader for training; batches do not depend on what went before."""
    one, other = make(), make(threads=3)
    seen = {}
    for epoch in (0, 1):
        one.epoch = epoch
        for index in range(len(one)):
            seen[epoch, index] = one[index]
    for epoch, index in [(1, 1), (0, 0), (1, 0), (0, 1)]:  # as after an interruption
        other.epoch = epoch
        for a, b in zip(seen[epoch, index], other[index], strict=True):
            np.testing.assert_array_equal(a, b)
    assert not np.array_equal(seen[0, 0][0], seen[1, 0][0])
    assert not np.array_equal(make(seed=8)[0][0], seen[0, 0][0])
