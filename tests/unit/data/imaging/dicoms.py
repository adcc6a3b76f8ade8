"""DICOM files for the tests: those that pydicom ships, and hand-made ones."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid


@cache
def shipped(name: str) -> bytes:
    path = get_testdata_file(name, download=False)
    assert isinstance(path, str)
    return Path(path).read_bytes()


def dataset(pixels: np.ndarray, **elements: Any) -> Dataset:
    """A CT slice of these stored values; `elements` override or add, None removes."""
    colour = pixels.ndim > 2 and pixels.shape[-1] == 3
    frames = pixels.shape[0] if pixels.ndim > 2 + colour else 1
    header = Dataset()
    header.SOPClassUID, header.SOPInstanceUID = CTImageStorage, generate_uid()
    header.Modality = "CT"
    header.Rows, header.Columns = pixels.shape[-3:-1] if colour else pixels.shape[-2:]
    header.SamplesPerPixel = 3 if colour else 1
    header.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    header.PixelRepresentation = int(pixels.dtype.kind == "i")
    header.BitsAllocated = header.BitsStored = pixels.dtype.itemsize * 8
    header.HighBit = header.BitsAllocated - 1
    if colour:
        header.PlanarConfiguration = 0
    if frames > 1:
        header.NumberOfFrames = frames
    if pixels.dtype.kind == "f":
        header["FloatPixelData" if pixels.itemsize == 4 else "DoubleFloatPixelData"] = _floats(pixels)
    else:
        header.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
        header["PixelData"].VR = "OB" if pixels.itemsize == 1 else "OW"
    for keyword, element in elements.items():
        if element is None:
            delattr(header, keyword)
        else:
            setattr(header, keyword, element)
    return header


def _floats(pixels: np.ndarray) -> Any:
    from pydicom.dataelem import DataElement

    tag, vr = (0x7FE00008, "OF") if pixels.itemsize == 4 else (0x7FE00009, "OD")
    return DataElement(tag, vr, pixels.tobytes())


def encode(header: Dataset, syntax: str = ExplicitVRLittleEndian) -> bytes:
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = syntax
    header.file_meta.MediaStorageSOPClassUID = header.get("SOPClassUID", CTImageStorage)
    header.file_meta.MediaStorageSOPInstanceUID = header.get("SOPInstanceUID", "1.2.3")
    buffer = io.BytesIO()
    header.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def make(pixels: np.ndarray, **elements: Any) -> bytes:
    return encode(dataset(pixels, **elements))


def item(**elements: Any) -> Sequence:
    """A sequence of one item."""
    only = Dataset()
    for keyword, element in elements.items():
        setattr(only, keyword, element)
    return Sequence([only])


def lut_item(first: int, bits: int, entries: list[int]) -> Sequence:
    only = item()
    only[0].add_new(0x00283002, "SS", [len(entries), first, bits])
    only[0].add_new(0x00283006, "US", entries)
    return only
