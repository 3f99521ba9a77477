"""nbval on the stored notebooks, with a kernel that replays what the book's cache holds.

A stored notebook is compared with its chapter's outputs, which are computed where the cache does
not have them. ``pytest --nbval-lax tests/notebooks`` is nbval alone: it runs the cells again.
"""

import statistics
from collections import deque

import chapters
import pytest
from nbval.plugin import IPyNbFile

MOST = 4
"""How many times as long as chapters take on average one may take."""


def pytest_collect_file(file_path, parent):
    """Compare a stored notebook, unless nbval itself was asked to."""
    options = parent.config.option
    if file_path.suffix == ".ipynb" and not (options.nbval or options.nbval_lax):
        return Stored.from_parent(parent, path=file_path)


class Stored(IPyNbFile):
    """A stored notebook: one test per cell, and one of the time that the chapter took."""

    def collect(self):
        self.compare_outputs = False  # but where a tag says so
        yield from super().collect()
        yield Time.from_parent(self, name="time")

    def setup(self):
        self.executed = chapters.outputs(chapters.BOOK / f"{self.path.stem}.md")
        self.kernel = Replay(self.executed.notebook)
        self.setup_sanitize_files()


class Replay:
    """What nbval asks of a kernel, answered from an executed notebook."""

    def __init__(self, notebook):
        self.cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
        self.messages = deque()

    def execute_cell_input(self, source, allow_stdin=None):
        """Queue the messages of the next cell that has this source; cells come in order."""
        at = next((i for i, cell in enumerate(self.cells) if cell.source == source), None)
        assert at is not None, f"the chapter has no such cell here: run make notebooks\n{source}"
        cell = self.cells[at]
        del self.cells[: at + 1]
        outputs = cell.outputs
        if cell.execution_count is None:
            text = "not run, since a cell before it failed"
            outputs = [{"output_type": "error", "ename": "", "evalue": text, "traceback": [text]}]
        idle = {"output_type": "status", "execution_state": "idle"}
        for content in (*outputs, idle):
            message = {"msg_type": content["output_type"], "content": content}
            self.messages.append(message | {"parent_header": {"msg_id": id(cell)}})
        return id(cell)

    def get_message(self, stream, timeout=None):
        return self.messages.popleft()

    def await_reply(self, msg_id, timeout=None):
        """The reply is there."""

    def await_idle(self, msg_id, timeout=None):
        """Drop what is left of a cell."""
        self.messages.clear()

    def is_alive(self):
        return True

    def stop(self):
        """Nothing runs."""


class Time(pytest.Item):
    """No chapter takes far longer than the others: a ratio, as machines differ in seconds."""

    def runtest(self):
        spent = self.parent.executed.cpu_seconds
        known = filter(None, map(chapters.cached, chapters.chapters()))
        mean = statistics.mean([one.cpu_seconds for one in known])
        assert spent <= MOST * mean, f"{spent:.0f} s, and {mean:.0f} on average: see make times"

    def reportinfo(self):
        return self.path, 0, f"{self.path.name}: time"
