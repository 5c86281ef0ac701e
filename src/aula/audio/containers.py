"""Finds audio files whose container proves that bytes are missing; libsndfile reads those without a word.

RIFF and AIFF: a chunk that would end behind the end of the file. Sources: Microsoft and IBM, "Multimedia
Programming Interface and Data Specifications 1.0" (1991); Apple, "Audio Interchange File Format 1.3" (1989).
OGG: a last page that is cut or not marked as the end of its stream (RFC 3533, section 6).
FLAC: a metadata block that is cut, or fewer bytes than the promised frames need (RFC 9639, section 8).
"""

import struct
from typing import BinaryIO

_LEAST_PLACEHOLDER = 0x7FFF_F000
"""A recorder that writes to a pipe cannot know the length: it leaves a huge one (FFmpeg 0xFFFFFFFF, SoX about
0x7FFFF000, arecord about 0x80000000), which says nothing about the bytes that follow."""

_MOST_CHUNKS = 10_000
_LONGEST_OGG_PAGE = 27 + 255 + 255 * 255
_OGG_END_OF_STREAM = 0x04
_FLAC_INFO_BYTES = 34


def ends_early(stream: BinaryIO) -> bool:
    """True where the container proves a truncation; False where it is whole, unknown or cannot tell."""
    size = stream.seek(0, 2)
    stream.seek(0)
    head = stream.read(12)
    if head[:4] == b"RIFF" and head[8:] == b"WAVE":
        return _chunk_is_cut(stream, size, "<4sI", b"data")
    if head[:4] == b"FORM" and head[8:] in (b"AIFF", b"AIFC"):
        return _chunk_is_cut(stream, size, ">4sI", b"SSND")
    if head[:4] == b"OggS":
        return _last_page_is_cut(stream, size)
    if head[:4] == b"fLaC":
        return _flac_is_cut(stream, size)
    return False


def _chunk_is_cut(stream: BinaryIO, size: int, layout: str, sound: bytes) -> bool:
    """Walk the chunks up to the one that holds the sound, whose name is `sound`."""
    position = 12
    for _ in range(_MOST_CHUNKS):
        stream.seek(position)
        header = stream.read(8)
        if len(header) < 8:
            return True
        name: bytes
        length: int
        name, length = struct.unpack(layout, header)
        position += 8 + length
        if name == sound:
            return length < _LEAST_PLACEHOLDER and position > size
        position += length % 2
    return False


def _last_page_is_cut(stream: BinaryIO, size: int) -> bool:
    # Twice the longest page, since some writers leave zeros or a tag behind the last one.
    start = max(0, size - 2 * _LONGEST_OGG_PAGE)
    stream.seek(start)
    tail = stream.read()
    page = tail.rfind(b"OggS")
    if page < 0:
        return False
    header = tail[page : page + 27]
    if len(header) < 27:
        return True
    segments = tail[page + 27 : page + 27 + header[26]]
    whole = len(segments) == header[26] and page + 27 + len(segments) + sum(segments) <= len(tail)
    return not whole or not header[5] & _OGG_END_OF_STREAM


def _flac_is_cut(stream: BinaryIO, size: int) -> bool:
    position, least = 4, 0
    for block in range(_MOST_CHUNKS):
        stream.seek(position)
        header = stream.read(4)
        if len(header) < 4:
            return True
        length = int.from_bytes(header[1:])
        if block == 0:
            if header[0] & 0x7F or length != _FLAC_INFO_BYTES:
                return False  # not FLAC, whatever its first four bytes say
            least = _least_flac_bytes(stream.read(length))
        position += 4 + length
        if position > size:
            return True
        if header[0] & 0x80:
            return size - position < least
    return False


def _least_flac_bytes(info: bytes) -> int:
    """What the whole blocks take at least: their number times the size of the smallest frame (0: unknown)."""
    if len(info) < _FLAC_INFO_BYTES:
        return 0
    longest_block = int.from_bytes(info[2:4])
    smallest_frame = int.from_bytes(info[4:7])
    samples = int.from_bytes(info[13:18]) & 0xF_FFFF_FFFF
    return samples // max(1, longest_block) * smallest_frame
