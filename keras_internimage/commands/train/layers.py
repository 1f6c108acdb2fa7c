"""Weights from one model to another whose layers have the same names."""


def copy_weights(source, target):
    """Gives each layer of `target` that `source` has, too, the weights that it has there."""
    known = {layer.name: layer for layer in source.layers}
    for layer in target.layers:
        if layer.weights and layer.name in known:
            layer.set_weights(known[layer.name].get_weights())
