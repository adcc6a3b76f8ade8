"""Files that several layouts have in common."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from radloop.data.phantoms import Phantom
from radloop.data.phantoms.formats._cohort import Study

if TYPE_CHECKING:
    from pydicom import Dataset

_STORED = 4095  # the largest value of 12 bits


def jpeg(phantom: Phantom) -> bytes:
    """The picture as an 8-bit RGB JPEG file."""
    buffer = io.BytesIO()
    Image.fromarray(phantom.pixels).convert("RGB").save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def radiograph(study: Study) -> Dataset:
    """A computed radiograph of 12 bits; its window gives the phantom's 256 grey values back."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian, generate_uid

    stored = np.rint(study.phantom.pixels.astype(np.float64) * (_STORED / 255)).astype("<u2")
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.SOPClassUID = ComputedRadiographyImageStorage
    image.SOPInstanceUID = generate_uid(entropy_srcs=[study.dicom_id])
    image.StudyInstanceUID = generate_uid(entropy_srcs=[str(study.study_id)])
    image.SeriesInstanceUID = generate_uid(entropy_srcs=[str(study.study_id), "1"])
    image.PatientID, image.PatientName, image.PatientBirthDate = str(study.patient_id), "", ""
    image.PatientSex = study.sex
    image.StudyID, image.AccessionNumber, image.ReferringPhysicianName = str(study.study_id), "", ""
    image.StudyDate, image.StudyTime = study.time.strftime("%Y%m%d"), study.time.strftime("%H%M%S.000")
    image.Manufacturer, image.SeriesNumber, image.InstanceNumber = "", 1, 1
    image.Modality, image.BodyPartExamined, image.ViewPosition = "CR", "CHEST", "PA"
    image.BurnedInAnnotation, image.LossyImageCompression = "NO", "00"
    image.PatientOrientation = ["L", "F"]
    image.Rows, image.Columns = stored.shape
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 12, 11, 0
    image.WindowCenter, image.WindowWidth = (_STORED + 1) // 2, _STORED + 1
    image.PixelData = stored.tobytes()
    return image


def encoded(image: Dataset) -> bytes:
    """The DICOM file of a data set that has its transfer syntax."""
    buffer = io.BytesIO()
    image.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def write_hub_shards(
    folder: Path, split: str, rows: Sequence[dict[str, Any]], schema: pa.Schema, num_shards: int = 1
) -> None:
    """Write data/SPLIT-00000-of-0000N.parquet, with the features that the hub's library notes in them.

    Args:
        folder: Root of the repository.
        split: As the data set names it.
        rows: Dictionaries with the schema's columns.
        schema: A struct column is marked as an image.
        num_shards: The rows are cut into so many files.
    """
    features = {column.name: _feature(column.type) for column in schema}
    schema = schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    (folder / "data").mkdir(exist_ok=True)
    for shard in range(num_shards):
        part = rows[len(rows) * shard // num_shards : len(rows) * (shard + 1) // num_shards]
        path = folder / "data" / f"{split}-{shard:05d}-of-{num_shards:05d}.parquet"
        pq.write_table(pa.Table.from_pylist(list(part), schema), path)


def _feature(kind: pa.DataType) -> dict[str, Any]:
    if pa.types.is_struct(kind):
        return {"_type": "Image"}
    if pa.types.is_list(kind):
        return {"feature": _feature(kind.value_type), "_type": "Sequence"}
    return {"dtype": str(kind), "_type": "Value"}
