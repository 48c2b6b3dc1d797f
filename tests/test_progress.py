"""How far a study is, in words."""

import os

import pytest
from adaptive_routing.jobs.progress import describe_progress


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ([], "0 of 6 experiments done"),
        ([100], "1 of 6 experiments done"),
        ([100, 110], "2 of 6 experiments done, about 40 s left"),
        ([100, 400, 700], "3 of 6 experiments done, about 15 min left"),
        ([100, 4100], "2 of 6 experiments done, about 4.4 h left"),
        ([10, 20, 100, 110], "4 of 6 experiments done, about 20 s left"),  # two of an earlier run
        ([10, 20, 30, 100], "4 of 6 experiments done"),
        ([10, 20, 30, 40, 100, 110], "2 experiments done in this run"),  # the others may be stale
        ([100, 110, 120, 130, 140, 150], "6 experiments done in this run"),
    ],
)
def test_what_is_done_and_what_is_left(tmp_path, written, words):
    summaries = [tmp_path / f"{i}.json" for i in range(6)]
    for path, when in zip(summaries, written, strict=False):
        path.touch()
        os.utime(path, (when, when))
    now = written[-1] if written else 100
    assert describe_progress(summaries, started=50, now=now) == words


def test_time_that_has_passed_since_the_last_one_counts(tmp_path):
    summaries = [tmp_path / f"{i}.json" for i in range(3)]
    for path, when in zip(summaries, (100, 160), strict=False):
        path.touch()
        os.utime(path, (when, when))
    assert describe_progress(summaries, started=50, now=190).endswith("about 30 s left")
    assert describe_progress(summaries, started=50, now=900).endswith("about 10 s left")  # not "0 s"
