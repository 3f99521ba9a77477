"""Check the built book: pages load nothing from a network, and links inside it lead somewhere.

Usage: python tests/check_html.py _build/html
"""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

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


def problems(root: Path) -> list[str]:
    """One line per thing that is wrong below a folder of HTML pages."""
    paths = (path for path in root.rglob("*.html") if "_static" not in path.parts)
    pages = {path.resolve(): Page(path.read_text()) for path in paths}
    found = [] if pages else [f"{root}: no pages"]
    for path, page in pages.items():
        name = path.relative_to(root.resolve())
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
        "\n".join(wrong) or "every page is complete without a network, every link leads somewhere"
    )
    sys.exit(bool(wrong))
