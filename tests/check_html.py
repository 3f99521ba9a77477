"""Check the built book: pages need no network, links lead somewhere, figures say what they show.

Usage: python tests/check_html.py _build/html
"""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from bs4 import BeautifulSoup

LONGEST = 12  # lines that a cell may print
LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}


class Page(HTMLParser):
    """What a page loads, links to and can be linked at."""

    def __init__(self, text: str):
        super().__init__()
        self.loads, self.links, self.anchors = [], [], {""}
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        """Note one element."""
        attrs = dict(attrs)
        self.anchors.update(attrs[name] for name in ("id", "name") if attrs.get(name))
        if tag == "a" and attrs.get("href"):
            self.links.append(attrs["href"])
        elif LOADED.get(tag) in attrs and attrs.get("rel") not in ("canonical", "author"):
            self.loads.append(attrs[LOADED[tag]])


def unreadable(text: str) -> list[str]:
    """What a reader of one page would stumble over in the outputs of its cells."""
    outputs = BeautifulSoup(text, "html.parser").select(".cell_output")
    found = []
    for output in outputs:
        for image in output.select("img"):
            figure = image.find_parent("figure")
            if figure is None or figure.find("figcaption") is None:
                found.append(f"a figure without a caption, {image['src']}")
            if not image.get("alt") or image["alt"].startswith("../_images"):
                found.append(f"a figure without alternative text, {image['src']}")
        for text in output.select("p"):
            if text.get_text().startswith("| "):
                found.append(f"a table that is not rendered, {text.get_text()[:30]!r}")
        for block in output.select("pre"):
            lines = block.get_text().strip().splitlines()
            if len(lines) > LONGEST:
                found.append(f"{len(lines)} printed lines, from {lines[0]!r}")
    return found


def problems(root: Path) -> list[str]:
    """One line per thing that is wrong below a folder of HTML pages."""
    paths = (path for path in root.rglob("*.html") if "_static" not in path.parts)
    texts = {path.resolve(): path.read_text() for path in paths}
    pages = {path: Page(text) for path, text in texts.items()}
    found = [] if pages else [f"{root}: no pages"]
    for path, page in pages.items():
        name = path.relative_to(root.resolve())
        found += [f"{name}: {what}" for what in unreadable(texts[path])]
        for url in page.loads:
            parts = urlsplit(url)
            if parts.scheme in ("http", "https") or url.startswith("//"):
                found.append(f"{name}: loads {url} from the network")
            elif not parts.scheme and not (path.parent / unquote(parts.path)).exists():
                found.append(f"{name}: loads {url}, which is not there")
        for url in page.links:
            parts = urlsplit(url)
            if parts.scheme or url.startswith("//"):
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.exists():
                found.append(f"{name}: links to {url}, which is not there")
            elif target in pages and unquote(parts.fragment) not in pages[target].anchors:
                found.append(f"{name}: links to {url}, an anchor that is not there")
    return found


if __name__ == "__main__":
    wrong = problems(Path(sys.argv[1]))
    print(
        "\n".join(wrong)
        or "every page is complete without a network, every link leads somewhere, "
        "every figure has a caption"
    )
    sys.exit(bool(wrong))
