"""What a training runs on, and how many images fit on it."""

import dataclasses
import os
import shutil
import subprocess

# Bytes that an image takes while training, over the sum over all blocks of their H * W * C values
# in the type of the activations: 17.4 was measured for InternImage-T at 224, in float32 on the CPU.
ACTIVATIONS = 20
# Bytes of a parameter: weight, gradient, two moments of Adam, and its moving average.
BYTES_PER_PARAMETER = 20
# What of a device's memory is planned with. The rest is for the framework and for fragments.
USABLE = 0.8
LARGEST_BATCH = 64
CPU_BATCH = 8
# Of segmentation, whose crops are five times as large: as many as the official program's on a GPU.
CPU_CROPS = 2
# Of detection, whose images are four times as large again.
CPU_DETECTION = 1
# How much longer the other side of images is in detection.
RATIO = 4 / 3
# Maps of UperNet's decoder, or of a detector's pyramid and regions, at a quarter of the image, each
# kept before and after its norm, and arrays of an image's size with a number for each class:
# logits, probabilities and gradients. All are estimates.
DECODER_MAPS, LOGITS = 24, 4
# Taken where no way is known to ask for the memory.
ASSUMED_BYTES = 8 << 30


@dataclasses.dataclass(frozen=True)
class Device:
    """The device that Keras computes on.

    Attributes:
        kind: "cpu", "gpu", "tpu" or "mps".
        name: to be shown.
        memory: bytes, None where unknown or where it does not matter (CPU).
        bfloat16: whether it is fast with this type.
        count: how many of them there are; one is used.
    """

    kind: str
    name: str
    memory: int | None = None
    bfloat16: bool = False
    count: int = 1


def find():
    """The `Device` that Keras' backend computes on."""
    import keras

    return {"torch": _torch, "jax": _jax, "tensorflow": _tensorflow}[keras.config.backend()]()


def _cpu():
    return Device("cpu", f"CPU, {os.cpu_count()} threads")


def _torch():
    import torch

    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        return Device(
            "gpu",
            properties.name,
            properties.total_memory,
            properties.major >= 8,
            torch.cuda.device_count(),
        )
    if torch.backends.mps.is_available():
        return Device("mps", "Apple GPU")
    return _cpu()


def _jax():
    import jax

    devices = jax.local_devices()
    first = devices[0]
    if first.platform == "cpu":
        return _cpu()
    memory = (first.memory_stats() or {}).get("bytes_limit")
    if first.platform == "tpu":
        return Device("tpu", first.device_kind, memory, True, len(devices))
    capability = str(getattr(first, "compute_capability", "0"))
    modern = capability.partition(".")[0].isdigit() and int(capability.partition(".")[0]) >= 8
    return Device("gpu", first.device_kind, memory, modern, len(devices))


def _tensorflow():
    import tensorflow as tf

    tpus = tf.config.list_logical_devices("TPU")
    if tpus:
        return Device("tpu", "TPU", None, True, len(tpus))
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        return _cpu()
    details = tf.config.experimental.get_device_details(gpus[0])
    modern = (details.get("compute_capability") or (0,))[0] >= 8
    return Device("gpu", details.get("device_name", "GPU"), _by_nvidia_smi(), modern, len(gpus))


def _by_nvidia_smi():
    """Bytes of the first GPU, which TensorFlow does not tell; None where the program is missing."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0]
    command = [program, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    command += ["-i", visible] if visible else []
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=30)
        return int(result.stdout.splitlines()[0]) << 20
    except (OSError, ValueError, IndexError, subprocess.TimeoutExpired):
        return None


def precision(device):
    """The data type policy for a device, and why."""
    if device.kind == "tpu" or (device.kind == "gpu" and device.bfloat16):
        return "mixed_bfloat16", f"{device.name} is fast with bfloat16"
    if device.kind == "gpu":
        return "mixed_float16", f"{device.name} is fast with float16, not with bfloat16"
    return "float32", "half types are no faster on it"


def bytes_per_image(channels, depths, resolution, policy, decoder=0, classes=0):
    """An estimate of the memory that each image of a batch takes while training.

    With a `decoder` of so many channels, its maps and the scores of so many classes count, too.
    """
    values = sum(
        depth * channels * 2**stage * (resolution / (4 * 2**stage)) ** 2
        for stage, depth in enumerate(depths)
    )
    maps = ACTIVATIONS * values + DECODER_MAPS * decoder * (resolution / 4) ** 2
    scores = LOGITS * classes * resolution**2 if decoder else 0
    return maps * (2 if policy.startswith("mixed") else 4) + 4 * scores


def parameters(channels, depths, groups, decoder=0, box_heads=0):
    """About how many parameters a network has: those of its products and down-samplings.

    With a `decoder` of so many channels, its convolutions of 3 x 3 pixels count, too: those of
    UperNet, or of Mask R-CNN with one of the `box_heads`, or of its cascade with several.
    """
    total = 9 * decoder * (8 * channels + 11 * decoder) if decoder else 0
    if box_heads:
        # Pyramid and proposals; of each head a mask head's convolutions, and the hidden layers.
        each = 40 * decoder**2 + 1024 * 49 * decoder
        each += 1024**2 if box_heads == 1 else 36 * decoder**2
        total = 50 * decoder**2 + box_heads * each
    for stage, (depth, group_count) in enumerate(zip(depths, groups, strict=True)):
        width = channels * 2**stage
        # Perceptron 8 C^2, input and output of DCNv3 2 C^2, offsets and masks 27 G C.
        total += depth * width * (10 * width + 27 * group_count)
        total += 18 * width**2 * (stage < len(depths) - 1)
    return total


def batch_size(
    device,
    images,
    channels,
    depths,
    groups,
    resolution,
    policy,
    decoder=0,
    classes=0,
    box_heads=0,
):
    """A batch size for a device, a power of two, and why.

    Args:
        device: `Device`.
        images: how many images there are to train on; a batch holds no more.
        channels, depths, groups, resolution, policy: of the model.
        decoder, classes: of a model of segmentation or detection, else 0.
        box_heads: of a model of detection, else 0.
    """
    if box_heads:  # no scores for each pixel, but images that are longer
        resolution, classes = resolution * RATIO**0.5, 0
    if device.kind in ("cpu", "mps"):
        most = CPU_DETECTION if box_heads else CPU_CROPS if decoder else CPU_BATCH
        why = f"for {device.name.partition(',')[0]}"
    else:
        memory = device.memory or ASSUMED_BYTES
        known = f"{memory / 2**30:.0f} GiB" + ("" if device.memory else ", which is a guess")
        weights = parameters(channels, depths, groups, decoder, box_heads)
        left = USABLE * memory - BYTES_PER_PARAMETER * weights
        fitting = left / bytes_per_image(channels, depths, resolution, policy, decoder, classes)
        most, why = max(1, min(LARGEST_BATCH, int(fitting))), f"by memory ({known})"
    most = 1 << (most.bit_length() - 1)
    if images < most:
        return 1 << (images.bit_length() - 1), f"there are {images} images"
    return most, why
