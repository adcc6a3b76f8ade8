"""Any encoded image to 8-bit RGB, and what is wrong with those that cannot be."""

from radloop.data.imaging.decode import FORMATS, ImageFacts, examine, inspect, to_rgb
from radloop.data.imaging.dicom import DicomTags, dicom_tags, is_dicom
from radloop.data.imaging.limits import MAX_BYTES, MAX_FRAMES, MAX_PIXELS, ImageError
from radloop.data.imaging.map import map_images
from radloop.data.imaging.pictures import DEEP_MODES, MODES, PICTURE_FORMATS
from radloop.data.imaging.transform import pixel_hash, resize, to_png
from radloop.data.imaging.windows import WINDOWS

__all__ = [
    "DEEP_MODES",
    "FORMATS",
    "MAX_BYTES",
    "MAX_FRAMES",
    "MAX_PIXELS",
    "MODES",
    "PICTURE_FORMATS",
    "WINDOWS",
    "DicomTags",
    "ImageError",
    "ImageFacts",
    "dicom_tags",
    "examine",
    "inspect",
    "is_dicom",
    "map_images",
    "pixel_hash",
    "resize",
    "to_png",
    "to_rgb",
]
