"""One image from the bytes of its file: 8 bits, grey or RGB, upright, or an error that says why."""

import io
import re
from pathlib import PurePosixPath

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

__all__ = ["SUFFIXES", "begins_as_image", "decode"]

Image.init()  # without it Pillow knows its commonest formats alone

SUFFIXES = {
    "AVIF": (".avif",),
    "BMP": (".bmp",),
    "DIB": (".dib",),
    "GIF": (".gif",),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "JPEG2000": (".jp2", ".j2k"),
    "MPO": (".mpo",),
    "PCX": (".pcx",),
    "PNG": (".png", ".apng"),
    "PPM": (".pgm", ".ppm", ".pnm", ".pbm"),
    "QOI": (".qoi",),
    "TGA": (".tga",),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
}
"""The formats that are read, and what their files end in: those of images that Pillow reads
without another program's help."""

FORMATS = tuple(name for name in SUFFIXES if name in Image.OPEN)

BEGINNINGS = re.compile(
    rb"\x89PNG\r\n|\xff\xd8\xff|GIF8[79]a|BM.{4}\0{4}|II\*\0|MM\0\*|RIFF.{4}WEBP|"
    rb".{4}ftypavi[fs]|P[1-6]\s|\0\0\0\x0cjP",
    re.DOTALL,
)
"""How images begin, for files whose name has no suffix."""

HINTS = {
    "1": 'as image.convert("L") gives',
    "P": 'as image.convert("RGB") gives',
    "PA": 'as image.convert("RGB") gives',
    "LA": 'as image.convert("RGB") gives',
    "RGBA": 'as image.convert("RGB") gives',
    "CMYK": 'as image.convert("RGB") gives',
}


def begins_as_image(name: str, head: bytes) -> bool:
    """Whether a file without a suffix begins as an image does, by its first 16 bytes."""
    return not PurePosixPath(name).suffix and BEGINNINGS.match(head) is not None


def decode(content: bytes, where: str) -> np.ndarray:
    """Decode an image, turned as its EXIF orientation says.

    A GIF's colours are those of its palette. Of a file that holds previews beside its image (a
    camera's JPEG or TIFF) the image is taken.

    Args:
        content: The file.
        where: What errors call it.

    Returns:
        uint8, shape (h, w) if it is grey and (h, w, 3) if it is RGB.

    Raises:
        ValueError: If it cannot be read, or has more than 8 bits a channel, an alpha channel, a
            transparent colour, a palette that is not a GIF's, another colour space or several
            pages.
    """
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
        pages = _pages(image)
        image.seek(pages[0])
        depth = _depth(image, content)
        image.load()
        transparent = "transparency" in image.info
        if image.format == "GIF" and image.mode == "P" and not transparent:
            image = image.convert("RGB")
        mode, image = image.mode, ImageOps.exif_transpose(image)
        array = np.array(image) if mode in ("L", "RGB") else None
    except Exception as error:  # Pillow's readers of broken files raise many kinds
        unknown = isinstance(error, UnidentifiedImageError)  # whose text is an object's address
        reason = "it begins as none that Pillow knows" if unknown else error
        raise ValueError(f"{where}: cannot be read as an image ({reason})") from error
    if array is None:
        hint = f", {HINTS[mode]}" if mode in HINTS else ""
        raise ValueError(f"{where}: got an image of mode {mode}, wanted grey (L) or RGB{hint}")
    if depth > 8:
        raise ValueError(f"{where}: got {depth} bits a channel, wanted 8")
    if transparent:
        raise ValueError(
            f"{where}: got a transparent colour, wanted plain grey (L) or RGB, as "
            f'image.convert("{mode}A") and what is to lie behind it give'
        )
    if len(pages) > 1:
        raise ValueError(f"{where}: got {len(pages)} pages, wanted one image per file")
    return array


def _pages(image: Image.Image) -> list[int]:
    """Which frames are images of their own: not the previews that cameras put beside one."""
    frames = range(getattr(image, "n_frames", 1))
    if image.format == "MPO":
        return [0]
    if image.format == "TIFF" and len(frames) > 1:
        return [frame for frame in frames if not _is_preview(image, frame)] or [0]
    return list(frames)


def _is_preview(image: Image.Image, frame: int) -> bool:
    image.seek(frame)
    return bool(image.tag_v2.get(254, 0) & 1)  # NewSubfileType: "reduced-resolution version"


def _depth(image: Image.Image, content: bytes) -> int:
    """Bits a channel in the file: Pillow cuts colour of more than 8 to 8 without a word."""
    if image.format == "TIFF":
        bits = image.tag_v2.get(258, (1,))
        return max(bits) if isinstance(bits, tuple) else bits
    if image.format == "PPM":
        most = [arg for tile in image.tile for arg in tile[3] if isinstance(arg, int)]
        return max(8, *(value.bit_length() for value in most), 8)
    if image.format == "JPEG2000":
        start = content.find(b"\xff\x4f\xff\x51")  # the codestream's size marker
        return (content[start + 42] & 127) + 1
    if image.format == "AVIF":
        box = content.find(b"pixi")
        return content[box + 9] if box >= 0 else 8
    return 16 if any(";16" in str(tile[3]) for tile in image.tile) else 8
