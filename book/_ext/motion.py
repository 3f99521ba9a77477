"""Animated pictures for readers who may not want motion, and for paper.

A PNG that moves is shown with a still, its last frame, in its place where the reader's system asks
for less motion, and with a button that stops it. The book on one page, for print, has the still.
"""

import base64
import html
import io
from pathlib import Path

from docutils import nodes
from PIL import Image
from sphinx.transforms.post_transforms import SphinxPostTransform

BEFORE = (
    '<picture class="motion"><source media="(prefers-reduced-motion: reduce)" '
    'srcset="data:image/png;base64,{still}">'
)
STILL = '<img alt="{alt}" src="data:image/png;base64,{still}">'
AFTER = '</picture><button type="button" class="motion-button">pause</button>'


def last_frame(path: Path) -> bytes | None:
    """The last frame of an animated PNG, as a PNG; None if the picture does not move."""
    with Image.open(path) as picture:
        if not getattr(picture, "is_animated", False):
            return None
        picture.seek(picture.n_frames - 1)
        file = io.BytesIO()
        picture.convert("RGB").save(file, "PNG", optimize=True)
    return file.getvalue()


class Stills(SphinxPostTransform):
    """Put a still beside every animated PNG, or in its place on the one page that is printed."""

    default_priority = 200
    formats = ("html",)

    def run(self, **kwargs):
        """Change the pictures of one page."""
        for image in list(self.document.findall(nodes.image)):
            path = Path(self.env.srcdir, image["uri"])
            if path.suffix != ".png" or not path.exists() or not (still := last_frame(path)):
                continue
            encoded = base64.b64encode(still).decode()
            if self.app.builder.name == "singlehtml":
                alt = html.escape(image.get("alt", ""), quote=True)
                image.replace_self(
                    nodes.raw("", STILL.format(alt=alt, still=encoded), format="html")
                )
                continue
            before = BEFORE.format(still=encoded)
            at = image.parent.index(image)
            image.parent.insert(at, nodes.raw("", before, format="html"))
            image.parent.insert(at + 2, nodes.raw("", AFTER, format="html"))


def setup(app):
    """Register with Sphinx."""
    app.add_post_transform(Stills)
    app.add_js_file("motion.js", loading_method="defer")
    return {"parallel_read_safe": True, "parallel_write_safe": True}
