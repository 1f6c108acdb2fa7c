"""Which learning rate and weight decay each variable has, and freezing: what depends on depth."""

import re
from collections.abc import Iterable

import keras

from keras_internimage.layers import InternImageBlock, InternImageDownsample, InternImageStem
from keras_internimage.training.recipe_types import SCHEMES

STAGES = 4
_NAME = re.compile(r"stage(\d+)_(block|post_norm|norm|downsample)(\d*)$")


def networks(model: keras.Model) -> list[keras.Model]:
    """The models within `model`, itself included, that have an InternImage's layers directly.

    Two of them may share layers, as a backbone and `keras.Model(backbone.inputs,
    backbone.pyramid_outputs)` do.
    """
    models = [m for m in model._flatten_layers() if isinstance(m, keras.Model)]
    return [m for m in models if any(isinstance(layer, InternImageStem) for layer in m.layers)]


def places(network: keras.Model) -> dict[keras.layers.Layer, tuple[int, str, int]]:
    """Where the layers of an InternImage stand: dict of layer to (stage, kind, number).

    Stage 0 is the stem, 1 to 4 are the stages; kind is "stem", "block", "post_norm", "norm" or
    "downsample"; number counts blocks and post norms of a stage from 1. Heads are not in it.
    """
    found = {}
    for layer in network.layers:
        if isinstance(layer, InternImageStem):
            found[layer] = (0, "stem", 0)
            continue
        match = _NAME.match(layer.name)
        own = (InternImageBlock, InternImageDownsample, keras.layers.LayerNormalization)
        if match and isinstance(layer, own):
            stage, kind, number = match.groups()
            found[layer] = (int(stage), kind, int(number or 0))
    return found


def learning_rate_multipliers(
    model: keras.Model, decay: float, scheme: str = "classification"
) -> dict[str, float]:
    """The factor of each trainable variable's learning rate under layer-wise decay.

    With n blocks in all, block b (from 0) has

    ```
    classification   decay^(n - 1 - b)        dense   decay^(n - b)
    ```

    and the rest, by either scheme: a stage's norm and down-sampling have the factor of the next
    stage's first block; those of the last stage, the head and everything outside the InternImage
    have 1. They differ in two more places. The stem has the first block's factor in
    "classification", once more `decay` in "dense". The norms after blocks of the third stage (H and
    G) have 1 in "classification"; in "dense" the k-th has the factor of the k-th block of that
    stage, because that is how the official program reads its name.

    Args:
        model: a built model that is, or contains, an InternImage.
        decay: factor from each block to the one before, in (0, 1].
        scheme: "classification" or "dense".

    Returns:
        A dict of each trainable variable's key (`variable_keys`, mostly its path) to a float.

    Raises:
        ValueError: `decay` or `scheme` is not as said, or `decay` is not 1 and `model` contains no
            InternImage.
    """
    if not 0 < decay <= 1:
        raise ValueError(f"`decay` must be above 0 and at most 1. Received: decay={decay}")
    if scheme not in SCHEMES:
        raise ValueError(
            f"`scheme` must be one of {', '.join(SCHEMES)}. Received: scheme={scheme!r}"
        )
    found = networks(model)
    if decay != 1 and not found:
        raise ValueError(
            "Layer-wise learning-rate decay needs an InternImage: `model` must be one, or contain "
            f"one. Received: model={model.name!r}, decay={decay}"
        )
    factors: dict[int, float] = {}
    for network in found:
        for layer, place in places(network).items():
            factor = decay ** _distance(network, place, scheme)
            factors.update((id(variable), factor) for variable in layer.variables)
    return _by_key(model, lambda variable: factors.get(id(variable), 1.0))


def _distance(network, place, scheme):
    """The exponent of the decay, 0 for the last layers."""
    stage, kind, number = place
    stages = [s for s, k, _ in places(network).values() if k == "block"]
    total = len(stages)
    depth = total if scheme == "dense" else total - 1  # exponent of the first block
    before = sum(s < stage for s in stages)
    through = sum(s <= stage for s in stages)
    if kind == "stem":
        return depth + 1 if scheme == "dense" else depth
    if kind == "block":
        return depth - (before + number - 1)
    if kind == "post_norm":
        return depth - (before + number - 1) if scheme == "dense" else 0
    # Norm and down-sampling belong to what follows them; after the last block nothing does.
    return max(0, depth - through) if through < total else 0


def without_weight_decay(model: keras.Model) -> list[str]:
    """Keys of the trainable variables that no weight decay is applied to.

    These are variables of at most one dimension (biases, norms, the residual branches' gamma) and
    those whose name is or ends with "bias".
    """
    excluded = _by_key(
        model, lambda v: len(v.shape) <= 1 or v.name == "bias" or v.name.endswith("_bias")
    )
    return [key for key, out in excluded.items() if out]


def variable_keys(variables: Iterable[keras.Variable]) -> list[str]:
    """A name for each variable that is its alone and the same after saving and loading.

    This is its path; where several have the same path, as a backbone's and a user's layer of the
    same name, the second is "path#2".
    """
    seen: dict[str, int] = {}
    keys = []
    for variable in variables:
        count = seen[variable.path] = seen.get(variable.path, 0) + 1
        keys.append(variable.path if count == 1 else f"{variable.path}#{count}")
    return keys


def _by_key(model, value):
    variables = model.trainable_variables
    if not variables:
        raise ValueError(
            "`model` must be built and have trainable variables. "
            f"Received: model={model.name!r}, which has none"
        )
    return dict(zip(variable_keys(variables), map(value, variables), strict=True))


def freeze(model: keras.Model, stages: int) -> keras.Model:
    """Makes the stem and the first stages of an InternImage untrainable, the others trainable.

    A stage is its blocks, its norms and the down-sampling after it, so that with `stages=n` the
    n-th feature map does not change. The stem is frozen with the first stage: Keras' users expect
    everything below a frozen stage to stay as it is. (The official `frozen_stages` of the detection
    backbones leaves the stem trainable.) Heads are left as they are.

    Calling it again with fewer stages makes the rest trainable again, for gradual unfreezing. Keras
    reads what is trainable in `compile`: compile after it. Stochastic depth stays on in frozen
    blocks while training; build the model with `drop_path_rate=0` to have it off.

    Args:
        model: a classifier, an `InternImageBackbone`, or a model that contains one or more.
        stages: 0 (nothing) to 4 (everything but the head).

    Returns:
        `model`, changed in place.

    Raises:
        ValueError: `stages` is not an int from 0 to 4, or there is no InternImage in `model`.
    """
    if isinstance(stages, bool) or not isinstance(stages, int) or not 0 <= stages <= STAGES:
        raise ValueError(f"`stages` must be an int from 0 to {STAGES}. Received: stages={stages!r}")
    found = networks(model)
    if not found:
        raise ValueError(
            f"`model` must be an InternImage, or contain one. Received: model={model.name!r}"
        )
    for network in found:
        for layer, (stage, _, _) in places(network).items():
            layer.trainable = stages < max(1, stage)
    return model
