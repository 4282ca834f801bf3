"""One image file as pixels: which formats are read, orientation, 16-bit grey, transparency, and the way to one size."""

from __future__ import annotations

import functools
import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from dne_lab.core.errors import LabError, reason

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
A = TypeVar("A")


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
        LabError: a file that cannot be decoded, or of another format, named.
    """
    from PIL import Image, UnidentifiedImageError

    label = name or ("this file" if isinstance(file, bytes) else str(file))
    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file, formats=_readable()) as image:
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
    except (
        OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, ArithmeticError, RuntimeError,
        AttributeError, MemoryError, struct.error, zlib.error,
    ) as error:  # what the parsers of Pillow meet in damaged files  # fmt: skip
        why = str(error) or type(error).__name__
        raise LabError(f"{label} cannot be decoded ({why}). Copy it again.") from error


def _unreadable(file: str | Path | bytes) -> str:
    """What a file is that is whole and yet not read, in words; empty where that is not known."""
    if isinstance(file, bytes):
        start = file[:HEAD]
    else:
        with Path(file).open("rb") as opened:
            start = opened.read(HEAD)
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
    if turn is not None:
        image = image.transpose(turn)
    if image.mode.startswith("I"):  # 16-bit grey; convert("RGB") would clip it at 255
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise LabError(f"{name} has values from {values.min()} to {values.max()}. Convert it to 8 or 16 bits.")
        image = Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    elif image.mode == "F":
        raise LabError(f"{name} holds floating-point pixels: their scale is unknown. Convert it to 8 or 16 bits.")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
    return image.convert("RGB")


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


def complete(content: bytes) -> bool:
    """Whether a file ends as its format says that it does; False also where only decoding it would tell."""
    tail = content[-64:].rstrip(b"\0")
    if content.startswith(b"\xff\xd8"):  # JPEG: end of image
        return tail.endswith(b"\xff\xd9")
    if content.startswith(b"\x89PNG"):  # its last chunk: no data, a checksum
        return tail.endswith(b"IEND\xaeB`\x82")
    if content.startswith(b"GIF8"):
        return tail.endswith(b";")
    if content.startswith(b"RIFF"):  # WebP: says its own length
        return len(content) >= 8 + int.from_bytes(content[4:8], "little")
    if content.startswith(b"BM"):
        return len(content) >= int.from_bytes(content[2:6], "little") > 0
    return False
