"""Image files with a mark wherever their formats have room for anything but pixels."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

from PIL import Image, ImageCms, PngImagePlugin

PNG_START = b"\x89PNG\r\n\x1a\n"


def noise(seed: int, *, size: int = 40) -> Image.Image:
    """Other pixels for each seed."""
    image = Image.radial_gradient("L").resize((size, size)).rotate(seed)
    return image.point(lambda level: level ^ seed % 256)


def encoded(image: Image.Image, form: str, **more: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **more)
    return buffer.getvalue()


def chunks(png: bytes) -> list[tuple[bytes, bytes]]:
    """Names and contents of the chunks; what is behind the last counts as one without a name."""
    found, at = [], len(PNG_START)
    while at < len(png):
        (length,) = struct.unpack_from(">I", png, at)
        name = png[at + 4 : at + 8]
        found.append((name, png[at + 8 : at + 8 + length]))
        at += length + 12
        if name == b"IEND":
            break
    return found + ([(b"", png[at:])] if at < len(png) else [])


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png_with(before: str, name: bytes, content: bytes) -> Callable[[int], bytes]:
    """A PNG with a chunk of its own before the one called so."""

    def make(seed: int) -> bytes:
        parts = chunks(encoded(noise(seed), "PNG"))
        place = [kind for kind, _ in parts].index(before.encode())
        parts.insert(place, (name, content))
        return PNG_START + b"".join(_chunk(*part) for part in parts)

    return make


def _segment(number: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, number, len(content) + 2) + content


def jpeg_with(number: int, content: bytes) -> Callable[[int], bytes]:
    """A JPEG with a segment of its own behind the start."""

    def make(seed: int) -> bytes:
        data = encoded(noise(seed), "JPEG")
        return data[:2] + _segment(number, content) + data[2:]

    return make


def _exif(mark: bytes) -> Image.Exif:
    exif = Image.Exif()
    exif[0x010E] = mark.decode()
    exif[0x0112] = 6  # to be turned
    exif.get_ifd(0x8769)[0x9286] = mark.decode()
    return exif


def _profile(mark: bytes) -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes() + mark


def _pages(mark: bytes, seed: int) -> bytes:
    pages = [noise(seed), noise(seed + 1)]
    return encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:], tiffinfo={270: mark.decode()})


def _text(mark: bytes) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    info.add_text("Patient", mark.decode())
    info.add_itxt("XML:com.adobe.xmp", mark.decode())
    return info


def planted(mark: bytes) -> dict[str, Callable[[int], bytes]]:
    """File name to what makes the file for a seed."""
    tags = {270: mark.decode(), 315: mark.decode(), 65000: mark.decode()}
    return {
        "plain.png": lambda n: encoded(noise(n), "PNG"),
        "colour.png": lambda n: encoded(Image.merge("RGB", [noise(n), noise(n + 1), noise(n + 2)]), "PNG"),
        "deep.png": lambda n: encoded(noise(n).convert("I").point(lambda v: v * 200).convert("I;16"), "PNG",
                                      pnginfo=_text(mark)),
        "text.png": lambda n: encoded(noise(n), "PNG", pnginfo=_text(mark)),
        "exif.png": lambda n: encoded(noise(n), "PNG", exif=_exif(mark)),
        "profile.png": lambda n: encoded(noise(n), "PNG", icc_profile=_profile(mark)),
        "late.png": png_with("IEND", b"tEXt", b"Patient\0" + mark),
        "private.png": png_with("IDAT", b"prVt", mark),
        "behind.png": lambda n: encoded(noise(n), "PNG") + mark,
        "exif.jpg": lambda n: encoded(noise(n), "JPEG", exif=_exif(mark)),
        "comment.jpg": lambda n: encoded(noise(n), "JPEG", comment=mark),
        "profile.jpg": lambda n: encoded(noise(n), "JPEG", icc_profile=_profile(mark)),
        "app5.jpg": jpeg_with(0xE5, mark),
        "app13.jpg": jpeg_with(0xED, b"Photoshop 3.0\0" + mark),
        "thumbnail.jpg": jpeg_with(0xE0, b"JFXX\0\x10" + mark),
        "behind.jpg": lambda n: encoded(noise(n), "JPEG") + mark,
        "inside.jpg": lambda n: encoded(noise(n), "JPEG")[:-2] + mark + b"\xff\xd9",
        "tags.tif": lambda n: encoded(noise(n), "TIFF", tiffinfo=tags),
        "pages.tiff": lambda n: _pages(mark, n),
        "behind.tif": lambda n: encoded(noise(n), "TIFF") + mark,
        "exif.webp": lambda n: encoded(noise(n).convert("RGB"), "WEBP", lossless=True,
                                       exif=_exif(mark).tobytes(), xmp=mark, icc_profile=_profile(mark)),
        "behind.webp": lambda n: encoded(noise(n).convert("RGB"), "WEBP", lossless=True) + mark,
    }  # fmt: skip


def dicom(mark: str, *, compressed: bool = False) -> bytes:
    """A DICOM file with the mark in its preamble, tags, pixel padding, or a comment of compressed data."""
    import pydicom
    from pydicom.data import get_testdata_file
    from pydicom.encaps import encapsulate
    from pydicom.uid import JPEGBaseline8Bit

    dataset = pydicom.dcmread(str(get_testdata_file("CT_small.dcm", download=False)))
    dataset.preamble = mark.encode().ljust(128, b"\0")
    dataset.PatientName = dataset.PatientID = dataset.OtherPatientIDs = mark
    dataset.InstitutionName = dataset.StudyDescription = dataset.PatientComments = mark
    dataset.AccessionNumber = dataset.StudyID = mark[:16]
    dataset.SoftwareVersions = f"V1 of {mark}"
    dataset.private_block(0x0011, mark, create=True).add_new(1, "LO", mark)
    item = pydicom.Dataset()
    item.PatientName = item.PatientID = item.ReasonForStudy = mark
    dataset.DerivationCodeSequence = [item]
    dataset.add_new(0x60004000, "LT", mark)
    if compressed:
        image = noise(7)
        dataset.Rows = dataset.Columns = image.width
        dataset.BitsAllocated = dataset.BitsStored = 8
        dataset.HighBit, dataset.PixelRepresentation = 7, 0
        dataset.PixelData = encapsulate([encoded(image, "JPEG", comment=mark.encode())])
        dataset["PixelData"].VR = "OB"
        dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
        for keyword in ("SmallestImagePixelValue", "LargestImagePixelValue", "PixelPaddingValue"):
            dataset.pop(keyword, None)
    else:
        dataset.PixelData += mark.encode().ljust(64, b"\0")
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    return buffer.getvalue()
