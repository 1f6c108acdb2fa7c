"""Images on disk as data for training: folders by class, images with masks or objects."""

from keras_internimage.data.balance import balanced_order, class_weights
from keras_internimage.data.batches import EpochSetter
from keras_internimage.data.coco import CocoDataset, CocoError, CocoImage, CocoObject, read_coco
from keras_internimage.data.coco_images import AnnotatedImage, DetectionImages, scan_detection
from keras_internimage.data.coco_masks import RunLengths, draw_mask
from keras_internimage.data.coco_metrics import CocoMetrics, CocoScores
from keras_internimage.data.detection_classes import detection_classes
from keras_internimage.data.detection_loader import DetectionFiles
from keras_internimage.data.folders import Images, scan
from keras_internimage.data.layout import FolderError
from keras_internimage.data.loader import ImageFiles
from keras_internimage.data.mask_files import MaskEncoding, read_mask
from keras_internimage.data.mask_loader import SegmentationFiles
from keras_internimage.data.masks import SegmentationImages, scan_segmentation
from keras_internimage.data.resizing import Resizing
from keras_internimage.data.segmentation_classes import segmentation_classes

__all__ = [
    "AnnotatedImage",
    "CocoDataset",
    "CocoError",
    "CocoImage",
    "CocoMetrics",
    "CocoObject",
    "CocoScores",
    "DetectionFiles",
    "DetectionImages",
    "EpochSetter",
    "FolderError",
    "ImageFiles",
    "Images",
    "MaskEncoding",
    "Resizing",
    "RunLengths",
    "SegmentationFiles",
    "SegmentationImages",
    "balanced_order",
    "class_weights",
    "detection_classes",
    "draw_mask",
    "read_coco",
    "read_mask",
    "scan",
    "scan_detection",
    "scan_segmentation",
    "segmentation_classes",
]
