"""Headers of WebP files, by which pictures are judged before they are opened."""

import struct


def webp_size(data: bytes) -> tuple[int, int]:
    """(Width, height) that the header of a WebP file claims. Source: RFC 9649, sections 2.5 to 2.7.

    Raises:
        struct.error: the header is cut short.
    """
    kind = data[12:16]
    if kind == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF
