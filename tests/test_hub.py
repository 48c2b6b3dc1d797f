"""Downloads from the hub: a fault is one sentence, nothing wrong is kept, and the next run goes on."""

import errno
import json
import os
import re
import shutil
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from adaptive_routing.data.rows import open_rows
from adaptive_routing.model.inspect import inspect_model
from adaptive_routing.model.tokenizer import load_tokenizer
from adaptive_routing.settings.load import load_settings
from adaptive_routing.system import hub as client
from adaptive_routing.system.errors import InputError
from conftest import ROOT, tiny_olmoe
from hub_server import HubServer
from snakemake_logger_plugin_adaptive_routing.picture import Progress, draw
from snakemake_logger_plugin_adaptive_routing.run import DOWNLOAD
from study_folder import StudyFolder
from test_settings import merged
from test_sources import files

MODEL, DATASET = "owner/small-moe", "owner/data"
# One of the three files that the weights are in.
SHARD = "model-00002-of-00003.safetensors"


@pytest.fixture(scope="module")
def model_files(tmp_path_factory):
    """A tiny model in three files of weights, {path: bytes}."""
    folder = tmp_path_factory.mktemp("model")
    tiny_olmoe(intermediate_size=256).save_pretrained(folder, max_shard_size="2MB")
    for path in (ROOT / "resources/embedded_model").glob("tokenizer*"):
        shutil.copy(path, folder)
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert SHARD in found and len(found[SHARD]) > 1 << 20
    return found


@pytest.fixture
def hub(tmp_path, monkeypatch, model_files):
    """A hub on loopback with a model and a data set, and empty caches."""
    with HubServer() as server:
        server.be_asked(monkeypatch, tmp_path)
        monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1 << 16)
        monkeypatch.setattr("adaptive_routing.system.hub_faults._PAUSE_SECONDS", 0.01)
        pause_between_attempts(monkeypatch, 0.01)
        server.model = server.commit("model", MODEL, model_files)
        server.data = server.commit("dataset", DATASET, files("a"))
        yield server


def pause_between_attempts(monkeypatch, seconds):
    """Have the library try a download again so soon."""
    clock = SimpleNamespace(sleep=lambda _: time.sleep(seconds))
    monkeypatch.setattr("huggingface_hub.file_download.time", clock)


@pytest.fixture
def cache(tmp_path):
    """The model's folder in the cache."""
    return tmp_path / "hub/models--owner--small-moe"


def read_data(revision=None):
    return list(open_rows(DATASET, None, "test", revision, "datasets.wikitext")[1])


def refused(work, *arguments):
    """The sentence with which something is refused."""
    with pytest.raises(InputError) as error:
        work(*arguments)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(("model.name", "datasets.wikitext"))
    return str(error.value)


def blobs(cache):
    return {path.name: path.stat().st_size for path in (cache / "blobs").iterdir()}


def test_a_model_is_fetched_whole_and_known_by_its_content(hub, cache, model_files, tmp_path):
    info = inspect_model(MODEL)
    assert (info["name"], info["commit"]) == (MODEL, hub.model)
    folder = Path(info["folder"])
    assert folder == cache / "snapshots" / hub.model
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == model_files
    assert (folder / SHARD).is_symlink() and len(load_tokenizer(info)) > 96
    assert (cache / "refs/main").read_text() == hub.model
    # The hub's own client finds it.
    from huggingface_hub import hf_hub_download

    assert hf_hub_download(MODEL, SHARD, local_files_only=True) == str(folder / SHARD)
    fingerprint = info["fingerprint"]
    for path, content in model_files.items():
        (tmp_path / path).write_bytes(content)
    assert inspect_model(tmp_path)["fingerprint"] == fingerprint
    hub.close()
    assert inspect_model(MODEL) == info


def test_what_was_received_before_a_break_is_kept(hub, cache, model_files):
    hub.faults.cut_after = 1 << 18
    sentence = refused(inspect_model, MODEL)
    assert "broke off" in sentence
    kept = blobs(cache)
    partial = {name: size for name, size in kept.items() if name.endswith(".partial")}
    assert partial and all(size >= 1 << 18 for size in partial.values())
    assert "only a part of it" in sentence
    hub.requests.clear()
    hub.faults.cut_after = None
    assert inspect_model(MODEL)["commit"] == hub.model
    ranges = [wanted for _, path, wanted in hub.requests if path.endswith(".safetensors")]
    assert all(wanted and wanted != "bytes=0-" for wanted in ranges)
    assert not any(name.endswith(".partial") for name in blobs(cache))


def test_a_hub_that_knows_no_ranges(hub, model_files):
    hub.faults.cut_after = 1 << 18
    refused(inspect_model, MODEL)
    hub.faults.cut_after, hub.faults.ignores_ranges = None, True
    folder = Path(inspect_model(MODEL)["folder"])
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == model_files


def test_a_connection_that_breaks_now_and_then_is_no_fault(hub, monkeypatch):
    hub.faults.cut_after = 1 << 19
    pause_between_attempts(monkeypatch, 0.5)
    threading.Timer(1, lambda: setattr(hub.faults, "cut_after", None)).start()
    assert inspect_model(MODEL)["commit"] == hub.model


def test_a_connection_that_is_reset(hub):
    hub.faults.reset_after = 1 << 19
    info = inspect_model(MODEL)  # each time half a megabyte comes
    assert any(wanted for _, _, wanted in hub.requests)
    hub.faults.reset_after = 0
    assert inspect_model(MODEL) == info
    assert re.search(r"broke off the connection \(.* reset by peer\), and the cache", refused(read_data))


@pytest.mark.parametrize("fault", ["stall", "unreachable"])
def test_a_hub_that_is_gone_half_way(hub, cache, fault, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    hub.faults.stall_after = 1 << 18
    if fault == "unreachable":
        threading.Timer(0.5, hub.close).start()
    sentence = refused(inspect_model, MODEL)
    said = "did not answer within 0.3 s" if fault == "stall" else "cannot be reached"
    assert said in sentence or "broke off" in sentence
    if fault == "stall":
        hub.faults.stall_after = None
        assert inspect_model(MODEL)["commit"] == hub.model
    else:
        assert f"{said}" in refused(inspect_model, MODEL)


def test_a_hub_that_never_answers(hub):
    hub.faults.is_silent = True
    started = time.monotonic()
    for work in (lambda: inspect_model(MODEL), read_data):
        assert "did not answer within 1 s, and the cache" in refused(work)
    assert time.monotonic() - started < 5


def test_a_silent_hub_and_a_pinned_commit_in_the_cache(hub, capsys):
    info, rows = inspect_model(MODEL, hub.model), read_data(hub.data)
    capsys.readouterr()
    hub.faults.is_silent = True
    hub.requests.clear()
    assert (inspect_model(MODEL, hub.model), read_data(hub.data)) == (info, rows)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == len(hub.requests) == 1
    assert "did not answer within 1 s; owner/small-moe is read from the cache" in said[0]


@pytest.mark.parametrize("path", [SHARD, "config.json"])
def test_a_wrong_bit_is_not_accepted(hub, cache, path, model_files):
    hub.faults.wrong_bit = {path}
    assert f"{path} of the model {MODEL} came damaged from the hub" in refused(inspect_model, MODEL)
    assert not (cache / "snapshots" / hub.model / path).exists()
    hub.faults.wrong_bit = set()
    info = inspect_model(MODEL)
    assert Path(info["folder"], path).read_bytes() == model_files[path]


@pytest.mark.parametrize("path", [SHARD, "tokenizer.json"])
def test_a_wrong_bit_in_the_cache_is_found(hub, cache, path, model_files):
    info = inspect_model(MODEL)
    file = Path(info["folder"], path)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    sentence = refused(inspect_model, MODEL)
    assert str(file) in sentence and "run again" in sentence
    assert inspect_model(MODEL) == info
    assert file.read_bytes() == model_files[path]


def test_content_in_the_store_of_all_repositories(hub, cache, model_files):
    """There the library names it by a hash of another kind."""
    info = inspect_model(MODEL)
    for name in blobs(cache):
        blob, stored = cache / "blobs" / name, cache.parent / "blobs/ab" / f"{name:0<64.60}"
        stored.parent.mkdir(parents=True, exist_ok=True)
        blob.rename(stored)
        blob.symlink_to(os.path.relpath(stored, blob.parent))
    assert inspect_model(MODEL) == info
    with open(Path(info["folder"], SHARD), "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\0")
    assert SHARD in refused(inspect_model, MODEL)
    assert inspect_model(MODEL) == info


def test_too_small_a_disk_is_known_before(hub, cache, monkeypatch, model_files):
    usage = SimpleNamespace(free=10**5)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    total = sum(map(len, model_files.values()))
    sentence = refused(inspect_model, MODEL)
    assert f"needs {total / 1e6:.1f} MB" in sentence and "has 100 kB free" in sentence
    assert not any("resolve" in path for _, path, _ in hub.requests)
    usage.free = 10**9
    inspect_model(MODEL)


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "the disk quota is used up"),
        (errno.EFBIG, "the file is larger than `ulimit -f` or the file system allows"),
        (errno.EACCES, f"cannot be written to the cache .*{os.strerror(errno.EACCES)}"),
    ],
)
def test_a_disk_that_is_full_half_way(hub, cache, monkeypatch, number, reason):
    fsync = os.fsync

    def full(_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)
    sentence = refused(inspect_model, MODEL)
    assert re.search(reason, sentence) and str(cache.parent) in sentence
    monkeypatch.setattr(os, "fsync", fsync)
    inspect_model(MODEL)


@pytest.mark.parametrize(
    ("status", "code", "sentence"),
    [
        (401, "GatedRepo", "is gated; ask for access at http.*owner/{name}, and log in"),
        (403, "GatedRepo", "is gated; ask for access"),
        (401, None, "has no .*owner/{name}, or it is private; check the name, or log in"),
        (404, "RepoNotFound", "has no .*owner/{name}, or it is private"),
        (403, None, r"does not let you read .*owner/{name} \(status 403\)"),
    ],
)
def test_what_may_not_be_read(hub, status, code, sentence):
    hub.faults.status = {MODEL: (status, code), DATASET: (status, code)}
    for work, name in ((lambda: inspect_model(MODEL), "small-moe"), (read_data, "data")):
        with pytest.raises(InputError, match=sentence.format(name=name)) as error:
            work()
        assert "\n" not in str(error.value)


def test_what_was_had_before_is_read_without_a_token(hub):
    info, rows = inspect_model(MODEL), read_data()
    hub.faults.status = {MODEL: (401, "GatedRepo"), DATASET: (403, "GatedRepo")}
    assert (inspect_model(MODEL), read_data()) == (info, rows)


def test_gated_files_of_a_repository_that_everybody_sees(hub):
    """The hub lists them, and refuses their content."""
    hub.faults.gated = True
    assert "is gated; ask for access at" in refused(inspect_model, MODEL)
    assert "is gated" in refused(read_data)


def test_names_that_do_not_exist(hub):
    assert "has no model owner/none, or" in refused(inspect_model, "owner/none")
    assert "has no revision 'v9' on the hub" in refused(inspect_model, MODEL, "v9")
    assert "has no revision '000" in refused(inspect_model, MODEL, "0" * 40)
    for name in ("/no/such/folder", "владелец/модель", "a b"):
        assert "neither a local path that exists nor a name" in refused(inspect_model, name)
    assert "'größer'" in refused(inspect_model, MODEL, "größer")
    assert "'größer'" in refused(read_data, "größer")


def test_a_token_that_is_none(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "schlüssel")
    assert "the token for the hub (HF_TOKEN) holds characters" in refused(inspect_model, MODEL)
    assert "the token for the hub (HF_TOKEN) holds characters" in refused(read_data)


def test_without_permission_to_ask(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set, and the cache" in refused(inspect_model, MODEL)
    assert "HF_HUB_OFFLINE is set, and the cache" in refused(read_data)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    info = inspect_model(MODEL)
    hub.requests.clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert inspect_model(MODEL) == inspect_model(MODEL, hub.model) | {"revision": None} == info
    assert hub.requests == []


def test_two_at_once_share_a_download(hub, cache, model_files):
    hub.faults.bytes_per_second = 4e6
    found = []
    threads = [threading.Thread(target=lambda: found.append(inspect_model(MODEL))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2 and found[0] == found[1]
    assert sum(path.endswith(f"/{SHARD}") for _, path, _ in hub.requests) == 1
    assert len(blobs(cache)) == len(model_files)


def test_a_long_download_says_how_far_it_is(hub, monkeypatch, capsys):
    monkeypatch.setattr(client, "_REPORT_SECONDS", 0.2)
    hub.faults.bytes_per_second = 4e6
    inspect_model(MODEL)
    lines = capsys.readouterr().err.splitlines()
    assert lines and all("downloaded" in line and MODEL in line and "/s, about" in line for line in lines)
    # The picture of a run shows the last of them.
    progress = Progress({"inspect_model": (1, 0)}, 0)
    progress.start(1, "inspect_model", {}, 0)
    progress.downloaded = DOWNLOAD.match(lines[-1])[1]
    rows = ["".join(text for text, _ in row) for row in draw(progress, 80, "=- >", 65)]
    assert re.fullmatch(r"  [\d.]+ MB of 4\.9 MB downloaded, .* left; 1 min 05 s so far", rows[-1])
    progress.finish(1, 70)
    assert "downloaded" not in str(draw(progress, 80, "=- >", 70))


def test_the_models_own_number_of_experts_is_told_by_the_hub(hub, tmp_path):
    (tmp_path / "resources").symlink_to(ROOT / "resources")
    config = merged(
        {"model": {"name": MODEL}, "strategies": {"topk": {"k": ["native"]}, "bh": {"max_k": [16]}}},
        {"baseline": "native"},
    )
    assert load_settings(config, tmp_path)["baseline"] == "8experts_topk_baseline"
    hub.close()
    assert load_settings(config, tmp_path)["baseline"] == "8experts_topk_baseline"


# Data sets


def test_a_data_file_with_a_wrong_bit_is_not_accepted(hub):
    path = "data/test-00000-of-00001.parquet"
    hub.faults.wrong_bit = {path}
    assert f"{path} of the data set {DATASET} came damaged" in refused(read_data)
    hub.faults.wrong_bit = set()
    assert read_data() == [{"text": "a"}]


def test_too_small_a_disk_for_the_prepared_data_set_is_known_before(hub, tmp_path, monkeypatch):
    usage = {"hub": 10**9, "datasets": 100}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=usage[path.name]))
    sentence = refused(read_data)
    assert re.search(rf"the copy of {DATASET} that is read needs .*, but .* has 0 kB free", sentence)
    assert not list((tmp_path / "datasets").rglob("*.arrow"))
    usage["datasets"] = 10**9
    assert read_data() == [{"text": "a"}]


def test_a_damaged_file_in_the_hubs_cache_is_fetched_anew(hub, tmp_path):
    read_data()
    shutil.rmtree(tmp_path / "datasets")
    file = next((tmp_path / "hub").rglob("*.parquet"))
    file.write_bytes(b"PAR1")
    sentence = refused(read_data)
    assert str(file) in sentence and "run again" in sentence
    assert read_data() == [{"text": "a"}]


def test_a_damaged_file_of_the_prepared_data_set_is_named(hub, tmp_path):
    read_data()
    file = next((tmp_path / "datasets").rglob("*.arrow"))
    file.write_bytes(file.read_bytes()[:20])
    sentence = refused(read_data)
    assert f"in {file.parent} cannot be read" in sentence and "delete that folder and run again" in sentence
    shutil.rmtree(file.parent)
    assert read_data() == [{"text": "a"}]


@pytest.mark.parametrize("had_before", [False, True])
def test_a_hub_that_is_gone_while_a_data_set_is_read(hub, monkeypatch, had_before):
    if had_before:  # at another commit, which `datasets` itself would take
        read_data()
        hub.commit("dataset", DATASET, files("b"))
    list_files = client.list_files

    def then_gone(*arguments):
        listed = list_files(*arguments)
        hub.close()
        return listed

    monkeypatch.setattr(client, "list_files", then_gone)
    monkeypatch.setattr("adaptive_routing.data.rows._DESCRIPTIONS", ())  # asked for by `datasets` first
    sentence = refused(read_data)
    assert "the cache does not hold owner/data at commit" in sentence


def test_without_network_a_second_run_does_not_wait(hub):
    read_data()
    hub.close()
    started = time.monotonic()
    assert read_data() == [{"text": "a"}]
    assert time.monotonic() - started < 2


# Jobs


@pytest.mark.parametrize("how", ["Ctrl-C", "SIGTERM", "SIGKILL"])
def test_a_download_ends_with_the_run(tmp_path, model_files, how):
    with HubServer() as hub:
        hub.commit("model", MODEL, model_files)
        hub.faults.bytes_per_second = 1e5
        study = StudyFolder(tmp_path / "study")
        study.configure(model={"name": MODEL}, strategies={"topk": {"k": [8]}, "bh": None})
        run = study.begin(
            "results/model.json", HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path / "home"), HF_HUB_OFFLINE="0"
        )
        deadline = time.monotonic() + 60
        while not any(path.endswith(f"/{SHARD}") for _, path, _ in hub.requests):
            assert time.monotonic() < deadline and run.poll() is None, run.communicate()
            time.sleep(0.05)
        jobs = psutil.Process(run.pid).children(recursive=True)
        assert jobs
        if how == "SIGKILL":
            run.kill()
        else:  # as a terminal and a batch system do, to all processes
            os.killpg(run.pid, signal.SIGINT if how == "Ctrl-C" else signal.SIGTERM)
        run.communicate(timeout=20)
        _, alive = psutil.wait_procs(jobs, timeout=5)
        for process in alive:
            process.kill()
        assert not alive
    assert not study.results("model.json").exists()


def test_a_study_records_the_commits_of_what_it_read(tmp_path):
    """The embedded model and data sets, from the hub."""
    resources = ROOT / "resources"
    model = {path.name: path.read_bytes() for path in (resources / "embedded_model").iterdir()}
    with HubServer() as hub:
        commits = {"model": hub.commit("model", "owner/embedded", model)}
        for name, split in (("lambada", "test"), ("calibration", "train")):
            rows = (resources / f"datasets/{name}.jsonl").read_bytes()
            commits[name] = hub.commit("dataset", f"owner/{name}", {f"data/{split}.jsonl": rows})
        study = StudyFolder(tmp_path / "study")
        study.configure(
            model={"name": "owner/embedded"},
            datasets={"wikitext": None, "lambada": {"source": "owner/lambada"}, "hellaswag": None},
            null_distribution={"calibration": {"source": "owner/calibration", "max_tokens": 1000}},
        )
        home = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
        summary = "results/logs/8experts_bh_a030_lambada.json"
        run = study.begin(summary, **home)
        said = run.communicate()
        assert run.returncode == 0, said
    provenance = json.loads((study.folder / summary).read_text())["provenance"]
    settings = provenance["settings"]
    assert provenance["model"]["commit"] == commits["model"]
    assert settings["dataset"]["commit"] == commits["lambada"]
    assert settings["null_distribution"]["calibration"]["commit"] == commits["calibration"]
    assert study.plan(summary) == {}
