"""How long a run will still take, and the sentence that an unfinished one ends with."""

import shlex

import pytest
from adaptive_routing.jobs.ending import how_to_go_on
from adaptive_routing.jobs.progress import duration, remaining_seconds


@pytest.mark.parametrize(
    ("finished", "left", "seconds"),
    [
        ([], 6, None),
        ([100], 0, None),
        ([100], 5, 250),  # it began at 50, and may have waited for its model
        ([100, 110], 4, 40),
        ([100, 400, 700], 3, 900),
        ([100, 4100], 4, 16_000),
        ([0, *range(1000, 1021)], 10, 10),  # the last ones say most of the next
        ([150] * 20, 40, 200),  # reported together, by a Slurm job
    ],
)
def test_the_pace_of_the_last_experiments_says_how_long_the_others_take(finished, left, seconds):
    now = finished[-1] if finished else 100
    assert remaining_seconds(finished, 50, left, now) == seconds


def test_time_that_has_passed_since_the_last_one_counts():
    assert remaining_seconds([100, 160], 50, 1, now=190) == 30
    assert remaining_seconds([100, 160], 50, 1, now=900) == 0


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "10 s"), (44, "40 s"), (89, "90 s"), (900, "15 min"), (16_000, "4.4 h")]
)
def test_durations_are_as_rough_as_they_are_known(seconds, words):
    assert duration(seconds) == words


def test_the_command_that_goes_on_is_the_one_that_was_typed():
    options = ["--config", "evaluation={max_samples: 3}", "results/a file"]
    said, _, command = how_to_go_on("Interrupted", ["/x/snakemake/__main__.py", *options]).partition(": ")
    assert said.startswith("Interrupted; ")
    assert shlex.split(command) == ["python", "-m", "snakemake", *options]
    other = how_to_go_on("Interrupted", ["/some where/snakemake"])
    assert shlex.split(other.partition(": ")[2]) == ["/some where/snakemake"]
