"""Rows come from exactly the file or the commit that was asked for, and a change of either is noticed."""

import errno
import io
import json
import os
import shutil
from types import SimpleNamespace

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from adaptive_routing.data.rows import load_rows, open_rows
from adaptive_routing.system import content
from adaptive_routing.system.content import content_fingerprint
from adaptive_routing.system.errors import InputError
from hub_server import HubServer
from study_folder import StudyFolder

DATASET = "owner/data"


def parquet(*texts):
    """A parquet file of these texts."""
    buffer = io.BytesIO()
    pq.write_table(pa.table({"text": list(texts)}), buffer)
    return buffer.getvalue()


def files(*texts):
    """The files of a data set with a split `test`."""
    return {"README.md": b"# Data\n", "data/test-00000-of-00001.parquet": parquet(*texts)}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub on loopback, and empty caches."""
    with HubServer() as server:
        server.be_asked(monkeypatch, tmp_path)
        yield server


def texts_of(revision=None, split="test", subset=None):
    commit, rows = open_rows(DATASET, subset, split, revision, "datasets.wikitext")
    return commit, [row["text"] for row in rows]


def refused(*arguments, **options):
    """The sentence with which a data set is refused."""
    with pytest.raises(InputError) as error:
        list(texts_of(*arguments, **options))
    assert "\n" not in str(error.value)
    return str(error.value)


# Hub data sets


def test_a_revision_is_read_whatever_else_the_cache_holds(hub):
    first = hub.commit("dataset", DATASET, files("a"), "v1")
    second = hub.commit("dataset", DATASET, files("b"))
    assert texts_of(first) == texts_of("v1") == (first, ["a"])
    assert texts_of() == texts_of("main") == (second, ["b"])
    hub.close()
    assert texts_of(first) == texts_of("v1") == (first, ["a"])
    assert texts_of() == texts_of(second) == (second, ["b"])


def test_without_the_hub_another_commit_is_never_read(hub):
    first = hub.commit("dataset", DATASET, files("a"))
    second = hub.commit("dataset", DATASET, files("b"))
    texts_of(first)
    hub.close()
    for revision in (second, "main", None, "0" * 40):
        sentence = refused(revision)
        assert sentence.startswith("datasets.wikitext: ") and "the cache" in sentence


def test_a_revision_that_does_not_exist_is_refused(hub, monkeypatch):
    hub.commit("dataset", DATASET, files("a"))
    texts_of()
    assert "has no revision 'v9' on the hub" in refused("v9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set, and the cache" in refused("v9")
    assert texts_of()[1] == ["a"]


def test_a_second_run_asks_the_hub_for_the_commit_alone(hub):
    commit = hub.commit("dataset", DATASET, files("a"))
    texts_of()
    hub.requests.clear()
    texts_of()
    assert [path for _, path, _ in hub.requests] == [f"/api/datasets/{DATASET}/revision/main"]
    hub.requests.clear()
    texts_of(commit)
    assert hub.requests == []


def test_subsets_and_splits(hub):
    readme = (
        "---\nconfigs:\n"
        + "".join(
            f"- config_name: {name}\n  data_files:\n  - split: test\n    path: {name}.parquet\n"
            for name in ("one", "two")
        )
        + "---\n"
    )
    hub.commit(
        "dataset",
        DATASET,
        {"README.md": readme.encode(), "one.parquet": parquet("1"), "two.parquet": parquet("2")},
    )
    assert texts_of(subset="one")[1] == ["1"]
    assert texts_of(subset="two")[1] == ["2"]
    assert texts_of(subset="two")[1] == ["2"]
    assert "'one', 'two'" in refused(subset="three")
    assert refused(split="train", subset="one").startswith(
        "datasets.wikitext.split is 'train', but owner/data has test"
    )


@pytest.mark.parametrize("source", ["text", "json", "csv", "parquet", "imagefolder"])
def test_a_builder_of_the_library_is_no_data_set(source):
    with pytest.raises(InputError, match=rf"^datasets\.wikitext: '{source}' is neither owner/name"):
        open_rows(source, name="datasets.wikitext")


# Local files


@pytest.mark.parametrize(
    "name",
    ["data[1].jsonl", "q?.jsonl", "*.jsonl", "a::b.jsonl", "file:b.jsonl", "é ü#%20.jsonl", "{a,b}.jsonl"],
)
def test_a_file_is_read_by_its_very_name(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for other in ("data1.jsonl", "q1.jsonl", "b.jsonl", "a.jsonl", name):
        (tmp_path / other).write_text(json.dumps({"text": other}) + "\n")
    for source in (name, str(tmp_path / name)):
        assert list(load_rows(source)) == [{"text": name}]


def test_too_small_a_disk_for_the_copy_of_a_file_is_known_before(tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"text": "x" * 2000}) + "\n")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(InputError, match=r"^wikitext: the copy of .* needs 2 kB, but .* has 1 kB .*TMPDIR"):
        list(load_rows(str(path), name="wikitext"))


@pytest.mark.parametrize(
    ("error", "kind", "sentence"),
    [
        (OSError(errno.EFBIG, "File too large"), InputError, "^wikitext: the copy of .* cannot be written: "),
        (MemoryError("Unable to allocate"), MemoryError, "^Unable to allocate$"),
    ],
)
def test_a_lack_of_room_or_memory_is_no_fault_of_the_file(tmp_path, monkeypatch, error, kind, sentence):
    def fail(*_, **__):
        raise datasets.exceptions.DatasetGenerationError("wrapped") from error

    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"text": "x"}) + "\n")
    monkeypatch.setattr(datasets.ArrowBasedBuilder, "_prepare_split", fail)
    with pytest.raises(kind, match=sentence):
        list(load_rows(str(path), name="wikitext"))


def test_contents_decide(tmp_path, monkeypatch):
    path, other = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    path.write_bytes(b"a" * 1000)
    before = content_fingerprint([path])
    assert content_fingerprint([]) is None
    os.utime(path, (1, 1))
    assert content_fingerprint([path]) == before
    path.write_bytes(b"a" * 999 + b"b")
    assert content_fingerprint([path]) != before
    shutil.copy(path, other)
    assert content_fingerprint([other]) != content_fingerprint([path]) != content_fingerprint([path, other])
    assert content_fingerprint([tmp_path / "none"])
    # Large files are not read whole; their time stamp counts.
    monkeypatch.setattr(content, "WHOLE_BYTES", 10)
    large = tmp_path / "large"
    large.write_bytes(bytes(1 << 20))
    os.utime(large, ns=(5, 5))
    before = content_fingerprint([large])
    for change in (
        lambda: os.utime(large, ns=(4, 4)),
        lambda: large.write_bytes(bytes((1 << 20) - 1) + b"x"),
    ):
        change()
        assert content_fingerprint([large]) != before
        os.utime(large, ns=(5, 5))


def test_data_and_weights_replaced_by_older_files_are_noticed(tmp_path):
    """Of a study with copies of the embedded model and data, of which only these jobs have run."""
    study = StudyFolder(tmp_path / "study")
    for name in ("embedded_model", "datasets"):
        shutil.copytree(study.folder / "resources" / name, study.folder / name)
    study.configure(
        model={"name": "embedded_model"},
        datasets={name: {"source": f"datasets/{name}.jsonl"} for name in ("wikitext", "lambada")}
        | {"hellaswag": None},
    )
    made = [f"results/{name}.json" for name in ("model", "datasets/wikitext", "datasets/lambada")]
    study.snakemake(*made)
    assert study.plan(*made) == {}

    def replace(name, changed):
        path = study.folder / name
        before = path.read_bytes()
        path.write_bytes(changed(before))
        os.utime(path, (1, 1))
        return study.plan(*made), path.write_bytes(before)

    # The same bytes with another time stamp would be no change.
    assert replace("datasets/wikitext.jsonl", lambda text: text)[0] == {}
    assert replace("datasets/wikitext.jsonl", lambda text: text + b"\n")[0] == {"prepare_dataset": 1}
    plan, _ = replace("embedded_model/model.safetensors", lambda file: file[:-1] + bytes([file[-1] ^ 1]))
    assert plan == {"inspect_model": 1, "prepare_dataset": 2}
