"""Names and texts that are markup, in the pages: shown as they are, and never obeyed."""

import json

import pytest
import results_tables
import synthetic
import test_report
from adaptive_routing.analysis import routing_summary
from adaptive_routing.analysis.metrics import HEAD
from adaptive_routing.analysis.study import make_study
from adaptive_routing.atlas.page import make_page
from adaptive_routing.figures.panels import PANELS
from adaptive_routing.report import words
from adaptive_routing.report.html import to_html
from adaptive_routing.report.markdown import write_markdown
from adaptive_routing.routing_log import RoutingLog
from adaptive_routing.system.json_files import read_json
from adaptive_routing.system.tensor_files import TensorFile
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from study_folder import StudyFolder

SCRIPT = "<script>document.title = 'obeyed'</script>"
MARKUP = f"</code></script>{SCRIPT}![i](http://a.invalid/i.png)[l](javascript:alert(1))`x`|**b** &amp;"
HIDDEN = "\x07\u202e\ud800"


def opened(browser, path):
    browser.problems.clear()
    browser.requests.clear()
    browser.open(path)
    browser.wait_for("document.readyState === 'complete'")


def assert_obeyed_nothing(browser):
    assert browser.problems == []
    assert {url.partition(":")[0] for url in browser.requests} <= {"file", "data", "blob"}
    assert "obeyed" not in browser.run("document.title").replace("document.title = 'obeyed'", "")
    assert browser.run("document.querySelectorAll('a[href^=javascript], img[src^=http]').length") == 0


def renamed(study, old, new):
    """The study with another name of a data set."""
    frames = []
    for name in ("experiments", "configurations", "layers", "comparisons"):
        table = getattr(study, name).rename(columns=lambda column: column.replace(old, new))
        for column in {"dataset", "metric"} & set(table):
            table[column] = table[column].str.replace(old, new, regex=False)
        frames.append(table)
    return make_study(*frames, study.baseline)


def test_the_report_shows_markup_as_text(browser, tmp_path):
    dataset = "<em>data</em><script>alert(2)</script>![j](http://a.invalid/j.png)"
    study = renamed(results_tables.study(), "lambada", dataset)
    for name in ("page", *PANELS):
        Figure(figsize=(0.2, 0.2)).savefig(tmp_path / f"{name}.png")
    summaries = [test_report.summary(one, device=MARKUP + HIDDEN) for one in study.datasets]
    for one in summaries:
        one["provenance"]["model"]["name"] = f"{MARKUP}{HIDDEN}\n\n# heading\n```"
    settings = test_report.load_study_settings()
    settings["model"]["name"] = f"{MARKUP}{HIDDEN}\n```\n</details>{SCRIPT}"
    panels = [tmp_path / f"{panel}.png" for panel in PANELS]
    text = write_markdown(
        study, summaries, settings, tmp_path / "page.png", panels, tmp_path,
        atlas=tmp_path / "atlas.html", model_note=f"{MARKUP}{HIDDEN} it is",
    )  # fmt: skip
    (tmp_path / "report.md").write_text(text, encoding="utf-8")  # no lone surrogate is left
    (tmp_path / "report.html").write_text(to_html(text, tmp_path), encoding="utf-8")
    opened(browser, tmp_path / "report.html")
    assert_obeyed_nothing(browser)
    assert browser.run("document.querySelectorAll('script, h1 ~ h1').length") == 0
    assert (
        browser.run("[...document.querySelectorAll('em')].filter((one) => one.textContent === 'data').length")
        == 0
    )
    said = browser.run("document.body.textContent")
    assert f"About the model. {MARKUP}⟨U+0007⟩⟨U+202E⟩⟨U+D800⟩ it is" in " ".join(said.split())
    assert f"Model {MARKUP.replace('`', chr(39)).replace('|', '∣')}⟨U+0007⟩" in said
    assert f"{dataset} accuracy" in said
    # What follows the settings is still below them and not in a fence that they left open.
    assert browser.run("document.querySelectorAll('details:not(.picture) pre').length") == 1


@pytest.mark.parametrize("missing", [False, True])
def test_the_atlas_shows_markup_as_text(browser, tmp_path, missing):
    dataset = f"<b>bold</b>{SCRIPT}"
    study = synthetic.write_study(
        tmp_path, datasets=("lambada",), max_ks=(8,), alphas=(0.3, 0.6), num_experts=12, num_layers=2
    )
    paths = []
    for json_path, tensors_path in zip(study.summaries, study.tensors, strict=True):
        run = read_json(json_path)
        with TensorFile(tensors_path) as tensors:
            arrays, shown = routing_summary.summarize_routing(tensors, run["samples"])
        paths.append(tmp_path / "atlas" / f"{json_path.stem}.safetensors")
        head = {key: run[key] for key in HEAD} | {"dataset": dataset}
        if missing and len(paths) > 1:
            head["dataset"] = "other"
        routing_summary.write_routing_summary(paths[-1], head, arrays, [f"{SCRIPT} {i}" for i in shown])
    model = {"name": f"a/{MARKUP}{HIDDEN}", "folder": str(tmp_path)}
    page = make_page(paths, model, study.baseline)
    (tmp_path / "atlas.html").write_text(page, encoding="utf-8")
    opened(browser, tmp_path / "atlas.html")
    browser.wait_for("document.body?.dataset.shown")
    assert_obeyed_nothing(browser)
    assert browser.run("document.querySelector('h1').textContent") == (
        f"Routing atlas of a/{MARKUP}⟨U+0007⟩⟨U+202E⟩⟨U+D800⟩"
    )
    assert browser.run("document.querySelectorAll('main b, main script, header script').length") == 0
    option = browser.run("document.querySelector('[data-state=dataset]').selectedOptions[0].text")
    assert option.startswith(f"<b>bold</b>{SCRIPT}")
    assert SCRIPT in browser.run("document.querySelector('[data-state=sample]').textContent")
    if missing:
        said = browser.run("document.querySelector('#counts-b .annotation').textContent")
        assert f"on <b>bold</b>{SCRIPT}" in said


@given(st.text(alphabet=st.characters(categories=None), max_size=20))
def test_escaped_text_is_read_back_from_the_page(text):
    page = to_html(
        f"# title\n\nbegin {words.escaped(text)} end\n\n| a |\n| --- |\n| {words.code(text)} |", "."
    )
    assert page.count("<tr>") == 2 and page.count("<p>") == 1
    page.encode("utf-8")


def test_a_whole_study_of_markup_is_shown_as_text(browser, tmp_path):
    """A model's folder and rows, from the settings to the three pages."""
    # Snakemake's page breaks at "</script>" in a rule's input, so the folder's name has another element.
    image = "<img src=x onerror=\"document.title = 'obeyed'\">"
    name = f"models/m{image}[l](javascript:alert(3))**b**\x07"
    folder = tmp_path / "study"
    model = folder / name
    model.parent.mkdir(parents=True)
    model.symlink_to(ROOT / "resources/embedded_model")
    row = f"{MARKUP} {image}\x07\u202e and at last the"
    rows = "".join(json.dumps({"text": f"{row} {word}"}) + "\n" for word in ("spade", "ring", "</script>"))
    (folder / "rows.jsonl").write_text(rows)
    study = StudyFolder(
        folder,
        model={"name": name},
        datasets={"wikitext": None, "hellaswag": None, "lambada": {"source": "rows.jsonl"}},
        strategies={"topk": {"k": [8]}, "bh": {"max_k": [8], "alpha": [0.3]}},
    )
    study.snakemake()
    study.snakemake("--report", "own.html")
    log = RoutingLog(study.results("logs/8experts_bh_a030_lambada_internal_routing.json"))
    assert log.sample(0).text_preview == MARKUP[:100]

    opened(browser, study.results("bh_routing_report.html"))
    assert_obeyed_nothing(browser)
    assert browser.run("document.querySelectorAll('script').length") == 0
    assert f"Model {name[:-1]}⟨U+0007⟩" in browser.run("document.body.textContent")

    opened(browser, study.results("routing_atlas.html"))
    browser.wait_for("document.body?.dataset.shown")
    assert_obeyed_nothing(browser)
    shown = browser.run("document.querySelector('#text-a .text').textContent")
    assert MARKUP in shown and "⟨U+0007⟩⟨E2" in shown  # a token may be part of a character
    assert browser.run("document.querySelectorAll('.text :not(p, span)').length") == 0

    opened(browser, folder / "own.html")
    browser.wait_for("document.body?.innerText.includes('Where to find what')")
    assert f"of the model {name[:-1]}⟨U+0007⟩;" in browser.run("document.body.innerText")
    assert browser.run("document.title").startswith("Snakemake")
    remote = "document.querySelectorAll('a[href*=\"alert(\"], img[src^=http]').length"
    assert browser.run(remote) == 0
    assert {url.partition(":")[0] for url in browser.requests} <= {"file", "data", "blob"}
