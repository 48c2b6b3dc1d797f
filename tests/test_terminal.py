"""What a person sees: one steady picture on a terminal, plain lines elsewhere, and how a run ends."""

import io
import json
import re
import threading
from types import SimpleNamespace

import pytest
from snakemake_logger_plugin_adaptive_routing.picture import Progress, draw
from snakemake_logger_plugin_adaptive_routing.plan import describe_job
from snakemake_logger_plugin_adaptive_routing.screen import PLAIN_SIGNS, SIGNS, Screen
from study_folder import REPOSITORY, StudyFolder
from terminal import Terminal

STUDY = {
    "strategies": {"topk": {"k": [8]}, "bh": {"max_k": [8], "alpha": [0.30]}},
    "datasets": {"hellaswag": None},
}
STAGE = re.compile(r"(?:✓|▸| ) (preparation|experiments|metrics|tables, figures, report) +[━─]+ +\d+ of \d+")
LAST_ROW = re.compile(r"  ([\d,]+ tokens/s in the last experiment; )?[\d a-z]+ so far")
STAGES = ["preparation", "experiments", "metrics", "tables, figures, report"]


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """A study that was run in a terminal of 80 columns, and the terminal."""
    study, terminal = StudyFolder(tmp_path_factory.mktemp("seen") / "study", **STUDY), Terminal(80)
    status = terminal.run(lambda file: study.begin("report", output=file, TERM="xterm"))
    assert status == 0, terminal.text()
    return study, terminal


SAID_BEFORE = (
    r"Using workflow specific profile .+ arguments\."
    "(writing the routing logs of 4 experiments takes .+ ?are free)?"
)


def test_a_terminal_shows_one_whole_picture_at_every_moment(seen):
    _, terminal = seen
    moments = [moment for moment in terminal.moments if "preparation" in moment]
    assert len(moments) > 10
    for moment in moments:
        lines = moment.splitlines()
        (first,) = [i for i, line in enumerate(lines) if "preparation" in line]
        rows = lines[first:]
        assert [STAGE.match(row)[1] for row in rows[:4]] == STAGES, moment
        if rows[4].startswith("  running: "):
            assert LAST_ROW.fullmatch(rows[5]), moment
            assert len(rows) == 6, moment
        else:  # its last state, with the answer below
            assert re.fullmatch(r"  [\d mins]+", rows[4]), moment
        # Above it is what Snakemake says before a run and the room that logs take, nothing else of the jobs.
        assert re.fullmatch(SAID_BEFORE, "".join(lines[:first])), moment


def test_the_picture_says_what_is_done_what_is_left_what_runs_and_how_fast(seen):
    _, terminal = seen
    text = "\n".join(terminal.moments)
    assert re.search(r"experiments +━+─+ +[123] of 4  about \d+ s left\n", text)
    assert re.search(r"running: 8experts_\w+ on (lambada|wikitext)( and 1 more)?, \d+ s\n", text)
    assert re.search(r"  [\d,]+ tokens/s in the last experiment; \d+ s so far", text)


def test_the_last_thing_a_run_shows_is_its_answer_and_the_report(seen):
    study, terminal = seen
    sentences = study.results("bh_routing_summary.txt").read_text()
    ending = terminal.text().partition("preparation")[2].split("\n\n", 1)[1]
    assert ending.split() == [*sentences.split(), "Report:", "results/bh_routing_report.html"]
    assert all(len(line) <= 80 for line in ending.splitlines())


def test_elsewhere_a_run_is_plain_lines(seen):
    study, _ = seen
    done = study.command("results/metrics/8experts_bh_a030_lambada.json", "--forcerun", "run_experiment")
    assert "\x1b" not in done.stderr + done.stdout
    room, first, second = [line for line in done.stderr.splitlines() if "profile" not in line]
    assert room.startswith("writing the routing logs of 1 experiment takes about ")
    assert re.fullmatch(r"1 of 1: 8experts_bh_a030 on lambada: lambada_accuracy .+ tokens/s", first)
    assert second == "metrics: all 1 done"


def test_an_interrupted_run_ends_with_the_command_that_goes_on(seen):
    study, _ = seen
    terminal = Terminal(110)
    status = terminal.run(
        lambda file: study.begin("--forcerun", "run_experiment", output=file, TERM="xterm"),
        interrupt_at="running: 8experts_",
    )
    text = terminal.text()
    assert status == 1
    for word in ("Traceback", "RuleException", "KeyboardInterrupt", "Error", "error"):
        assert word not in text
    ending = " ".join(text.partition(" of 4")[2].partition("Interrupted; ")[2].split())
    command = "python -m snakemake --forcerun run_experiment --snakefile"
    assert ending.startswith(f"what is done is kept, and this goes on with the rest: {command}")
    assert ending.endswith("--configfile study.yaml")


def test_a_failed_job_is_its_sentence_and_its_log(tmp_path):
    lines = (REPOSITORY / "resources/datasets/hellaswag.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines[:4]]
    rows[2]["label"] = "7"
    (tmp_path / "bad.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    study = StudyFolder(tmp_path / "study", datasets={"hellaswag": {"source": str(tmp_path / "bad.jsonl")}})
    done = study.command("results/datasets/hellaswag.json", check=False)
    assert done.returncode == 1
    first, second, last = [line for line in done.stderr.splitlines() if "profile" not in line]
    assert first == "error: datasets.hellaswag: row 2: label is '7'; allowed are 0 to 3"
    assert (
        second == "  in prepare dataset hellaswag; its log is results/job_logs/prepare_dataset/hellaswag.log"
    )
    going_on = "what is done is kept, and this goes on with the rest: python -m snakemake results/"
    assert last.startswith(f"1 job failed; {going_on}")
    assert not study.results("datasets", "hellaswag.json").exists()
    assert "label is '7'" in study.results("job_logs", "prepare_dataset", "hellaswag.log").read_text()


def test_a_dry_run_says_each_job_with_its_wildcards_and_its_reason(seen):
    study, _ = seen
    said = study.ask("--dry-run", "--forcerun", "run_experiment").stdout
    assert "run_experiment: config=8experts_bh_a030, dataset=lambada\n    Forced execution\n" in said
    assert re.search(r"^compute_metrics: .+\n    Input files updated by another job: .+$", said, re.M)
    assert said.count("Job stats") == 1
    assert "Job stats" in study.ask("--dry-run", "--quiet", "--forcerun", "run_experiment").stdout


def test_a_reason_names_a_few_files():
    reason = "Missing output files: c, b, a, d; Params have changed since last execution: x"
    record = SimpleNamespace(rule_name="tabulate", wildcards={}, reason=reason)
    assert describe_job(record) == (
        "tabulate\n    Missing output files: a, b and 2 more\n    Params have changed since last execution: x"
    )


# The picture and the screen alone


def progress(done=(4, 12, 11, 0)):
    """A run in the middle."""
    asked = {"prepare_dataset": 4, "run_experiment": 60, "compute_metrics": 60, "write_report": 7}
    one = Progress(dict(zip(asked, zip(asked.values(), done, strict=True), strict=True)), now=100)
    one.start(1, "run_experiment", {"config": "16experts_bh_a030", "dataset": "wikitext"}, 100)
    one.finish(1, 110)
    one.start(2, "run_experiment", {"config": "64experts_bh_a060_ncentred", "dataset": "arc_challenge"}, 110)
    one.start(3, "compute_metrics", {"config": "16experts_bh_a030", "dataset": "wikitext"}, 110)
    one.speed = "123,456 tokens/s"
    return one


@pytest.mark.parametrize("width", [40, 79, 109, 200])
@pytest.mark.parametrize("signs", [SIGNS, PLAIN_SIGNS])
def test_the_picture_fits_and_has_all_of_it(width, signs):
    rows = ["".join(text for text, _ in row) for row in draw(progress(), width, signs, now=112)]
    assert len(rows) == 6
    if width > 40:
        assert all(len(row) <= width for row in rows)
        assert rows[1].endswith("13 of 60  about 8 min left")
    assert "64experts_bh_a060_ncentred on arc_challenge and 1 more, 2 s" in rows[4]
    assert rows[5] == "  123,456 tokens/s in the last experiment; 12 s so far"


class Stream(io.StringIO):
    """A terminal's side of a screen."""

    encoding = "utf-8"

    def fileno(self):
        return 99


def test_a_screen_that_becomes_narrower_shows_one_picture(monkeypatch):
    size = SimpleNamespace(columns=100, lines=24)
    monkeypatch.setattr("os.get_terminal_size", lambda *_: (size.columns, size.lines))
    stream = Stream()
    screen = Screen(stream, threading.RLock(), lambda width: [[("x" * 90, None)], [("y", None)]], False)
    screen.say("first")
    assert stream.getvalue().count("\x1b[2A") == 0
    stream.truncate(0)
    screen.say("second")
    assert "\x1b[2A" in stream.getvalue()
    size.columns = 50  # the terminal has broken the first line in two
    stream.truncate(0)
    screen.say("third")
    assert "\x1b[3A" in stream.getvalue()
    assert "x" * 46 + "..." in stream.getvalue()
    assert "x" * 47 not in stream.getvalue()
    screen.close()
