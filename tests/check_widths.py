"""Check in a headless Chromium that nothing of the built book is wider than its page.

Usage: python tests/check_widths.py _build/html

Every page is opened at the widths of a desk's screen and of a phone. A table or a formula may
scroll inside a box of its own on the phone alone. Without a Chromium this says so, and passes.
"""

import functools
import html
import http.server
import json
import re
import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "book" / "_ext"))
import browser

DESK, PHONE = 1400, 390
MEASURE = """<!doctype html><meta charset="utf-8"><body><script>
const scrolls = (node) => ["auto", "scroll"].includes(getComputedStyle(node).overflowX);
function box(node, article) {
  for (let at = node; at !== article; at = at.parentElement) if (scrolls(at)) return at;
  return null;
}
const named = (node) => `${node.localName}: ${(node.alt ?? node.textContent).trim().slice(0, 50)}`;
function tooWide(view, width, desk) {
  const page = view.document.documentElement, article = view.document.querySelector("article");
  const found = [];
  if (page.scrollWidth > page.clientWidth + 1) {
    const sticksOut = (node) => node.getBoundingClientRect().right > page.clientWidth + 1;
    const innermost = [...article?.querySelectorAll("*") ?? []].find((node) =>
      sticksOut(node) && !box(node, article) && ![...node.children].some(sticksOut));
    found.push(`the page, ${page.scrollWidth}, by ${named(innermost ?? page)}`);
  }
  for (const node of article?.querySelectorAll("table, img, pre, .math") ?? []) {
    const around = box(node, article);
    if (node.getBoundingClientRect().right > article.getBoundingClientRect().right + 1 && !around)
      found.push(`no box to scroll in, ${named(node)}`);
    const whole = node.localName === "table" || node.classList.contains("math");
    if (width === desk && whole && around?.scrollWidth > around?.clientWidth + 1)
      found.push(`${around.scrollWidth} in ${around.clientWidth}, ${named(node)}`);
  }
  return found.map((what) => ({ width, what }));
}
(async () => {
  const told = [];
  for (const page of PAGES) {
    const frame = document.body.appendChild(document.createElement("iframe"));
    frame.style = `border: 0; height: 900px; width: ${WIDTHS[0]}px`;
    frame.src = page;
    await new Promise((done) => { frame.onload = done; });
    const view = frame.contentWindow;
    await view.MathJax?.startup?.promise;
    for (const width of WIDTHS) {
      frame.style.width = `${width}px`;
      for (const one of tooWide(view, width, WIDTHS[0])) told.push({ page, ...one });
    }
    frame.remove();
  }
  document.body.innerHTML = "<pre id='told'></pre>";
  document.getElementById("told").textContent = JSON.stringify(told);
})();
</script>"""
TOLD = re.compile(r'<pre id="told">(.*?)</pre>', re.S)


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, and the page that measures its pages."""

    def __init__(self, *args, measure: str, **options):
        self.measure = measure.encode()
        super().__init__(*args, **options)

    def do_GET(self):
        """Answer with the measuring page, or with a file."""
        if self.path != "/measure":
            return super().do_GET()
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(self.measure)

    def log_message(self, *args):
        """Say nothing."""


def pages(root: Path) -> list[str]:
    """The pages of the book: those that show an article."""
    paths = (path for path in sorted(root.rglob("*.html")) if "_static" not in path.parts)
    return [path.relative_to(root).as_posix() for path in paths if "<article" in path.read_text()]


def problems(root: Path, program: str) -> list[str]:
    """One line per thing that is wider than its page."""
    if not pages(root):
        return [f"{root}: no pages"]
    measure = MEASURE.replace("PAGES", json.dumps([f"/{page}" for page in pages(root)]))
    measure = measure.replace("WIDTHS", json.dumps([DESK, PHONE]))
    handler = functools.partial(Handler, measure=measure, directory=root)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/measure"
        budget = "--virtual-time-budget=600000"
        dumped = browser.run(program, budget, "--dump-dom", address, seconds=1200)
        server.shutdown()
    told = TOLD.search(dumped)
    if told is None:
        return [f"{root}: got no measurement from {program}"]
    return [
        f"{one['page'].lstrip('/')}: at {one['width']} pixels: {one['what']}"
        for one in json.loads(html.unescape(told[1]))
    ]


if __name__ == "__main__":
    program = browser.find()
    if program is None:
        print(f"widths were not measured: {browser.MISSING}")
        sys.exit()
    wrong = problems(Path(sys.argv[1]).resolve(), program)
    print("\n".join(wrong) or "no page, table, picture or formula is wider than it should be")
    sys.exit(bool(wrong))
