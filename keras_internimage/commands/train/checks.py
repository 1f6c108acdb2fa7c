"""What can be refused before any image is read and any model is built."""

import difflib
import os
import pathlib

from keras_internimage.commands.train import device as devices
from keras_internimage.commands.train import disk, output, settings, tasks
from keras_internimage.variants import STAGES, VARIANTS


def ranges(options):
    """Raise unless the numbers given on the command line are in their ranges.

    Raises:
        ValueError: one is not.
    """
    if options.freeze is not None and options.freeze > STAGES:
        raise ValueError(
            f"--freeze must be at most {STAGES}, the number of stages. "
            f"Received: --freeze {options.freeze}"
        )
    at_least = {
        "resolution": 1,
        "channels": 1,
        "epochs": 1,
        "batch_size": 1,
        "accumulation": 1,
        "early_stopping": 0,
        "freeze": 0,
        "seed": 0,
        "threads": 1,
        "decoder_channels": 1,
    }
    for name, least in at_least.items():
        value = getattr(options, name)
        if value is not None and value < least:
            option = name.replace("_", "-")
            raise ValueError(f"--{option} must be at least {least}. Received: --{option} {value}")
    for name, low_ok, high in (
        ("learning_rate", False, float("inf")),
        ("drop_path", True, 1),
        ("ema", True, 1),
        ("validation_split", False, 1),
    ):
        value = getattr(options, name)
        if value is not None and not (0 <= value < high and (low_ok or value > 0)):
            option = name.replace("_", "-")
            least = "at least" if low_ok else "more than"
            most = f" and less than {high}" if high == 1 else ""
            raise ValueError(f"--{option} must be {least} 0{most}. Received: --{option} {value}")
    if options.class_weights == options.sampling == "balanced":
        raise ValueError(
            "--class-weights and --sampling must not both be balanced: either makes each class "
            "count the same. Received: --class-weights balanced --sampling balanced"
        )


def new_training(options, folder):
    """Raise unless a training can be started, as far as that is known without the images.

    Args:
        options: of the command line.
        folder: the output folder.

    Raises:
        ValueError: options do not fit each other, or name what does not exist.
        DiskFull: there is no room for the training's files.
    """
    from keras_internimage.data.layout import check_given
    from keras_internimage.models import arguments
    from keras_internimage.models.config import InternImageConfig

    check_given(options.data)
    task = tasks.of(options)
    of_task(task, options)
    variant, channels, depths, groups = settings.of_network(options)
    InternImageConfig(channels, depths, groups)  # which checks them
    if options.resolution is not None:
        shape = (options.resolution, options.resolution, 3)
        clip_head = (
            task is tasks.CLASSIFICATION
            and variant != settings.CUSTOM
            and VARIANTS[variant].config().get("use_clip_projector")
        )
        arguments.image_shape(shape, options.resolution, True, None, clip_head)
    if task is tasks.DETECTION:
        from keras_internimage.data.coco_metrics import check_installed

        check_installed()
    start = options.weights or settings.default_weights(task, variant, options.recipe)[0]
    path = weights(start, variant, task)
    settings.recipe_of(options.recipe or settings.default_recipe(task, start)[0], variant)
    decoder = options.decoder_channels or task.decoder
    if path is not None:
        operator = settings.operator(variant)
        family = tasks.detector(variant) if task is tasks.DETECTION else _FAMILIES[task]
        weights_file(path, task, channels, depths, groups, decoder, operator, family)
    output.check_writable(folder)
    # The estimate of the parameters is up to a tenth too high, and the optimizer has two moments of
    # each one that is trained. `Run.begin` knows the sizes exactly.
    heads = task.box_heads(variant)
    model = 4 * devices.parameters(channels, depths, groups, decoder, heads) / 1.1
    state = model if options.freeze else 3 * model
    disk.check(folder, {output.LAST: state, output.BEST: state, output.MODEL: model})


def of_task(task, options):
    """Raise unless the options are for the task.

    Raises:
        ValueError: one is for the other task.
    """
    wrong = [
        name
        for name in tasks.PARTIAL
        if name not in task.options and getattr(options, name) not in (None, "none")
    ]
    known = settings.recipe_names(task)
    if options.recipe is not None and options.recipe not in known:
        raise ValueError(
            f"--recipe must be one of {', '.join(known)} for {task.name}. "
            f"Received: --recipe {options.recipe} for {options.data}"
        )
    if wrong:
        other = " and ".join(x.name for x in tasks.TASKS.values() if wrong[0] in x.options)
        option = "--" + wrong[0].replace("_", "-")
        value = getattr(options, wrong[0])
        raise ValueError(
            f"{option} is for {other}. "
            f"Received: {option}{'' if value is True else f' {value}'} for {options.data}, "
            f"where the task is {task.name}"
        )
    if options.variant is not None and options.variant not in task.variants:
        raise ValueError(
            f"--variant must be one of {', '.join(task.variants)} for {task.name}. "
            f"Received: --variant {options.variant}"
        )


def weights(name, variant, task=tasks.CLASSIFICATION):
    """The path of weights that are a file; None where they are published, or none.

    Args:
        name: as given by `--weights`.
        variant: key of `VARIANTS`, or `settings.CUSTOM`.
        task: a `Task`.

    Raises:
        ValueError: they are neither.
    """
    from keras_internimage.checkpoints import published

    if name == "none":
        return None
    if name in published.names():
        its = published.find(name).variant
        if variant not in (its, settings.CUSTOM):
            raise ValueError(
                "--weights must be of the variant that is trained. "
                f"Received: --weights {name}, of {its}, for {variant}"
            )
        if task is tasks.CLASSIFICATION and name not in published.names(task.name):
            raise ValueError(
                "--weights must be of a classifier, for classification. "
                f"Received: --weights {name}, for {published.find(name).task}"
            )
        return None
    if name in task.weights.split(", "):
        if variant == settings.CUSTOM:
            raise ValueError(
                "--weights must be a name, a path or none for a network of no published size. "
                f"Received: --weights {name}"
            )
        published.for_variant(variant, name)
        return None
    path = pathlib.Path(name)
    if path.exists() and os.access(path, os.R_OK):
        return path
    reason = "may not be read (permission denied)" if path.exists() else "no such file"
    similar = difflib.get_close_matches(name, published.names(), 1)
    hint = f"; did you mean {similar[0]}?" if similar and not path.exists() else ""
    raise ValueError(
        f"--weights must be {task.weights}, the name of a published checkpoint, the path of "
        f"a file, or none. Received: --weights {name} ({reason}{hint})"
    )


# The family whose whole weights a task takes, of others the backbone; detectors' is the variant's.
_FAMILIES = {tasks.CLASSIFICATION: None, tasks.SEGMENTATION: "upernet"}


def weights_file(path, task, channels, depths, groups, decoder, operator="DCNv3", family=None):
    """Raise unless a file holds weights of the network, as far as the shapes in it tell.

    Args:
        path: of the file.
        task: a `Task`.
        channels, depths, groups: of the network.
        decoder: channels of UperNet, or of a detector's pyramid.
        operator: "DCNv3" or "DCNv4".
        family: whose whole weights are taken.

    Raises:
        ValueError: it is no file of weights, or one of another network.
    """
    from keras_internimage.checkpoints import infer_config, keras_files, open_checkpoint, read
    from keras_internimage.checkpoints.infer import describe

    dense = task is not tasks.CLASSIFICATION
    containers = read.of_backbone(operator) if dense else read.CONTAINERS

    try:
        if path.name.endswith(keras_files.SUFFIXES):
            shapes = keras_files.read(path).official_shapes()
        else:
            shapes = open_checkpoint(path, containers=containers).shapes()
        found = infer_config(shapes)
    except ValueError as error:
        raise ValueError(f"--weights {path}: {error}") from error
    if task is tasks.CLASSIFICATION and found.family != "classifier":
        raise ValueError(
            "--weights must be of a classifier, for classification. "
            f"Received: --weights {path}, {describe(found)}"
        )
    wanted = {"channels": channels, "depths": tuple(depths), "groups": tuple(groups)}
    its = {name: found.config[name] for name in wanted}
    wanted["operator"], its["operator"] = operator, found.config["core_op"]
    if found.family == family and "channels" in found.head:
        name = "pyramid channels" if task is tasks.DETECTION else "decoder channels"
        wanted[name], its[name] = decoder, found.head["channels"]
    if its != wanted:
        network = ", ".join(f"{name} {settings.word(value)}" for name, value in wanted.items())
        there = ", ".join(f"{name} {settings.word(value)}" for name, value in its.items())
        raise ValueError(
            f"--weights must be of the network that is trained, of {network}. "
            f"Received: --weights {path}, of {there}"
        )
