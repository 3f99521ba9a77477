"""The training loop alone, on a loss that has nothing to do with images."""

import os
import signal

import pytest
import torch

from fpmc import forecast
from fpmc.limits import ENDINGS, TERMINATED, OutOfTimeError
from fpmc.networks.training.loop import Loop

TRUTH = torch.tensor([1.0, -2.0, 3.0])


class Lines:
    """Noisy values of a linear function, seeded by where they are in the row of batches."""

    def __init__(self):
        self.at = 0

    def __next__(self):
        generator = torch.Generator().manual_seed(self.at)
        self.at += 1
        x = torch.randn(16, 3, generator=generator)
        return x, x @ TRUTH + 0.1 * torch.randn(16, generator=generator)

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, state):
        self.at = state["at"]


def fit(path, budget=60, hook=None, **options):
    """A loop that fits a line, with dropout, so that the global generator matters."""
    model = torch.nn.Linear(3, 1, bias=False)
    torch.nn.init.zeros_(model.weight)

    def step(batch):
        x, y = batch
        if hook is not None:
            hook(loop)
        dropped = torch.nn.functional.dropout(x, 0.1)
        return (model(dropped)[:, 0] - y).square().mean()

    loop = Loop(
        step=step,
        batches=Lines(),
        optimizer=torch.optim.Adam(model.parameters(), lr=0.1),
        parts={"model": model},
        identity={"what": "line"},
        path=path,
        budget=budget,
        row_every=lambda count: 20,
        **options,
    )
    return loop, model


def run(path, **options):
    loop, model = fit(path, **options)
    loop.resume()
    loop.run(progress=False)
    return loop, model.weight.detach()


def at(step, action):
    def hook(loop):
        if loop.done == step:
            action()

    return hook


def test_it_minimises_whatever_the_step_returns(tmp_path):
    loop, found = run(None, budget=300)
    # dropping a tenth of x shrinks the best answer by as much
    torch.testing.assert_close(found[0], 0.9 * TRUTH, atol=0.2, rtol=0)
    assert [row["steps"] for row in loop.rows] == list(range(20, 301, 20))
    assert loop.rows[-1]["loss"] < 0.5 * loop.rows[0]["loss"]


@pytest.mark.parametrize("step", [0, 7, 20, 59])
@pytest.mark.parametrize("number", ENDINGS)
def test_told_to_end_it_saves_what_was_done_and_ends_with_its_status(step, number, tmp_path):
    if signal.getsignal(number) == signal.SIG_IGN:
        pytest.skip("these tests run where it is ignored")
    whole = run(tmp_path / "whole.pt")[1]
    before = signal.getsignal(number)
    told = at(step, lambda: os.kill(os.getpid(), number))
    loop, _ = fit(tmp_path / "told.pt", hook=told)
    with pytest.raises(SystemExit) as ended:
        loop.run(progress=False)
    assert ended.value.code == TERMINATED == 143
    assert loop.done == step + 1
    assert signal.getsignal(number) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["told.pt", "whole.pt"]
    assert torch.equal(run(tmp_path / "told.pt")[1], whole)


def test_a_limit_stops_after_a_step_and_calls_in_a_row_end_as_one(tmp_path):
    whole = run(tmp_path / "whole.pt", budget=9)
    for step in range(1, 9):
        loop, _ = fit(tmp_path / "parts.pt", budget=9)
        loop.resume()
        with pytest.raises(OutOfTimeError, match=f"stopped after {step} steps, .* goes on"):
            loop.run(limit=0.0, progress=False)
    loop, model = fit(tmp_path / "parts.pt", budget=9)
    assert loop.resume()
    loop.run(limit=0.0, progress=False)
    assert torch.equal(model.weight, whole[1])
    assert [row["loss"] for row in loop.rows] == [row["loss"] for row in whole[0].rows]


def test_another_run_s_state_is_refused_and_what_differs_is_named(tmp_path):
    run(tmp_path / "state.pt")
    loop, _ = fit(tmp_path / "state.pt")
    loop.identity = {"what": "curve"}
    with pytest.raises(ValueError, match=r"state\.pt: holds a run with what='line'; wanted .*'cur"):
        loop.resume()


def test_rates_columns_and_hooks_are_the_callers(tmp_path):
    rates, seen, saved = [], [], []

    def rate(share):
        rates.append(share)
        return 0.1

    options = {"rate": rate, "after": seen.append, "save": lambda: saved.append(1)}
    loop, _ = run(None, budget=40, validate=lambda: {"more": 3.0}, **options)
    assert rates == [done / 40 for done in range(40)]
    assert seen == list(range(1, 41))
    assert [row["more"] for row in loop.rows] == [3.0, 3.0]
    assert saved == [1]


def test_it_says_how_long_it_will_take(monkeypatch, capsys):
    monkeypatch.setattr(forecast, "MEASURED", 1e-6)
    loop, _ = fit(None, description="fitting")
    loop.run()
    assert "fitting: about 0 seconds to go" in capsys.readouterr().err


def test_no_budget_is_an_error():
    with pytest.raises(ValueError, match=r"budget: got 0 steps, 0\.0 minutes"):
        fit(None, budget=0)
