"""Files of strangers, cut down to what makes their pixels before anything decodes them.

Ten thousand empty scans, comments or chunks take a decoder a minute and a stranger one request, and what lies
beside the pixels (profiles, settings, texts) may be packed a thousandfold. So the parts of a file are counted
here, by their headers alone, and only those that pixels are made of are left.
"""

import re
import struct
from dataclasses import dataclass

from lightgen.core.errors import UserError
from lightgen.core.webp import webp_size

_MAX_PARTS = 256  # segments or chunks, bytes of fill between them included
_MAX_SCANS = 100  # of a JPEG; each goes over the whole picture
_IDAT_BYTES = 4096  # that one chunk of a PNG's pixels may be expected to hold
_MAX_TAGS = 256

_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
# A marker that neither belongs to coded pixels (0x00, restarts) nor fills (0xff).
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_WINDOW = 1 << 20  # searched at a time, so that other threads have their turn
_FILL = b"\xff" * 64
_EOI, _SOS, _APP1 = 0xD9, 0xDA, 0xE1
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # they tell the size; the others are tables
# Frames, tables, scans, JFIF and Adobe, which says how colours are coded.
_JPEG_KEPT = _FRAMES | {0xC4, 0xCC, _SOS, 0xDB, 0xDC, 0xDD, 0xE0, 0xEE}
_JPEG_KNOWN = _JPEG_KEPT | {*range(0xE0, 0xF0), 0xFE}
_PNG_KEPT = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_WEBP_FIRST = (b"VP8X", b"VP8 ", b"VP8L")
_WEBP_KEPT = (*_WEBP_FIRST, b"ALPH", b"ANIM", b"ANMF")
_WEBP_BESIDE = 0x2C  # flags: profile, EXIF, XMP
_ORIENTATION = 0x0112


@dataclass(frozen=True)
class LeanPicture:
    """A still picture's file without what lies beside the pixels.

    Attributes:
        data: PNG, JPEG or WebP file.
        height, width: px as stored, by its header.
        orientation: 1 (upright) to 8, as EXIF counts them.
    """

    data: bytes
    height: int
    width: int
    orientation: int


def lean_picture(data: bytes) -> LeanPicture:
    """What makes the pixels of a PNG, JPEG or WebP file; nothing is decoded.

    Raises:
        UserError: another format, an animation, a file that is damaged, or of too many parts.
    """
    if data.startswith(_PNG):
        lean = _lean_png
    elif data.startswith(_JPEG):
        lean = _lean_jpeg
    elif data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        lean = _lean_webp
    else:
        raise UserError("got no picture, allowed: a still PNG, JPEG or WebP picture")
    try:
        return lean(data)
    except struct.error:
        raise _damaged() from None


def _lean_jpeg(data: bytes) -> LeanPicture:
    """Source: ITU-T T.81, annex B; the markers between which libjpeg and Pillow walk as well."""
    kept, size, orientation = [data[:2]], None, 1
    num_parts, num_scans, at, is_scan = 0, 0, 2, False
    while (start := _next_marker(data, at)) < len(data):
        if not is_scan:
            num_parts += start - at
        elif data.find(_FILL, at, start) < 0:
            kept.append(data[at:start])
        else:
            raise _too_many("bytes of fill", len(_FILL))
        kind = data[start + 1]
        if kind == _EOI:
            kept.append(data[start : start + 2])
            is_scan = False
            break
        stop = start + 2 + struct.unpack_from(">H", data, start + 2)[0]
        if kind not in _JPEG_KNOWN or not start + 4 <= stop <= len(data):
            raise _damaged()
        is_scan = kind == _SOS
        num_parts, num_scans = num_parts + 1, num_scans + is_scan
        if num_scans > _MAX_SCANS:
            raise _too_many("scans", _MAX_SCANS)
        if num_parts > _MAX_PARTS:
            raise _too_many("parts", _MAX_PARTS)
        if kind in _FRAMES:
            if size is not None:
                raise _damaged()
            size = struct.unpack_from(">HH", data, start + 5)
        if kind == _APP1 and data[start + 4 : start + 10] == b"Exif\0\0":
            orientation = _orientation(data[start + 10 : stop])
        if kind in _JPEG_KEPT:
            kept.append(data[start:stop])
        at = stop
    if is_scan or size is None or not num_scans:  # cut short
        raise _damaged()
    return LeanPicture(b"".join(kept), *size, orientation)


def _lean_png(data: bytes) -> LeanPicture:
    """Source: PNG specification, third edition, section 5."""
    kept, orientation, at, kind = [data[:8]], 1, 8, b""
    num_parts, num_pieces = 0, 0
    while kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", data, at)
        stop = at + 12 + length
        if stop > len(data) or (kind == b"IHDR") != (at == 8):
            raise _damaged()
        num_pieces, num_parts = num_pieces + (kind == b"IDAT"), num_parts + (kind != b"IDAT")
        if num_parts > _MAX_PARTS or num_pieces > _MAX_PARTS + len(data) // _IDAT_BYTES:
            raise _too_many("parts", _MAX_PARTS)
        if kind == b"acTL" and struct.unpack_from(">I", data, at + 8) != (1,):
            raise _animated()
        if kind == b"eXIf":
            orientation = _orientation(data[at + 8 : stop - 4])
        if kind in _PNG_KEPT:
            kept.append(data[at:stop])
        at = stop
    width, height = struct.unpack_from(">II", data, 16)
    return LeanPicture(b"".join(kept), height, width, orientation)


def _lean_webp(data: bytes) -> LeanPicture:
    """Source: RFC 9649, section 2."""
    kept, orientation, num_parts, num_frames, at = [b"WEBP"], 1, 0, 0, 12
    end = 8 + struct.unpack_from("<I", data, 4)[0]
    if end > len(data) or data[12:16] not in _WEBP_FIRST:
        raise _damaged()
    while at < end:
        kind, length = struct.unpack_from("<4sI", data, at)
        stop = at + 8 + length + length % 2
        if at + 8 + length > end:
            raise _damaged()
        num_parts, num_frames = num_parts + 1, num_frames + (kind == b"ANMF")
        if num_frames > 1:
            raise _animated()
        if num_parts > _MAX_PARTS:
            raise _too_many("parts", _MAX_PARTS)
        if kind == b"EXIF":
            orientation = _orientation(data[at + 8 : stop].removeprefix(b"Exif\0\0"))
        if kind == b"VP8X" and length:
            flags = bytes([data[at + 8] & ~_WEBP_BESIDE])
            kept.append(data[at : at + 8] + flags + data[at + 9 : stop])
        elif kind in _WEBP_KEPT:
            kept.append(data[at:stop])
        at = stop
    body = b"".join(kept)
    lean = b"RIFF" + struct.pack("<I", len(body)) + body
    width, height = webp_size(lean)
    return LeanPicture(lean, height, width, orientation)


def _next_marker(data: bytes, at: int) -> int:
    """Where the next marker of a JPEG begins; its end, if there is none."""
    for start in range(at, len(data), _WINDOW):
        if found := _MARKER.search(data, start, start + _WINDOW + 1):
            return found.start()
    return len(data)


def _orientation(exif: bytes) -> int:
    """Orientation in the first directory of EXIF's TIFF; upright, where it is not told."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return 1
    try:
        (at,) = struct.unpack_from(f"{order}I", exif, 4)
        (count,) = struct.unpack_from(f"{order}H", exif, at)
        for number in range(min(count, _MAX_TAGS)):
            tag, _, _, value = struct.unpack_from(f"{order}HHIH", exif, at + 2 + 12 * number)
            if tag == _ORIENTATION:
                return value if value in range(1, 9) else 1
    except struct.error:
        pass
    return 1


def _damaged() -> UserError:
    return UserError("not a whole PNG, JPEG or WebP image")


def _animated() -> UserError:
    return UserError("got animated, allowed: a still PNG, JPEG or WebP picture")


def _too_many(what: str, most: int) -> UserError:
    return UserError(f"got a file of more {what} than pictures have, allowed: at most {most}")
