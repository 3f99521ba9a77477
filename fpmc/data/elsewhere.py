"""Files of images that others read: what to do with them."""

from collections.abc import Iterable
from pathlib import Path, PurePosixPath

__all__ = ["advice"]

PACKED = (".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar")
READERS = {
    ".pt": "torch.load",
    ".pth": "torch.load",
    ".safetensors": "safetensors.torch.load_file",
    ".parquet": "datasets.load_dataset",
    ".arrow": "datasets.load_from_disk",
    ".h5": "h5py.File",
    ".hdf5": "h5py.File",
    ".mat": "scipy.io.loadmat",
    ".pkl": "its own package",
    ".tfrecord": "its own package",
    ".mdb": "its own package",
}
"""What reads files that hold images in another way, by suffix."""

CIFAR10 = "batches.meta"
"""A file among CIFAR-10's own."""


def advice(path: Path, names: Iterable[str]) -> str | None:
    """What was given in place of images and what to do with it, the sentence of an error.

    Args:
        path: A file, or a folder.
        names: The names of the files in it.

    Returns:
        None if nothing is known of such files.
    """
    own = [] if path.is_dir() else [path.name]
    names = [PurePosixPath(name) for name in (*own, *names)]
    if path.is_dir() and any(name.name == CIFAR10 for name in names):
        root = str(path.parent)
        return f"{path}: got CIFAR-10's own files, wanted load('cifar10', root={root!r})"
    for suffix in (name.suffix.lower() for name in names):
        if suffix in PACKED:
            return f"{path}: got a {suffix} file, wanted it unpacked to a folder of images"
        if suffix in READERS:
            return (
                f"{path}: got a {suffix} file, which {READERS[suffix]} reads, wanted a folder or "
                "ZIP of images, a .npy or a .npz; of the images that it holds, as one tensor or "
                "array (n, c, h, w), fpmc.Source(images) makes a source"
            )
    return None
