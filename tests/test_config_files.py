"""Config files that Snakemake itself would let pass, or end at with a traceback: each is one sentence."""

import re

import pytest
from adaptive_routing.settings.config_files import ConfigFileError, check_config_file, named_config_files
from adaptive_routing.settings.load import load_settings
from adaptive_routing.system.errors import InputError
from conftest import ROOT
from study_folder import StudyFolder
from test_settings import merged

GOOD = [
    "results: results\nmodel: {name: x}\n",
    "\ufeffresults: results\n",
    "a: &a {x: 1}\nb: {<<: *a, y: 1}\nc: [*a, *a]\n",
    '{"results": "x", "model": {"name": "y"}}',
    '{\n\t"results": "x"\n}',
    "1: a\n'1': b\n",
    "__use_yte__: true\n?if True:\n  a: 1\n?if True:\n  b: 1\n",
]
WRONG = {
    "twice": (b"a: 1\nb: 2\na: 3\n", "line 3: the key a stands there for the second time, after line 1"),
    "twice below": (
        b"evaluation:\n  max_samples: 3\n  max_samples: 4\n",
        r"line 3: the key evaluation\.max_samples",
    ),
    "twice in a list": (b"a:\n- {x: 1, x: 2}\n", r"the key a\[0\]\.x stands there"),
    "UTF-16": ("a: 1\n".encode("utf-16"), r"is not UTF-8 \(byte 1 is 0xff\)"),
    "Latin-1": ("a: Zürich\n".encode("latin-1"), r"is not UTF-8 \(byte 5 is 0xfc\)"),
    "cyclic": (b"results: &a\n  b: *a\n", r"results\.b holds itself"),
    "broken": (b"a: [1,\n", "line 2 is not YAML"),
    "list": (b"- 1\n", "holds a list, but must hold settings"),
    "empty": (b"", "holds nothing, but must"),
    "deep": (b"[" * 20_000, "is not YAML"),
    "control character": (b"a: \x01\n", "is not YAML"),
}


@pytest.mark.parametrize("text", GOOD)
def test_files_that_are_right(tmp_path, text):
    path = tmp_path / "study.yaml"
    path.write_text(text, encoding="utf-8")
    check_config_file(path)


@pytest.mark.parametrize("name", WRONG)
def test_files_that_are_wrong(tmp_path, name):
    content, sentence = WRONG[name]
    path = tmp_path / "study.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigFileError, match=sentence) as error:
        check_config_file(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_a_file_that_is_not_there(tmp_path):
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(ConfigFileError, match=rf"config file {path} cannot be read: "):
            check_config_file(path)


def test_aliases_of_aliases_take_no_time(tmp_path):
    path = tmp_path / "study.yaml"
    lines = ["a0: &a0 {x: 1}"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30)]
    path.write_text("\n".join(lines))
    check_config_file(path)


@pytest.mark.parametrize("path", [ROOT / "config.yaml", *sorted(ROOT.glob("configs/*.yaml"))])
def test_the_projects_own_files_are_right(path):
    check_config_file(path)


def test_files_of_a_command_line():
    words = [
        "all",
        "--cores",
        "2",
        "--configfile",
        "a.yaml",
        "b.yaml",
        "--dry-run",
        "c",
        "--configfiles=d.yaml",
        "-n",
    ]
    assert list(named_config_files(words)) == ["a.yaml", "b.yaml", "d.yaml"]


@pytest.mark.parametrize("name", ["UTF-16", "cyclic", "twice"])
def test_a_run_ends_with_the_sentence(tmp_path, name):
    study = StudyFolder(tmp_path / "study")
    content, sentence = WRONG[name]
    (study.folder / "study.yaml").write_bytes(content)
    done = study.snakemake("--dry-run", check=False)
    assert done.returncode == 1
    lines = [
        line for line in (done.stdout + done.stderr).splitlines() if not line.startswith("Using workflow")
    ]
    assert len(lines) == 1 and re.match(rf"error: study\.yaml.*{sentence}", lines[0]), lines


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("evaluation.max_samples", {"evaluation": {"max_samples": 2**31}}),
        ("strategies.topk.k[0]", {"strategies": {"topk": {"k": [10**5000]}}}),
        ("controls.seed", {"controls": {"seed": -(2**70)}}),
    ],
)
def test_whole_numbers_too_large_for_anything(tmp_path, key, change):
    with pytest.raises(InputError) as error:
        load_settings(merged(change), tmp_path)
    assert str(error.value).startswith(f"{key} is ") and "must be at most 2147483647" in str(error.value)


@pytest.mark.parametrize("name", ["m\ud800", "\udc80"])  # the second as Python reads a name that is no UTF-8
def test_text_that_no_file_can_hold(tmp_path, name):
    with pytest.raises(InputError) as error:
        load_settings(merged({"model": {"name": name}}), tmp_path)
    assert str(error.value) == f"model.name is {name!r}, but must hold no half of a character"


@pytest.mark.parametrize(("name", "found"), [("models/m</Script>", "</Script"), ("a<!--b", "<!--")])
def test_a_path_that_would_break_snakemakes_report(tmp_path, name, found):
    with pytest.raises(InputError) as error:
        load_settings(merged({"datasets": {"wikitext": {"source": name}}}), tmp_path)
    assert str(error.value) == (
        f"datasets.wikitext.source is '{name}', but must not hold {found}: it breaks Snakemake's report"
    )


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("./x", "x"),
        ("a//b/", "a/b"),
        ("a/../b", "b"),
        ("~/x", "HOME/x"),
        ("~", "HOME"),
        (".", "."),
        ("/a//b", "/a/b"),
    ],
)
def test_results_are_where_a_shell_would_put_them(tmp_path, monkeypatch, written, meant):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    settings = load_settings(merged({"results": written}), ROOT)
    assert settings["results"] == meant.replace("HOME", str(tmp_path / "home"))


def test_a_home_folder_in_other_paths(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(ROOT))
    config = merged(
        {
            "model": {"name": "~/resources/embedded_model"},
            "datasets": {"wikitext": {"source": "~/resources/datasets/wikitext.jsonl"}},
        }
    )
    settings = load_settings(config, ROOT)
    assert settings["model"]["name"] == str(ROOT / "resources/embedded_model")
    assert settings["datasets"]["wikitext"]["source"] == str(ROOT / "resources/datasets/wikitext.jsonl")


def test_results_in_the_working_directory(tmp_path):
    study = StudyFolder(tmp_path / "study", results="./")
    assert "Missing output files: model.json" in study.dry_run()
