"""The InternImage inside a model: its stages, and what its layers compute."""

import contextlib
import dataclasses
import re
from collections.abc import Sequence

import keras

from keras_internimage.layers import InternImageBlock, InternImageStem

# Output pixel (i, j) of a 3x3 convolution of stride 2 padded by 1 is centred on the input's pixel
# (2 i, 2 j). The stem has two of them, each down-sampling one more, so that pixel (i, j) of stage
# s is centred exactly on the image's pixel (2^(s+1) i, 2^(s+1) j).
STEM_STRIDE = 4


def stride_of(stage):
    """Image pixels between two neighbouring pixels of a stage's map."""
    return STEM_STRIDE * 2 ** (stage - 1)


@dataclasses.dataclass
class Network:
    """The layers of one InternImage.

    Attributes:
        stem: its stem.
        blocks: stage, counted from 1, to the list of its blocks.
        maps: stage to the layer whose output is the stage's map (its last block or a norm).
    """

    stem: InternImageStem
    blocks: dict
    maps: dict

    def check_stage(self, stage):
        if isinstance(stage, bool) or stage not in self.blocks:
            raise ValueError(
                f"`stage` must be one of the model's stages, {list(self.blocks)}. "
                f"Received: stage={stage!r}"
            )

    def check_stages(self, stages: int | Sequence[int]) -> tuple[int, ...]:
        """A tuple of stages from one or several."""
        stages = (stages,) if isinstance(stages, int) else tuple(stages)
        if not stages:
            raise ValueError("`stages` must name at least one stage. Received: stages=()")
        for stage in stages:
            self.check_stage(stage)
        return stages


def find(model):
    """The one InternImage in a model, which may be nested in others.

    Raises:
        ValueError: there is none, or more than one; the model has not been built.
    """
    if not isinstance(model, keras.Model) or not model.built:
        raise ValueError(
            "`model` must be a Keras model that has been built; calling it builds it. "
            f"Received: model={model!r}"
        )
    layers = {id(layer): layer for layer in model._flatten_layers()}.values()
    stems = [layer for layer in layers if isinstance(layer, InternImageStem)]
    if len(stems) != 1:
        raise ValueError(
            "`model` must contain exactly one InternImage; of several, give the one as a model of "
            f"its own. Received: model '{model.name}' with {len(stems)}"
        )
    owners = [
        layer
        for layer in layers
        if isinstance(layer, keras.Model) and any(part is stems[0] for part in layer.layers)
    ]
    # A feature extractor shares its layers with the model it was cut from.
    owner = max(owners, key=lambda model: len(model.layers))
    blocks, maps = {}, {}
    for layer in owner.layers:
        match = re.fullmatch(r"stage(\d+)_(.*)", layer.name)
        if match is None or match[2] == "downsample":
            continue
        stage = int(match[1])
        if isinstance(layer, InternImageBlock):
            blocks.setdefault(stage, []).append(layer)
        maps[stage] = layer
    return Network(stems[0], blocks, maps)


@contextlib.contextmanager
def replaced_calls(replacements):
    """While it lasts, `layer.call` is `replace(layer.call)`, for each pair `(layer, replace)`.

    Keras has no hooks on layers. The graph of a Functional model would give inner tensors, but not
    of a model nested in another, nor of a subclassed one; calls are made in all of them.
    """
    done = []
    try:
        for layer, replace in replacements:
            # Quantised layers are called by another name.
            name = "call" if layer.quantization_mode is None else "quantized_call"
            before = vars(layer).get(name)
            done.append((layer, name, before))
            # Past Keras' tracking of attributes: nothing of the layer's state changes.
            vars(layer)[name] = replace(getattr(layer, name))
        yield
    finally:
        for layer, name, before in reversed(done):
            if before is None:
                vars(layer).pop(name, None)
            else:
                vars(layer)[name] = before


def output_of(layer, inputs, outputs):
    """An observer that records a layer's output."""
    return outputs


def _recording(layer, observer, records):
    """A replacement which appends `observer(layer, inputs, outputs)` of each call to `records`."""

    def replace(call):
        def recording(inputs, *args, **kwargs):
            outputs = call(inputs, *args, **kwargs)
            records.append(observer(layer, inputs, outputs))
            return outputs

        return recording

    return (layer, replace)


def observe(model, network, x, observers):
    """Runs the model on images and records what some of its layers compute.

    Args:
        model: the model called.
        network: its `Network`.
        x: tensor `(N, H, W, 3)`.
        observers: pairs `(layer, observer)`; `observer(layer, inputs, outputs)` is called within
            the layer's call.

    Returns:
        `(outputs, records)`: the model's, and what each observer returned.

    Raises:
        ValueError: a layer is not called once, or the images do not reach the stem in their size.
    """
    records = [[] for _ in observers]
    sizes = []
    replacements = [_recording(network.stem, lambda _, x, __: tuple(x.shape[1:3]), sizes)]
    replacements += [
        _recording(layer, observer, own)
        for (layer, observer), own in zip(observers, records, strict=True)
    ]
    with replaced_calls(replacements):
        outputs = model(x, training=False)
    if sizes != [tuple(x.shape[1:3])]:
        raise ValueError(
            "`model` must call its InternImage once, on images of the size it is given: positions "
            f"are those of the image that the stem gets. Received: image {tuple(x.shape[1:3])}, "
            f"the stem got {sizes}"
        )
    if any(len(own) != 1 for own in records):
        raise ValueError(f"Each layer of '{model.name}' must be called once in a call of the model")
    return outputs, [own[0] for own in records]
