"""Operations on batches of images, in JAX: each device computes its own images.

XLA cannot see into a call of a kernel. In a function that is compiled for several devices, it would
gather the whole batch on each of them first. Here it is told that the first axis of all arrays is
the batch, and that nothing else may be split.
"""

import jax
import jax.numpy as jnp
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec


def batch_parallel(function, rule):
    """`function`, split along the first axis of its arrays, under `jax.jit` and `jax.vmap`.

    Args:
        function: Takes arrays, and gives an array or several; the first axis of all is the batch,
            and images do not depend on each other.
        rule: Shardy's notation of the axes of arguments and results, such as
            `"n h w c, n p q o -> n p q c"`.
    """

    # Outside of functions that are compiled as a whole, this one is, and once.
    @jax.jit
    def partitioned(*arrays):
        return _partitioned(function, rule, arrays)

    # What is partitioned has no rule for `jax.vmap`: the mapped axis becomes part of the batch.
    @jax.custom_batching.custom_vmap
    def mapped(*arrays):
        return (function if jax.device_count() == 1 else partitioned)(*arrays)

    @mapped.def_vmap
    def _fold(size, in_batched, *arrays):
        arrays = [
            array if batched else jnp.broadcast_to(array, (size, *array.shape))
            for array, batched in zip(arrays, in_batched, strict=True)
        ]
        batch = arrays[0].shape[1]
        results = mapped(*(array.reshape(-1, *array.shape[2:]) for array in arrays))
        results = jax.tree.map(lambda r: r.reshape(size, batch, *r.shape[1:]), results)
        return results, jax.tree.map(lambda _: True, results)

    def split(*arrays):
        axes = _explicit_axes(arrays)
        if axes is not None:  # on a mesh of explicit axes, types say what is where
            spec = PartitionSpec(axes)
            arrays = [jax.sharding.reshard(array, spec) for array in arrays]
            return jax.shard_map(on_device, in_specs=spec, out_specs=spec)(*arrays)
        return on_device(*arrays)

    def on_device(*arrays):
        # Within `jax.shard_map` all results differ between the devices that the arguments do.
        axes = frozenset().union(*map(_varying_axes, arrays))
        return jax.tree.map(
            lambda result: _vary(result, axes - _varying_axes(result)), mapped(*arrays)
        )

    return split


def differentiable(operator, gradient, formulation):
    """`operator`, a kernel, with derivatives of every order.

    Args:
        operator: of arrays, one array.
        gradient: of the gradient of the operator's array, and the operator's arguments: theirs.
        formulation: computes what `operator` does, by operations that JAX can differentiate: the
            derivatives of `gradient` are computed by it.
    """

    @jax.custom_vjp
    def first(upstream, *arrays):
        return tuple(gradient(upstream, *arrays))

    def second(kept, upstreams):
        def pull(upstream, *arrays):
            return jax.vjp(formulation, *arrays)[1](upstream)

        return jax.vjp(pull, *kept)[1](upstreams)

    first.defvjp(lambda *arrays: (first(*arrays), arrays), second)
    function = jax.custom_vjp(operator)
    function.defvjp(
        lambda *arrays: (function(*arrays), arrays),
        lambda arrays, upstream: first(upstream, *arrays),
    )
    return function


def differentiable_batch_parallel(function, arguments, results):
    """`batch_parallel` for a function of JAX' own operations, with derivatives that are so too.

    Args:
        function: as there.
        arguments, results: tuples of the axes of each array, such as `("n h w c", "n p q o")`.
    """
    parallel = batch_parallel(function, f"{', '.join(arguments)} -> {', '.join(results)}")
    count = len(results)

    def gradient(*arrays):
        upstreams, arrays = arrays[:count], arrays[count:]
        return jax.vjp(function, *arrays)[1](upstreams if count > 1 else upstreams[0])

    def backward(arrays, upstreams):
        of_gradient = differentiable_batch_parallel(gradient, results + arguments, arguments)
        return of_gradient(*jax.tree.leaves(upstreams), *arrays)

    differentiated = jax.custom_vjp(parallel)
    differentiated.defvjp(lambda *arrays: (differentiated(*arrays), arrays), backward)
    return differentiated


def _partitioned(function, rule, arrays):
    """`function(*arrays)`, which XLA splits."""
    # What is partitioned must not have constants: they become arguments that all devices have.
    closed, results = jax.make_jaxpr(function, return_shape=True)(*arrays)
    count, constants = len(arrays), closed.consts
    for i, constant in enumerate(constants):
        axes = " ".join(f"c{i}d{axis}" for axis in range(jnp.ndim(constant)))
        rule = rule.replace(" ->", f", {axes} ->")

    def whole(*arguments):
        found = jax.core.eval_jaxpr(closed.jaxpr, arguments[count:], *arguments[:count])
        return jax.tree.unflatten(jax.tree.structure(results), found)

    def split(mesh, arguments, arrays):
        """Shardings of `arrays` that split the first axis as that of the arguments is."""
        specs = [a.sharding.spec for a in arguments[:count] if a.sharding is not None]
        axes = next((spec[0] for spec in specs if len(spec) and spec[0] is not None), None)
        return jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec(axes)), arrays)

    def partition(mesh, arguments, results):
        everywhere = [NamedSharding(mesh, PartitionSpec())] * len(constants)
        return (
            mesh,
            lambda *arguments: function(*arguments[:count]),
            split(mesh, arguments, results),
            (*split(mesh, arguments, arguments[:count]), *everywhere),
        )

    operation = custom_partitioning(whole)
    operation.def_partition(
        partition=partition, infer_sharding_from_operands=split, sharding_rule=rule
    )
    return operation(*arrays, *constants)


def _explicit_axes(arrays):
    """The explicit mesh axes that the first axis of arrays is split along, None without any."""
    specs = [getattr(getattr(jax.typeof(a), "sharding", None), "spec", ()) for a in arrays]
    if not any(part is not None for spec in specs for part in spec):
        return None
    for spec in specs:
        if any(part is not None for part in spec[1:]):
            raise ValueError(
                "On a mesh of explicit axes, DCNv3's tensors must be split along the batch alone; "
                f"`jax.sharding.reshard` brings them there. Received: {spec}"
            )
    return next(spec[0] for spec in specs if len(spec) and spec[0] is not None)


def _varying_axes(array):
    kind = jax.typeof(array)
    kind = getattr(kind, "manual_axis_type", kind)  # JAX 0.10
    return getattr(kind, "varying", getattr(kind, "vma", frozenset()))


def _vary(array, axes):
    if not axes:
        return array
    if hasattr(jax.lax, "pcast"):
        return jax.lax.pcast(array, tuple(axes), to="varying")
    return jax.lax.pvary(array, tuple(axes))
