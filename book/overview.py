"""Draw the README's picture: the landing page's first figure, as the page shows it."""

import base64
import os
import sys
from pathlib import Path

BOOK = Path(__file__).parent
PICTURE = BOOK / "_static" / "overview.png"
LABEL = "fig-overview"
sys.path.insert(0, str(BOOK / "_ext"))
import chapters  # noqa: E402
import slides  # noqa: E402


def main() -> None:
    """Take the figure from the landing page's outputs, and write ``_static/overview.png``."""
    figure = slides.figures()[LABEL]
    png = slides.picture(figure, chapters.outputs(figure.chapter).notebook)
    beside = PICTURE.with_suffix(".tmp")
    beside.write_bytes(base64.b64decode(png))
    os.replace(beside, PICTURE)


if __name__ == "__main__":
    main()
