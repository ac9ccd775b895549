"""What macOS asks of a library before it loads it.

The signature (Apple's ``cs_blobs.h``; numbers are big endian): u32 magic | u32 size | u32 n, n x (u32 type | u32 offset) | the
blobs. The code directory among them holds the hash of every page of the file before the signature.
"""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import lief

SIGNATURE, CODE_DIRECTORY = 0xFADE0CC0, 0xFADE0C02
SHA256 = 2
AD_HOC = 0x2


def count_page_hashes(path: Path, binary: lief.MachO.Binary) -> int:
    """The number of pages whose hashes are right. Raises ValueError for a wrong hash, and for no ad-hoc signature."""
    if not binary.has_code_signature:
        raise ValueError("no signature")
    data, start = path.read_bytes(), binary.code_signature.data_offset
    signature = data[start : start + binary.code_signature.data_size]
    try:
        directory = _code_directory(signature)
        (flags, hashes, _, _, pages, limit) = struct.unpack_from(">6I", directory, 12)
        size, kind, _, page_bits = struct.unpack_from(">4B", directory, 36)
    except struct.error:
        raise ValueError("a damaged signature") from None
    if not flags & AD_HOC or (kind, size) != (SHA256, hashlib.sha256().digest_size):
        raise ValueError(f"a signature with flags {flags:#x} and hash {kind}, not ad hoc with SHA-256")
    page = 1 << page_bits
    if limit != start or pages != -(-limit // page):
        raise ValueError(f"{pages} hashes of {page} bytes for {start} bytes of code")
    for i in range(pages):
        expected = directory[hashes + i * size : hashes + (i + 1) * size]
        if hashlib.sha256(data[i * page : min((i + 1) * page, limit)]).digest() != expected:
            raise ValueError(f"the hash of page {i} of {pages} differs")
    return pages


def _code_directory(signature: bytes) -> bytes:
    magic, _, count = struct.unpack_from(">3I", signature)
    if magic != SIGNATURE:
        raise ValueError(f"a signature of kind {magic:#x}")
    for i in range(count):
        _, offset = struct.unpack_from(">2I", signature, 12 + 8 * i)
        magic, size = struct.unpack_from(">2I", signature, offset)
        if magic == CODE_DIRECTORY:
            return signature[offset : offset + size]
    raise ValueError("a signature without a code directory")
