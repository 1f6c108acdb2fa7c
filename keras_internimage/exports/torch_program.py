"""A model as a `torch.export` program, tidied: what PyTorch leaves in it costs time and space."""

import contextlib
import logging
import warnings

import keras

from keras_internimage.exports import formats


def trace(model, options):
    """The model as a `torch.export.ExportedProgram` from images to a tuple of outputs."""
    import torch

    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, images):
            return tuple(formats.outputs(self.model, images, options.argmax))

    # An example; PyTorch would take an unknown size of 1 for a known one.
    examples = zip(model.input_shape[1:], getattr(model, "EXAMPLE", (64, 64, 3)), strict=True)
    sizes = [example if size is None else size for size, example in examples]
    images = torch.zeros(
        (options.batch_size or 2, *sizes),
        dtype=getattr(torch, keras.backend.standardize_dtype(model.inputs[0].dtype)),
        device=model.variables[0].value.device,
    )
    unknown = {} if options.batch_size else {0: torch.export.Dim("batch")}
    for axis, size in enumerate(model.input_shape[1:3], start=1):
        if size is None:
            unknown[axis] = torch.export.Dim.AUTO
    with torch.no_grad(), quiet(), _unknown_sizes():
        program = torch.export.export(
            Module().eval(), (images,), dynamic_shapes=(unknown,), strict=False
        )
    _take_parameters_for_constants(program)
    _remove_what_does_nothing(program)
    _write_constants_of_loops(program)
    return program


def _unknown_sizes():
    """Within it, two functions that Keras calls keep sizes unknown, which PyTorch's would fix."""
    import torch

    def gather(inputs, indices, dim):
        pairs = list(zip(inputs.shape, indices.shape, strict=True))
        shared = [k != dim % inputs.ndim for k in range(inputs.ndim)]

        def expanded(x, own):
            return x.expand(
                [
                    pair[1 - own] if other and isinstance(pair[own], int) and pair[own] == 1 else -1
                    for pair, other in zip(pairs, shared, strict=True)
                ]
            )

        return torch.gather(expanded(inputs, 0), dim, expanded(indices, 1))

    class UnknownSizes(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            kwargs = kwargs or {}
            if function is torch.take_along_dim:
                return gather(*args, **kwargs)
            if function is torch.as_tensor and isinstance(args[0], torch.SymInt):
                return torch.scalar_tensor(*args, **kwargs)
            return function(*args, **kwargs)

    return UnknownSizes()


def _take_parameters_for_constants(program):
    """Uses the parameters, by their names, where the trace has Keras' variables as constants.

    Each weight would be in the file twice otherwise.
    """
    signature, graph = program.graph_signature, program.graph_module.graph
    nodes = {node.name: node for node in graph.nodes if node.op == "placeholder"}
    parameters = {
        program.state_dict[name].data_ptr(): nodes[argument]
        for argument, name in signature.inputs_to_parameters.items()
    }
    removed = set()
    for argument, name in signature.inputs_to_lifted_tensor_constants.items():
        parameter = parameters.get(program.constants[name].data_ptr())
        if parameter is not None:
            nodes[argument].replace_all_uses_with(parameter)
            del program.constants[name]
            removed.add(argument)
    for argument, name in signature.inputs_to_parameters.items():
        if not nodes[argument].users:  # the state of random numbers, for training
            del program.state_dict[name]
            removed.add(argument)
    for argument in removed:
        graph.erase_node(nodes[argument])
    signature.input_specs[:] = [s for s in signature.input_specs if s.arg.name not in removed]
    graph.lint()
    program.graph_module.recompile()


def _remove_what_does_nothing(program):
    """Removes conversions to the type a tensor has already, and the assertions before them.

    Also a squeeze along an axis that is not 1, as Keras' `take` has it: ONNX knows none.
    """
    import torch

    aten, graph = torch.ops.aten, program.graph_module.graph
    for node in list(graph.nodes):
        if node.target is aten._assert_tensor_metadata.default:
            graph.erase_node(node)
        elif node.target in (aten.to.dtype_layout, aten.to.dtype):
            old, new = node.args[0].meta["val"], node.meta["val"]
            # The program's signature has the outputs by their nodes' names.
            output = any(user.op == "output" for user in node.users)
            if (old.dtype, old.device) == (new.dtype, new.device) and not output:
                node.replace_all_uses_with(node.args[0])
                graph.erase_node(node)
        elif node.target is aten.squeeze.dim:
            old = node.args[0]
            if old.meta["val"].ndim == node.meta["val"].ndim:
                node.replace_all_uses_with(old)
                graph.erase_node(node)
    graph.lint()
    program.graph_module.recompile()


def _write_constants_of_loops(program):
    """Makes the numbers in the bodies of loops operations: PyTorch saves no constants there."""
    import torch

    for module in program.graph_module.modules():
        if module is program.graph_module or not isinstance(module, torch.fx.GraphModule):
            continue
        for node in list(module.graph.nodes):
            value = getattr(module, node.target, None) if node.op == "get_attr" else None
            if not isinstance(value, torch.Tensor):
                continue
            with module.graph.inserting_before(node):
                number = module.graph.call_function(
                    torch.ops.aten.full.default,
                    (list(value.shape), value.flatten()[0].item()),
                    {"dtype": value.dtype, "device": value.device},
                )
            number.meta["val"] = node.meta.get("val", value)
            node.replace_all_uses_with(number)
            module.graph.erase_node(node)
            delattr(module, node.target)
        module.recompile()


@contextlib.contextmanager
def quiet():
    """Without the exporter's remarks about libraries that are not there."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
