"""The published checkpoints of InternImage and FlashInternImage, one row each.

Sizes, hashes and revisions are those of the files at the hub; accuracies those of the official
model zoo: top-1 on ImageNet-1k's validation images at the row's resolution, mIoU on ADE20K's or
Cityscapes', average precision on COCO's of 2017.

Of the segmentation models' and detectors' files no hash is known here, and of some no size; of
FlashInternImage's neither. They are verified by what is known, and by their names and shapes when
they are loaded; the hash of the first file that arrived is printed and kept, and a later change of
the file noticed by it.
"""

import dataclasses
import os

from keras_internimage.variants import model_name

BASE_URL = "https://huggingface.co/OpenGVLab/{repository}/resolve"
# Names a mirror laid out as the hub is: <base>/<revision>/<name>.pth
BASE_URL_VARIABLE = "KERAS_INTERNIMAGE_WEIGHTS_URL"

IMAGENET_CLASSES = {"imagenet": 1000, "imagenet22k": 21841}
# Keywords for files of segmentation models: the data sets they were trained on.
SEGMENTATION_DATA = ("ade20k", "cityscapes")
# Of detectors.
DETECTION_DATA = ("coco",)
KEYWORDS = {
    "classification": tuple(IMAGENET_CLASSES),
    "segmentation": SEGMENTATION_DATA,
    "detection": DETECTION_DATA,
}


@dataclasses.dataclass(frozen=True)
class Published:
    """A published checkpoint.

    Attributes:
        name: the file's name without `.pth`.
        variant: key of `keras_internimage.variants.VARIANTS`.
        classes: width of the classifier.
        resolution: side in pixels of the images it was trained on; of a segmentation model or
            detector the shorter side that images were resized to for the published accuracy.
        stored_dtype: type of the file's weights, None where not known.
        bytes, sha256: of the file, None where not known.
        revision: commit of the hub's repository that holds it, or its branch.
        top1: accuracy on ImageNet-1k in percent, None for the 21841 classes.
        task: "classification", "segmentation" or "detection".
        data: what a model was trained on: "ade20k", "cityscapes", or "mapillary2cityscapes" where
            Mapillary Vistas came first; "coco" for detectors.
        miou: mean intersection over union in percent, at one scale.
        miou_multiscale: the same, averaged over six scales and flips.
        box_ap, mask_ap: average precision in percent, over overlaps from 0.5 to 0.95.
        repository: of the hub, in which the file is.
    """

    name: str
    variant: str
    classes: int
    resolution: int
    stored_dtype: str | None
    bytes: int | None
    sha256: str | None
    revision: str
    top1: float | None = None
    task: str = "classification"
    data: str = "imagenet"
    miou: float | None = None
    miou_multiscale: float | None = None
    box_ap: float | None = None
    mask_ap: float | None = None
    repository: str = "InternImage"

    @property
    def weights(self) -> str:
        """What the argument `weights` of its model's function is."""
        return self.name

    @property
    def file(self) -> str:
        return f"{self.name}.pth"

    @property
    def url(self) -> str:
        base = os.environ.get(BASE_URL_VARIABLE) or BASE_URL.format(repository=self.repository)
        return f"{base.rstrip('/')}/{self.revision}/{self.file}"


# Of FlashInternImage: the hub's repository, and that the type of the numbers is not known.
_FLASH = {"repository": "DCNv4", "stored_dtype": None}


def _flash(name, variant, classes, resolution, top1=None):
    return Published(
        f"flash_intern_image_{name}",
        variant,
        classes,
        resolution,
        bytes=None,
        sha256=None,
        revision="main",
        top1=top1,
        **_FLASH,
    )


def _upernet(
    variant, crop, data, resolution, size, miou, miou_multiscale, stored_dtype="float16", **options
):
    return Published(
        f"upernet_{model_name(variant)}_{crop}_160k_{data}",
        variant,
        150,
        resolution,
        stored_dtype,
        size,
        None,
        "main",
        task="segmentation",
        data=data,
        miou=miou,
        miou_multiscale=miou_multiscale,
        **options,
    )


def _detector(head, variant, schedule, box_ap, mask_ap, stored_dtype="float16", **options):
    return Published(
        f"{head}_{model_name(variant)}_fpn_{schedule}_coco",
        variant,
        80,
        800,
        stored_dtype,
        None,
        None,
        "main",
        task="detection",
        data="coco",
        box_ap=box_ap,
        mask_ap=mask_ap,
        **options,
    )


# The heads for Cityscapes have 150 outputs, too, of which the first 19 mean something.
_CITYSCAPES = ("512x1024", "cityscapes", 1024, None)
_MAPILLARY = ("512x1024", "mapillary2cityscapes", 1024, None)

PUBLISHED = (
    Published(
        "internimage_t_1k_224",
        "T",
        1000,
        224,
        "float32",
        119874895,
        "84bc50c47ebf7a56f19da5d7fddba9b862cd5abe0597e40c6fb218844c5cbbc2",
        "51ba159a2c0a1340444f3bb51d1f3253dc034606",
        83.5,
    ),
    Published(
        "internimage_s_1k_224",
        "S",
        1000,
        224,
        "float32",
        200556963,
        "e0335b0829dbe766caea8be583c3c83208d937dadff9eb1e1d5b773e04720bbd",
        "993fff45a1e29bdc4b1f8eccafab75169821a5fe",
        84.2,
    ),
    Published(
        "internimage_b_1k_224",
        "B",
        1000,
        224,
        "float32",
        390086947,
        "e46fc76173b0a8463c6fc4f7260d355b5dc9cb50dfd0cb4382dcdb7935c083c4",
        "5e51abcdce26a78ed8dbec276101da7ef9650e9f",
        84.9,
    ),
    Published(
        "internimage_l_22kto1k_384",
        "L",
        1000,
        384,
        "float32",
        893612467,
        "a7d0ce15d1b7c3e7b18ad33dd4d2fa268756c265805714fa42ae5e4ada39cd41",
        "9231d770e185635ce74ae6e3c2b9c81bd17d87b5",
        87.7,
    ),
    Published(
        "internimage_xl_22kto1k_384",
        "XL",
        1000,
        384,
        "float32",
        1339569691,
        "ab4f9724473e77ff9c27407570ec72a3c0a71cab65e19782275c338dc5cdaea1",
        "74e5c7b4914206a057a7878d940db808bbe23cf6",
        88.0,
    ),
    Published(
        "internimage_h_22kto1k_640",
        "H",
        1000,
        640,
        "float16",
        2179694412,
        "0421915e3349cb32df7cad27d501d61ba5da7db127ceed11637dd23af0a08753",
        "28cbc61c0d971dd3e8d43dadac181bdf65e0398d",
        89.6,
    ),
    Published(
        "internimage_g_22kto1k_512",
        "G",
        1000,
        512,
        "float16",
        6153157862,
        "ca49f66dec4c154ae54b67cc7b13b05a645b8460bcf5c5d9382c6cb7a5b016e3",
        "28cbc61c0d971dd3e8d43dadac181bdf65e0398d",
        90.1,
    ),
    Published(
        "internimage_l_22k_192to384",
        "L",
        21841,
        384,
        "float32",
        1053754739,
        "4d642f892758744c70d19990fa9439d92823d5d45fe8e1c3351480596da6e93d",
        "fce2a1aa1326d8812c2d30eba8e2a255e00ad01d",
    ),
    Published(
        "internimage_xl_22k_192to384",
        "XL",
        21841,
        384,
        "float32",
        1531723739,
        "a27d497c6aba1ec396e65b5fa85d91d83cc3a0bec35aa6a71e8dc143311391a1",
        "74e5c7b4914206a057a7878d940db808bbe23cf6",
    ),
    Published(
        "internimage_h_jointto22k_384",
        "H",
        21841,
        384,
        "float16",
        2250962252,
        "c758d8ebcaa4ac431284ca8d12eb667587633b8f53b6c33e6cc12d3ed6140218",
        "eb93eeb612be339eb1f99b56c747ce777015aae5",
    ),
    Published(
        "internimage_g_pretrainto22k_384",
        "G",
        21841,
        384,
        "float16",
        6224425966,
        "1501730de8ff7b027245a757e072eefe17b4719c5b3c519e57b03173d45edf2f",
        "2a176f5fc43372af2d94b097140e35e08c5132bc",
    ),
    #      name, variant, classes, resolution, top-1
    _flash("t_1k_224", "FlashT", 1000, 224, 83.6),
    _flash("s_1k_224", "FlashS", 1000, 224, 84.4),
    _flash("b_1k_224", "FlashB", 1000, 224, 84.9),
    # The authors' table names another file than this one, which their configuration files name.
    _flash("l_22kto1k_384", "FlashL", 1000, 384, 88.1),
    _flash("l_22k_384", "FlashL", 21841, 384),
    #        variant, crop, data, resolution, bytes, mIoU at one scale and at several with flips
    _upernet("T", "512", "ade20k", 512, 118421699, 47.9, 48.1),
    _upernet("S", "512", "ade20k", 512, 160017103, 50.1, 50.9),
    _upernet("B", "512", "ade20k", 512, 257057487, 50.8, 51.3),
    _upernet("L", "640", "ade20k", 640, 511514591, 53.9, 54.1),
    _upernet("XL", "640", "ade20k", 640, 735793991, 55.0, 55.3),
    _upernet("H", "896", "ade20k", 896, None, 59.9, 60.3),
    _upernet("T", *_CITYSCAPES, 82.58, 83.40),
    _upernet("S", *_CITYSCAPES, 82.74, 83.45),
    _upernet("B", *_CITYSCAPES, 83.18, 83.97),
    _upernet("L", *_CITYSCAPES, 83.68, 84.41),
    _upernet("XL", *_CITYSCAPES, 83.62, 84.28),
    _upernet("L", *_MAPILLARY, 85.94, 86.22),
    _upernet("XL", *_MAPILLARY, 86.20, 86.42),
    _upernet("FlashT", "512", "ade20k", 512, None, 49.3, 50.3, **_FLASH),
    _upernet("FlashS", "512", "ade20k", 512, None, 50.6, 51.6, **_FLASH),
    _upernet("FlashB", "512", "ade20k", 512, None, 52.0, 52.6, **_FLASH),
    _upernet("FlashL", "640", "ade20k", 640, None, 55.6, 56.0, **_FLASH),
    #         head, variant, schedule, box AP, mask AP; the longer schedule first, for "coco"
    _detector("mask_rcnn", "T", "3x", 49.1, 43.7),
    _detector("mask_rcnn", "T", "1x", 47.2, 42.5),
    _detector("mask_rcnn", "S", "3x", 49.7, 44.5),
    _detector("mask_rcnn", "S", "1x", 47.8, 43.3),
    _detector("mask_rcnn", "B", "3x", 50.3, 44.8),
    _detector("mask_rcnn", "B", "1x", 48.8, 44.0),
    _detector("cascade", "L", "3x", 56.1, 48.5),
    _detector("cascade", "L", "1x", 54.9, 47.7),
    _detector("cascade", "XL", "3x", 56.2, 48.8),
    _detector("cascade", "XL", "1x", 55.3, 48.1),
    _detector("mask_rcnn", "FlashT", "3x", 49.5, 44.0, **_FLASH),
    _detector("mask_rcnn", "FlashT", "1x", 48.0, 43.1, **_FLASH),
    _detector("mask_rcnn", "FlashS", "3x", 50.5, 44.9, **_FLASH),
    _detector("mask_rcnn", "FlashS", "1x", 49.2, 44.0, **_FLASH),
    _detector("mask_rcnn", "FlashB", "3x", 50.6, 45.4, **_FLASH),
    _detector("mask_rcnn", "FlashB", "1x", 50.1, 44.5, **_FLASH),
    _detector("cascade", "FlashL", "3x", 56.7, 48.9, **_FLASH),
    _detector("cascade", "FlashL", "1x", 55.6, 48.2, **_FLASH),
)


def names(task: str | None = None) -> tuple[str, ...]:
    """Names of the published checkpoints, of all or of those for one task."""
    return tuple(row.name for row in PUBLISHED if task in (None, row.task))


def find(name: str) -> Published:
    """The published checkpoint called `name`.

    Raises:
        ValueError: there is none.
    """
    for row in PUBLISHED:
        if row.name == name:
            return row
    raise ValueError(
        f"The name must be one of the published checkpoints ({', '.join(names())}). "
        f"Received: name={name!r}"
    )


def for_variant(variant: str, weights: str = "imagenet") -> Published:
    """The checkpoint of a variant that a keyword stands for.

    Args:
        variant: key of `keras_internimage.variants.VARIANTS`.
        weights: `"imagenet"` (1000 classes) or `"imagenet22k"` (21841 classes); `"ade20k"` or
            `"cityscapes"` for segmentation; `"coco"` for detection, of the longer schedule.

    Raises:
        ValueError: no such checkpoint was published; the message lists those that were.
    """
    task = keyword_task(weights) or "classification"
    rows = [row for row in PUBLISHED if (row.variant, row.task) == (variant, task)]
    for row in rows:
        trained = row.classes if task == "classification" else row.data
        if trained == IMAGENET_CLASSES.get(weights, weights):
            return row
    available = ", ".join(row.name for row in rows) or "none"
    raise ValueError(
        f"`weights` must be published for the variant (for {variant!r}: {available}). "
        f"Received: weights={weights!r}"
    )


def keyword_task(weights: str | os.PathLike | None) -> str | None:
    """The task of the models that a keyword stands for, None for what is no keyword."""
    return next((task for task, known in KEYWORDS.items() if weights in known), None)


def by_file(path: str | os.PathLike) -> Published | None:
    """The published checkpoint whose size and SHA-256 a file has, or None.

    Where no SHA-256 is known, a file of the size may be another one: None.
    """
    size = os.path.getsize(path)
    candidates = [row for row in PUBLISHED if row.bytes == size and row.sha256 is not None]
    if not candidates:
        return None
    digest = sha256(path)
    return next((row for row in candidates if row.sha256 == digest), None)


def by_size(path: str | os.PathLike) -> list[Published]:
    """The published checkpoints without a known SHA-256 whose size a file has."""
    size = os.path.getsize(path)
    return [row for row in PUBLISHED if row.sha256 is None and row.bytes == size]


def sha256(path: str | os.PathLike) -> str:
    """The SHA-256 of a file in hexadecimal digits."""
    import hashlib

    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
