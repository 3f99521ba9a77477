"""How long work will take: by which steps it is told, and in which unit."""

import pytest

from fpmc import forecast
from fpmc.forecast import Forecast, duration


def test_it_is_told_once_and_not_by_the_first_step():
    tell = Forecast("work", "row")
    assert tell(10, 60.0, 90) is None  # which compiles, and says nothing of the others
    assert tell(20, 60.0 + forecast.MEASURED / 2, 80) is None
    assert tell(40, 66.0, 1000) == "work: about 3 minutes to go (0.2 s a row, by the first 30)"
    assert tell(50, 68.0, 50) is None


@pytest.mark.parametrize(
    ("left", "most", "told"), [(1e9, 30.0, "30 seconds"), (3.0, 30.0, "9 s"), (5.0, -1.0, "0 s")]
)
def test_it_is_what_is_left_or_the_time_that_there_is(left, most, told):
    tell = Forecast("work", "step")
    tell(1, 1.0, left)
    assert tell(2, 4.0, left, most).startswith(f"work: about {told}")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (5, "5 seconds"),
        (119, "119 seconds"),
        (600, "10 minutes"),
        (9000, "2 hours"),
        (9e5, "10 days"),
    ],
)
def test_durations_are_told_in_a_unit_that_fits(seconds, words):
    assert duration(seconds) == words
