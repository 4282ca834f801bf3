"""One image file as pixels: which formats are read, orientation, 16-bit grey, transparency, and the way to one size."""

from __future__ import annotations

import functools
import io
import os
import re
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from dne_lab.core.errors import LabError, brief, reason

if TYPE_CHECKING:
    from PIL import Image as pillow

# What Pillow is told to read, whatever a file is called, and how such files are called. It knows more formats, among
# them some that start other programs (EPS).
FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "AVIF": (".avif",),
    "JPEG2000": (".jp2", ".j2k"),
}
EXTENSIONS = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes)
HEAD = 1024  # bytes from which a format is told
LARGE = 16  # an image that is scaled to more than that many times the pixels wanted is cut first
WIDEST = 10_000  # pixels a side that a network may be given, as data.size allows
LARGEST = 512_000_000  # bytes of an image file: some decoders ask for all of it at once
STRIP = 1 << 20  # pixels that are converted at a time
AT_ONCE = 1 << 27  # pixels that several threads decode at a time (one image may have more): 1 GB
A = TypeVar("A")


class _Room:
    """Lets as many images be decoded at a time as have room together; a larger one alone."""

    def __init__(self) -> None:
        self._taken, self._changed = 0, threading.Condition()

    @contextmanager
    def taken(self, pixels: int) -> Iterator[None]:
        """Waits until there is room for that many."""
        with self._changed:
            self._changed.wait_for(lambda: not self._taken or self._taken + pixels <= AT_ONCE)
            self._taken += pixels
        try:
            yield
        finally:
            with self._changed:
                self._taken -= pixels
                self._changed.notify_all()


_ROOM = _Room()


def in_words(file: str | Path) -> str:
    """A file's name as a sentence can hold it: on one line."""
    return str(file).replace("\n", "\\n")


@functools.cache
def _readable() -> tuple[str, ...]:
    """The formats of ours that this Pillow was built with."""
    from PIL import Image

    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def opened(file: str | Path | bytes, use: Callable[[pillow.Image], A], name: str | None = None) -> A:
    """``use(image)`` of an open image file.

    Args:
        file: its path or its content.
        use: what is done with the image, of which only the header has been read.
        name: how messages call it; default: its path.

    Raises:
        LabError: a file that cannot be decoded, of another format, or larger than images are, named.
    """
    from PIL import Image, UnidentifiedImageError

    label = in_words(name or ("this file" if isinstance(file, bytes) else file))
    try:
        _check_bytes(file, label)
        with (
            Image.open(io.BytesIO(file) if isinstance(file, bytes) else file, formats=_readable()) as image,
            _ROOM.taken(image.width * image.height),
        ):
            return use(image)
    except LabError:
        raise
    except PermissionError as error:
        raise LabError(f"{label} cannot be read: permission denied. Make it readable.") from error
    except UnidentifiedImageError as error:
        known = ", ".join(_readable())
        if kind := _unreadable(file):
            raise LabError(f"{label} is {kind}, which is not read here: convert it to one of {known}.") from error
        raise LabError(f"{label} cannot be decoded: it is damaged, or none of {known}. Copy it again.") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        # the second one is raised where warnings are errors
        raise LabError(f"{label} cannot be decoded ({reason(error)}). Scale it down first.") from error
    except MemoryError as error:
        raise LabError(f"{label} needs more memory than there is. Scale it down, or free memory.") from error
    except (
        OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, ArithmeticError, RuntimeError,
        AttributeError, struct.error, zlib.error,
    ) as error:  # what the parsers of Pillow meet in damaged files  # fmt: skip
        why = str(error) or type(error).__name__
        raise LabError(f"{label} cannot be decoded ({why}). Copy it again.") from error


def _start(file: str | Path | bytes, most: int = HEAD) -> bytes:
    if isinstance(file, bytes):
        return file[:most]
    with open(file, "rb") as opened:  # noqa: PTH123  (a Path an image costs ten times as much)
        return opened.read(most)


# The header of a Netpbm file: kind, width and height, and comments. Pillow reads it letter by letter, and with many
# comments between numbers that are text it never ends.
_GAP = rb"(?:\s|#[^\r\n]*[\r\n])+"
_NETPBM = re.compile(rb"P[1-6]" + _GAP + rb"(\d{1,9})" + _GAP + rb"(\d{1,9})\s")
NETPBM_HEAD, NETPBM_PIXEL = 65_536, 32  # bytes of a header, and of a pixel: three numbers as text, and spaces


def _check_bytes(file: str | Path | bytes, label: str) -> None:
    """Refuses what would fill the memory, or take minutes, before it is opened."""
    size = len(file) if isinstance(file, bytes) else os.stat(file).st_size  # noqa: PTH116
    if size > LARGEST:
        raise LabError(f"{label} has {size:,} bytes; images of up to {LARGEST:,} are read. Scale it down first.")
    if size <= NETPBM_HEAD or not re.match(rb"P[0-6fy]", _start(file, 2)):  # those that Pillow takes for one
        return
    header = _NETPBM.match(_start(file, NETPBM_HEAD))
    most = NETPBM_HEAD + (NETPBM_PIXEL * int(header[1]) * int(header[2]) if header else 0)
    if size > most:
        raise LabError(
            f"{label} has {size:,} bytes, more than the {most:,} of a PPM of its width and height with short comments. "
            "Save it anew, as PNG."
        )


def _unreadable(file: str | Path | bytes) -> str:
    """What a file is that is whole and yet not read, in words; empty where that is not known."""
    start = _start(file)
    if start[4:8] == b"ftyp" and start[8:12] in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1"):
        return "a HEIC image"
    if b"<svg" in start.lower():
        return "an SVG drawing"
    return "a PDF document" if start.startswith(b"%PDF") else ""


ORIENTATION = 0x0112  # the tag of EXIF


def _orientation(image: pillow.Image) -> int:
    """1 to 8 as EXIF counts them; 1 where nothing is said, or nothing that can be read."""
    if image.format == "TIFF":  # Pillow turns these itself
        return 1
    if image.format == "PNG" and "exif" not in image.info and getattr(image, "png", None) is not None:
        return 1  # asking would decode all of it
    try:
        found = image.getexif().get(ORIENTATION, 1)
    except (OSError, SyntaxError, ValueError, LookupError, TypeError, struct.error):
        return 1  # damaged EXIF: viewers show the image as it is stored
    return found if found in range(1, 9) else 1


def size(image: pillow.Image) -> tuple[int, int]:
    """(width, height) as every viewer shows the image, from its header alone."""
    width, height = image.size
    return (height, width) if _orientation(image) >= 5 else (width, height)


def to_rgb(image: pillow.Image, name: str) -> pillow.Image:
    """Any image as 8-bit RGB: upright, 16-bit grey scaled, transparency laid over white.

    Strip by strip, so that beside the image and the result little memory is taken.

    Raises:
        LabError: floating-point pixels, or values that fit no 16 bits; ``name`` is how the message calls the file.
    """
    from PIL import Image

    turns = Image.Transpose
    image.load()
    turn = {
        2: turns.FLIP_LEFT_RIGHT, 3: turns.ROTATE_180, 4: turns.FLIP_TOP_BOTTOM, 5: turns.TRANSPOSE,
        6: turns.ROTATE_270, 7: turns.TRANSVERSE, 8: turns.ROTATE_90,
    }.get(_orientation(image))  # fmt: skip
    _check_values(image, in_words(name))
    width, height = image.size
    rows = max(1, STRIP // width)
    if height <= rows:
        whole = _strip_to_rgb(image)
        return whole if turn is None else whole.transpose(turn)
    aside = turn in (turns.TRANSPOSE, turns.ROTATE_270, turns.TRANSVERSE, turns.ROTATE_90)  # rows become columns
    from_end = turn in (turns.ROTATE_180, turns.FLIP_TOP_BOTTOM, turns.ROTATE_270, turns.TRANSVERSE)
    found = Image.new("RGB", (height, width) if aside else (width, height))
    for top in range(0, height, rows):
        end = min(top + rows, height)
        strip = _strip_to_rgb(image.crop((0, top, width, end)))
        place = height - end if from_end else top
        found.paste(strip if turn is None else strip.transpose(turn), (place, 0) if aside else (0, place))
    return found


def _check_values(image: pillow.Image, name: str) -> None:
    if image.mode == "F":
        raise LabError(f"{name} holds floating-point pixels: their scale is unknown. Convert it to 8 or 16 bits.")
    if image.mode == "I":  # 32 bits, in which 16 are kept by some formats
        low, high = image.getextrema()
        if low < 0 or high > 65535:  # type: ignore[operator]
            raise LabError(f"{name} has values from {low} to {high}. Convert it to 8 or 16 bits.")


@functools.cache
def _of_16_bits() -> np.ndarray:
    """(65536,) uint8: the nearest 8-bit grey of each 16-bit one."""
    return ((np.arange(65536) * 255 + 32767) // 65535).astype(np.uint8)


def _strip_to_rgb(image: pillow.Image) -> pillow.Image:
    from PIL import Image

    if image.mode.startswith("I"):  # 16-bit grey; convert("RGB") would clip it at 255
        image = Image.fromarray(_of_16_bits()[np.asarray(image)])
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
    return image.convert("RGB")


def check_size(size: object) -> None:
    """A side that images are brought to, or none, or a `LabError`."""
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= WIDEST):
        raise LabError(f"size = {brief(size)}: must be a whole number of pixels from 1 to {WIDEST:,}, e.g. 224.")


def fitted(image: pillow.Image, width: int, height: int) -> pillow.Image:
    """The largest part of these proportions from the middle of an image, brought to this size (bicubic)."""
    from PIL import Image

    if image.size == (width, height):
        return image
    scale = max(width / image.width, height / image.height)
    wide, high = max(width, round(image.width * scale)), max(height, round(image.height * scale))
    left, top = (wide - width) // 2, (high - height) // 2
    if wide * high <= LARGE * width * height:
        whole = image.resize((wide, high), Image.Resampling.BICUBIC)
        return whole.crop((left, top, left + width, top + height))
    # A strip: of the whole, only what is wanted is computed. The same, but for the rounding of the part's place.
    across, down = image.width / wide, image.height / high
    box = (left * across, top * down, (left + width) * across, (top + height) * down)
    return image.resize((width, height), Image.Resampling.BICUBIC, box=box)


ENDS = 64  # bytes at both ends of a file from which `complete` tells


def complete(start: bytes, end: bytes, length: int) -> bool:
    """Whether a file of so many bytes ends as its format says that it does; False also where only decoding it would
    tell. ``start``, ``end``: its first and last `ENDS` bytes, or more."""
    tail = end[-ENDS:].rstrip(b"\0")
    if start.startswith(b"\xff\xd8"):  # JPEG: end of image
        return tail.endswith(b"\xff\xd9")
    if start.startswith(b"\x89PNG"):  # its last chunk: no data, a checksum
        return tail.endswith(b"IEND\xaeB`\x82")
    if start.startswith(b"GIF8"):
        return tail.endswith(b";")
    if start.startswith(b"RIFF"):  # WebP: says its own length
        return length >= 8 + int.from_bytes(start[4:8], "little")
    if start.startswith(b"BM"):
        return length >= int.from_bytes(start[2:6], "little") > 0
    return False
