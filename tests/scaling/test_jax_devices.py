"""On several JAX devices, each computes its own images, without asking the others for theirs."""

import keras
import pytest

if keras.config.backend() != "jax":
    pytest.skip("JAX's", allow_module_level=True)

DEVICES = "--xla_force_host_platform_device_count=4"

OPERATOR = """
import functools, sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from keras_internimage.ops import dcnv3

implementation = sys.argv[1]
mesh = Mesh(np.array(jax.devices()).reshape(2, 2), ("batch", "rows"))
rng = np.random.default_rng(0)
x = rng.normal(size=(8, 8, 8, 16)).astype("float32")
om = rng.normal(size=(8, 8, 8, 2 * 27)).astype("float32")

def operator(x, om):
    return dcnv3(x, om, None, kernel_size=3, padding=1, groups=2, mask_activation="softmax",
                 implementation=implementation)

def loss(x, om):
    return jnp.sum(jnp.sin(operator(x, om)))

def close(found, expected):
    for f, e in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(f, e, atol=1e-5)

for function in (operator, jax.grad(loss, argnums=(0, 1))):
    expected = function(x, om)
    for spec in (P(("batch", "rows")), P("batch"), P("batch", "rows")):
        place = functools.partial(jax.device_put, device=NamedSharding(mesh, spec))
        jitted = jax.jit(function)
        text = jitted.lower(place(x), place(om)).compile().as_text()
        if "rows" not in spec[1:]:
            assert "all-gather" not in text, text
        results = jitted(place(x), place(om))
        close(results, expected)
        for result in jax.tree.leaves(results):
            assert result.sharding.spec[0] == spec[0], result.sharding
    local = jax.shard_map(function, mesh=mesh, in_specs=P("batch"), out_specs=P("batch"))
    close(jax.jit(local)(x, om), expected)
    folded = jax.jit(jax.vmap(function))
    pairs = [a.reshape(2, 4, *a.shape[1:]) for a in (x, om)]
    close(jax.tree.map(lambda a: a.reshape(8, *a.shape[2:]), folded(*pairs)), expected)
    one = jax.vmap(function, in_axes=(0, None))(x[:, None], om[:1])
    expected = function(x[3:4], om[:1])
    close(jax.tree.map(lambda a: a[3], one), expected)

# A mesh of explicit axes, where the types of arrays say how they are split.
expected = [function(x, om) for function in (operator, jax.grad(loss, argnums=(0, 1)))]
explicit = (jax.sharding.AxisType.Explicit,) * 2
jax.set_mesh(jax.make_mesh((2, 2), ("batch", "rows"), axis_types=explicit))
put = [jax.device_put(a, P("batch")) for a in (x, om)]
for function, values in zip((operator, jax.grad(loss, argnums=(0, 1))), expected, strict=True):
    jitted = jax.jit(function)
    assert "all-gather" not in jitted.lower(*put).compile().as_text()
    results = jitted(*put)
    close(results, values)
    assert all(jax.typeof(r).sharding.spec[0] == "batch" for r in jax.tree.leaves(results))
try:
    jax.jit(operator)(jax.device_put(x, P("batch", "rows")), put[1])
except ValueError as error:
    assert "split along the batch alone" in str(error), error
else:
    raise AssertionError("rows that are split were not refused")
"""


@pytest.mark.parametrize("implementation", ["native", "portable"])
def test_operator(run, tmp_path, implementation):
    (tmp_path / "program.py").write_text(OPERATOR)
    run("program.py", implementation, XLA_FLAGS=DEVICES, JAX_DISABLE_MOST_OPTIMIZATIONS="0")


MODEL = """
import pathlib
import keras, numpy as np
from keras_internimage import distribution
from small_models import one_block

rng = np.random.default_rng(0)
x = rng.normal(size=(8, 32, 32, 3)).astype("float32")
y = rng.integers(5, size=8)

def train():
    keras.utils.set_random_seed(0)
    model = one_block((32, 32), channels=64, classes=5)
    model.compile(keras.optimizers.SGD(0.01), "sparse_categorical_crossentropy")
    losses = model.fit(x, y, batch_size=8, epochs=5, shuffle=False, verbose=0).history["loss"]
    return model, np.concatenate([losses, model.predict(x, verbose=0).ravel()])

def compiled():
    folder = pathlib.Path("hlo")
    return {p: p.read_text() for p in folder.glob("*after_optimizations.txt")}

_, alone = train()
before = compiled()
assert before and not any("all-reduce" in text for text in before.values())

keras.distribution.set_distribution(keras.distribution.DataParallel())
_, parallel = train()
np.testing.assert_allclose(parallel, alone, atol=1e-5)
texts = [text for path, text in compiled().items() if path not in before]
assert any("keras_internimage_dcnv3_backward" in text for text in texts)
assert any("all-reduce" in text for text in texts)
assert not any("all-gather" in text for text in texts)

# On a mesh of 2 x 2: half of the images, and half of the weights, on each device.
mesh = keras.distribution.DeviceMesh((2, 2), ["batch", "model"])
keras.distribution.set_distribution(
    keras.distribution.ModelParallel(
        layout_map=distribution.layout_map(mesh), batch_dim_name="batch"
    )
)
model, split = train()
np.testing.assert_allclose(split, alone, atol=1e-5)
values = [variable.value for variable in model.weights]
large = [value for value in values if value.ndim == 2]
assert len(large) == 5 + 1
assert all(2 * value.addressable_shards[0].data.size == value.size for value in large)
(block,) = [layer for layer in model.layers if "block" in layer.name]
here = sum(weight.value.addressable_shards[0].data.size for weight in block.weights)
assert here < 0.55 * block.count_params(), (here, block.count_params())
"""


def test_a_model_alone_under_data_parallel_and_split(run, tmp_path):
    (tmp_path / "program.py").write_text(MODEL)
    dump = "--xla_dump_to=hlo --xla_dump_hlo_as_text --xla_dump_hlo_module_re=.*(train|predict).*"
    # What XLA made of it is read, so with all of its passes.
    run("program.py", XLA_FLAGS=f"{DEVICES} {dump}", JAX_DISABLE_MOST_OPTIMIZATIONS="0")


SHARE = """
import collections
import jax, keras
from keras_internimage import distribution
from small_models import FIVE_BLOCKS, classifier

mesh = keras.distribution.DeviceMesh((1, 4), ["batch", "model"])
layout = distribution.layout_map(mesh)
keras.distribution.set_distribution(
    keras.distribution.ModelParallel(layout_map=layout, batch_dim_name="batch")
)
# InternImage-H with all its parts at a tenth of its width.
model = classifier(
    {**FIVE_BLOCKS, "channels": 32}, dw_kernel_size=5, res_post_norm=True, level2_post_norm=True,
    level2_post_norm_block_ids=(1,), center_feature_scale=True, use_clip_projector=True,
    classes=100, input_shape=(64, 64, 3),
)
optimizer = keras.optimizers.AdamW()
optimizer.build(model.trainable_variables)
whole = sum(v.value.nbytes for v in (*model.variables, *optimizer.variables))
held = collections.Counter()
for array in jax.live_arrays():
    for shard in array.addressable_shards:
        held[shard.device] += shard.data.nbytes
shares = [size / whole for size in held.values()]
assert len(shares) == 4 and all(0.25 <= share < 0.26 for share in shares), shares
"""


def test_each_device_holds_its_share(run, tmp_path):
    """Of a model's weights and of its optimizer's state, on four devices: a quarter."""
    (tmp_path / "program.py").write_text(SHARE)
    run("program.py", XLA_FLAGS=DEVICES)


def test_the_layout_names_an_axis():
    from keras_internimage import distribution

    mesh = keras.distribution.DeviceMesh((1, 1), ["batch", "model"], ["cpu:0"])
    layout = distribution.layout_map(mesh, axis="batch")
    assert layout["user/backbone/stage1_block1/mlp_fc2/kernel"].axes == ("batch", None)
    assert layout["stage1_block1/dcn/dw_conv/kernel"] is None
    with pytest.raises(ValueError, match="`axis` must be None or one of"):
        distribution.layout_map(mesh, axis="rows")
