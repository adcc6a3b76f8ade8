"""One frame of a DICOM image as 8-bit RGB: from stored values to what a workstation shows."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from radloop.data.imaging import dicom_pixels
from radloop.data.imaging.dicom import number, numbers, read_header, text, value
from radloop.data.imaging.limits import ImageError, Picture, Request
from radloop.data.imaging.luts import PALETTE_KEYWORDS, colours, read_lut
from radloop.data.imaging.windows import Curve, Window, between, span, to_levels

if TYPE_CHECKING:
    from pydicom import Dataset

_FUNCTIONAL_GROUPS = ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence")
_DISPLAY = (
    *("Modality", "RescaleSlope", "RescaleIntercept", "RescaleType", "ModalityLUTSequence"),
    *("WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence", *_FUNCTIONAL_GROUPS),
    *("PixelPaddingValue", "PixelPaddingRangeLimit"),
)
_GREY = ("MONOCHROME1", "MONOCHROME2")
_COLOUR = ("PALETTE COLOR", "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")


def read_dicom(data: bytes, request: Request, window: Window | None) -> Picture:
    """Decode one frame; `window` is applied to grey images only.

    Raises:
        ImageError: It holds no image, or one that is too large, of an unknown kind, or without that
            frame; or the window is in HU and the image is not.
        Exception: Anything else that pydicom raises on damaged bytes.
    """
    keywords = (*dicom_pixels.KEYWORDS, *PALETTE_KEYWORDS, *_DISPLAY)
    header = read_header(io.BytesIO(data), keywords, request.max_bytes)
    layout = dicom_pixels.read_layout(header, request)
    stored, photometric = dicom_pixels.decode(header, layout, request.frame)
    if photometric in _GREY:
        levels = _grey(stored, _Scopes(header, request.frame), window, photometric == "MONOCHROME1")
    elif photometric == "PALETTE COLOR":
        levels = colours(stored, header)
    elif photometric == "RGB":
        levels = _eight_bits(stored, layout.bits_stored)
    else:
        known = ", ".join((*_GREY, *_COLOUR))
        raise ImageError(f"has the photometric interpretation {photometric!r}; known: {known}")
    rgb = Image.fromarray(np.ascontiguousarray(levels)).convert("RGB")
    return Picture(rgb, layout.mode, "DICOM", layout.frames)


class _Scopes:
    """Where the elements of one frame are looked for: its own groups, the shared ones, the data set."""

    def __init__(self, header: Dataset, frame: int) -> None:
        own, shared = (value(header, keyword) or [] for keyword in _FUNCTIONAL_GROUPS)
        macros = [
            item
            for groups in (*own[frame : frame + 1], *shared[:1])
            for keyword in ("PixelValueTransformationSequence", "FrameVOILUTSequence")
            for item in (value(groups, keyword) or [])[:1]
        ]
        self.header = header
        self._all = [*macros, header]

    def find(self, keyword: str) -> Dataset:
        """Return the nearest data set that has this element, or that of the whole file."""
        return next((scope for scope in self._all if value(scope, keyword) is not None), self.header)

    def number(self, keyword: str) -> float | None:
        """Return the first value of the nearest such element, if it is a finite number."""
        return number(self.find(keyword), keyword)

    def lut(self, keyword: str) -> Dataset | None:
        """Return the first item of the nearest such sequence."""
        items = value(self.find(keyword), keyword)
        return items[0] if items else None


def _grey(stored: np.ndarray, scopes: _Scopes, window: Window | None, inverted: bool) -> np.ndarray:
    """Modality and VOI transformation, inversion, and black where there is no value.

    Source: DICOM PS3.3 C.11.1, C.11.2, C.7.6.3.1.2 and C.7.5.1.1.2.
    """
    outside = _outside(stored, scopes.header)
    known = stored if outside is None else stored[~outside]
    if not known.size:
        return np.zeros(stored.shape, dtype=np.uint8)
    if window and window.unit:
        _require_hounsfield(scopes, window)
    modality = _modality(scopes)
    voi = window or _own_voi(scopes) or between(*sorted(modality(np.array(span(known)))))
    filled = stored if outside is None else np.where(outside, known.flat[0], stored)
    levels = to_levels(filled, lambda values: voi(modality(values)))
    levels = 255 - levels if inverted else levels
    if outside is not None:
        levels[outside] = 0
    return levels


def _outside(stored: np.ndarray, header: Dataset) -> np.ndarray | None:
    """Where no value was measured: padding, and floats that are no numbers; None if nowhere."""
    outside = np.zeros(stored.shape, dtype=bool) if stored.dtype.kind in "iu" else ~np.isfinite(stored)
    padding = numbers(header, "PixelPaddingValue")[:1]
    if padding and stored.dtype.kind in "iu":
        limit = numbers(header, "PixelPaddingRangeLimit")[:1]
        # Some files give the padding of signed pixels as if it were unsigned.
        ends = np.array([*padding, *limit]).astype(np.int64).astype(stored.dtype)
        outside |= (stored >= ends.min()) & (stored <= ends.max())
    return outside if outside.any() else None


def _modality(scopes: _Scopes) -> Curve:
    item = scopes.lut("ModalityLUTSequence")
    if item is not None:
        return read_lut(item, scopes.header)
    slope = scopes.number("RescaleSlope") or 1.0
    intercept = scopes.number("RescaleIntercept") or 0.0
    return lambda values: values * slope + intercept


def _own_voi(scopes: _Scopes) -> Curve | None:
    """The file's first VOI LUT, else its first window; None if it has neither that can be used."""
    item = scopes.lut("VOILUTSequence")
    if item is not None:
        lut = read_lut(item, scopes.header)
        return lambda values: lut(values) / lut.top
    centre, width = scopes.number("WindowCenter"), scopes.number("WindowWidth")
    if centre is None or width is None or width <= 0:
        return None
    function = text(scopes.find("VOILUTFunction"), "VOILUTFunction") or "LINEAR"
    return Window(centre, width, function)


def _require_hounsfield(scopes: _Scopes, window: Window) -> None:
    modality = text(scopes.header, "Modality")[:16]
    if modality != "CT" and text(scopes.find("RescaleType"), "RescaleType") != "HU":
        raise ImageError(
            f"has the modality {modality or 'unknown'!r}, so its values are not in {window.unit}; "
            "give centre/width, or '' for the file's own window"
        )


def _eight_bits(colour: np.ndarray, bits: int) -> np.ndarray:
    if bits == 8:
        return colour.astype(np.uint8)
    top = (1 << bits) - 1
    wide = np.minimum(colour, top).astype(np.uint64 if bits > 16 else np.uint32)
    levels: np.ndarray = ((wide * 255 + top // 2) // top).astype(np.uint8)
    return levels
