"""A headless Chromium, where one is installed: it prints the book, and measures its pages.

As a script, this fails with the reason where there is none.
"""

import os
import shutil
import subprocess
import sys
import tempfile

NAMES = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "chrome",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
)
QUIET = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
MISSING = (
    f"no Chromium: got none of {', '.join(NAMES)}, wanted one on the path, or the environment "
    "variable CHROMIUM to name it (Debian and Ubuntu: apt install chromium)"
)


def find() -> str | None:
    """The program, or None: what the environment variable ``CHROMIUM`` names, or a usual name."""
    named = os.environ.get("CHROMIUM")
    return next(
        (path for name in ([named] if named else NAMES) if (path := shutil.which(name))), None
    )


def run(program: str, *arguments: str, seconds: float = 600) -> str:
    """Run it with an empty profile, and return what it writes to standard output.

    Raises:
        RuntimeError: If it fails, with what it said.
    """
    with tempfile.TemporaryDirectory() as profile:
        done = subprocess.run(
            [program, *QUIET, f"--user-data-dir={profile}", *arguments],
            capture_output=True,
            text=True,
            timeout=seconds,
        )
    if done.returncode:
        raise RuntimeError(f"{program}: got status {done.returncode}, wanted 0\n{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(None if find() else MISSING)
