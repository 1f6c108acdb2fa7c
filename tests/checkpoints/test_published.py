import math

import pytest
from deterministic import model_shapes

from keras_internimage.checkpoints import published
from keras_internimage.models import VARIANTS
from keras_internimage.variants import model_name

pytestmark = pytest.mark.any_backend


CLASSIFIERS = [row for row in published.PUBLISHED if row.task == "classification"]
SEGMENTERS = [row for row in published.PUBLISHED if row.task == "segmentation"]
DETECTORS = [row for row in published.PUBLISHED if row.task == "detection"]


# Of which files sizes and hashes are known; FlashInternImage's are not.
KNOWN = [row for row in CLASSIFIERS if row.repository == "InternImage"]
FLASH = [row for row in published.PUBLISHED if row.repository == "DCNv4"]


def test_flash_internimage():
    assert [row.variant for row in FLASH] == [
        row.variant for row in published.PUBLISHED if row.variant.startswith("Flash")
    ]
    for row in FLASH:
        assert (row.bytes, row.sha256, row.revision, row.stored_dtype) == (None, None, "main", None)
        assert "flash_intern" in row.name and len(row.name) < 50
        url = f"https://huggingface.co/OpenGVLab/DCNv4/resolve/main/{row.name}.pth"
        assert row.url == url
    # The hub's name, not that of the authors' table.
    assert published.for_variant("FlashL").name == "flash_intern_image_l_22kto1k_384"
    assert published.for_variant("FlashL", "imagenet22k").name == "flash_intern_image_l_22k_384"
    names = {row.name: (row.miou, row.miou_multiscale) for row in FLASH if row.miou}
    assert names == {
        "upernet_flash_internimage_t_512_160k_ade20k": (49.3, 50.3),
        "upernet_flash_internimage_s_512_160k_ade20k": (50.6, 51.6),
        "upernet_flash_internimage_b_512_160k_ade20k": (52.0, 52.6),
        "upernet_flash_internimage_l_640_160k_ade20k": (55.6, 56.0),
    }
    detectors = {row.name: (row.box_ap, row.mask_ap) for row in FLASH if row.box_ap}
    assert detectors == {
        "mask_rcnn_flash_internimage_t_fpn_1x_coco": (48.0, 43.1),
        "mask_rcnn_flash_internimage_t_fpn_3x_coco": (49.5, 44.0),
        "mask_rcnn_flash_internimage_s_fpn_1x_coco": (49.2, 44.0),
        "mask_rcnn_flash_internimage_s_fpn_3x_coco": (50.5, 44.9),
        "mask_rcnn_flash_internimage_b_fpn_1x_coco": (50.1, 44.5),
        "mask_rcnn_flash_internimage_b_fpn_3x_coco": (50.6, 45.4),
        "cascade_flash_internimage_l_fpn_1x_coco": (55.6, 48.2),
        "cascade_flash_internimage_l_fpn_3x_coco": (56.7, 48.9),
    }


def test_table_is_well_formed():
    assert len(KNOWN) == 11
    for column in ("name", "sha256", "bytes"):
        assert len({getattr(row, column) for row in KNOWN}) == 11
    for row in KNOWN:
        assert len(row.sha256) == 64 and int(row.sha256, 16)
        assert len(row.revision) == 40 and int(row.revision, 16)
        assert row.classes in (1000, 21841)
        assert (row.top1 is None) == (row.classes == 21841)


def test_segmentation_models():
    assert len(SEGMENTERS) == 17 == len({row.name for row in SEGMENTERS})
    tasks = ("classification", "segmentation", "detection")
    assert published.names() == sum((published.names(task) for task in tasks), ())
    for row in SEGMENTERS:
        # Nothing is known of their hashes, and nothing claimed.
        assert (row.sha256, row.revision, row.top1) == (None, "main", None)
        assert 40 < row.miou < row.miou_multiscale < 90
        assert row.url.endswith(f"/main/{row.name}.pth")
    for variant in (name for name in VARIANTS if name != "G"):
        assert published.for_variant(variant, "ade20k").data == "ade20k"
    assert published.for_variant("L", "cityscapes").data == "cityscapes"
    with pytest.raises(ValueError, match="for 'H': upernet_internimage_h.*weights='cityscapes'"):
        published.for_variant("H", "cityscapes")


def test_detectors():
    assert len(DETECTORS) == 18 == len({row.name for row in DETECTORS})
    for row in DETECTORS:
        assert (row.sha256, row.bytes, row.revision) == (None, None, "main")
        assert (row.classes, row.data) == (80, "coco") and 40 < row.mask_ap < row.box_ap < 60
        head = "cascade" if row.variant in ("L", "XL", "FlashL") else "mask_rcnn"
        start = f"{head}_{model_name(row.variant)}_fpn_"
        assert row.url.endswith((f"/main/{start}1x_coco.pth", f"/main/{start}3x_coco.pth"))
    for variant in {row.variant for row in DETECTORS}:
        # The longer schedule, which is the better one.
        best = max((row for row in DETECTORS if row.variant == variant), key=lambda r: r.box_ap)
        assert published.for_variant(variant, "coco") == best and "_3x_" in best.name
    with pytest.raises(ValueError, match="for 'H': none.*weights='coco'"):
        published.for_variant("H", "coco")
    with pytest.raises(ValueError, match="for 'T': internimage_t_1k_224.*weights='lvis'"):
        published.for_variant("T", "lvis")


@pytest.mark.parametrize("row", KNOWN, ids=lambda row: row.name)
def test_file_sizes_are_those_of_the_variants(row):
    shapes = model_shapes(f"internimage_{row.variant.lower()}")
    shapes["head.weight"] = (row.classes, shapes["head.weight"][1])
    shapes["head.bias"] = (row.classes,)
    values = sum(math.prod(shape) for shape in shapes.values())
    overhead = row.bytes - values * (4 if row.stored_dtype == "float32" else 2)
    if row.variant in "HG" and row.classes == 21841:
        # Both hold one more matrix on the 768 features, of this many half-precision values.
        overhead -= 25530 * 768 * 2
    assert 250 * len(shapes) < overhead < 420 * len(shapes)


def test_every_variant_has_its_imagenet_checkpoint():
    for variant, config in VARIANTS.items():
        row = published.for_variant(variant, "imagenet")
        assert row.classes == 1000
        assert row.resolution == config.resolution
    assert published.for_variant("L", "imagenet22k").name == "internimage_l_22k_192to384"


def test_what_is_not_published_is_said_so():
    with pytest.raises(ValueError, match="internimage_t_1k_224.*Received: weights='imagenet22k'"):
        published.for_variant("T", "imagenet22k")
    with pytest.raises(ValueError, match="internimage_g_22kto1k_512.*Received: name='t'"):
        published.find("t")


def test_url_is_pinned_and_can_be_mirrored(monkeypatch):
    row = published.find("internimage_s_1k_224")
    assert row.url == (
        "https://huggingface.co/OpenGVLab/InternImage/resolve/"
        f"{row.revision}/internimage_s_1k_224.pth"
    )
    monkeypatch.setenv(published.BASE_URL_VARIABLE, "http://mirror/w/")
    assert row.url == f"http://mirror/w/{row.revision}/internimage_s_1k_224.pth"


def test_a_file_is_recognised_by_its_hash(tmp_path, monkeypatch):
    import dataclasses
    import hashlib

    path = tmp_path / "file"
    path.write_bytes(b"weights")
    assert published.by_file(path) is None
    row = dataclasses.replace(
        published.PUBLISHED[0], bytes=7, sha256=hashlib.sha256(b"weights").hexdigest()
    )
    monkeypatch.setattr(published, "PUBLISHED", (row,))
    assert published.by_file(path) == row
    path.write_bytes(b"Weights")
    assert published.by_file(path) is None
