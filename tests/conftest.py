"""What several test modules share: models, finished studies, the order of tests, the word on skipped ones."""

import fcntl
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from adaptive_routing.data.rows import load_rows
from adaptive_routing.evaluation.calibration import collect_router_logits, encode_calibration_text
from adaptive_routing.model.inspect import inspect_model
from adaptive_routing.model.load import LoadedModel, load_model
from adaptive_routing.model.routers import find_routers
from adaptive_routing.model.tokenizer import load_tokenizer
from adaptive_routing.null_distribution import NullDistribution
from adaptive_routing.null_distribution.estimate import fit_null_distribution
from browser import Browser, find_chromium
from scipy.stats import norm
from study_folder import StudyFolder, commit_all, copy_project
from transformers import OlmoeConfig, OlmoeForCausalLM

ROOT = Path(__file__).resolve().parent.parent
VOCABULARY = 96
# They take long: begun first, both processes of a run end at about the same time.
LONG = ("test_reproducibility", "test_workflow", "test_staleness", "test_extending", "test_model_host")

torch.set_num_threads(1)  # the suite runs in several processes
# Snakemake's processes find the logger plugin of this checkout, whichever is installed.
folders = (str(ROOT / "workflow_scripts"), os.environ.get("PYTHONPATH"))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, folders))


def pytest_collection_modifyitems(items):
    """Long files first."""
    order = {name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.path.stem, len(LONG)))


def pytest_terminal_summary(terminalreporter):
    """Say at the end of a run, where nobody overlooks it, that pages were not tested."""
    skipped = [one for one in terminalreporter.stats.get("skipped", ()) if "Chromium" in str(one.longrepr)]
    if skipped and find_chromium() is None:
        terminalreporter.section("NOT TESTED: the pages in a browser", sep="!", yellow=True, bold=True)
        terminalreporter.line(
            f"{len(skipped)} tests were skipped: they need Chromium, which is not installed.\n"
            "To run them: apt-get install chromium"
        )


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if find_chromium() is None:
        pytest.skip("no Chromium is installed (apt-get install chromium)")
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


def normal_null_distribution(num_layers, points=4001):
    """The survival function of N(0, 1) on [-8, 8], for every layer."""
    x = np.linspace(-8, 8, points)
    return NullDistribution(
        x0=np.full(num_layers, x[0]),
        dx=np.full(num_layers, x[1] - x[0]),
        survival=np.tile(norm.sf(x), (num_layers, 1)),
        metadata={"method": "test"},
    )


def spread_routers(model, seed=0):
    """Draw router rows anew, so that logits of normalised hidden states have a standard deviation of 1."""
    generator = torch.Generator().manual_seed(seed)
    for router in find_routers(model):
        rows = torch.randn(router.weight.shape, generator=generator) / router.weight.shape[1] ** 0.5
        router.weight.data.copy_(rows)
    return model.eval().requires_grad_(False)


def tiny_olmoe(seed=0, **settings):
    """A random OLMoE: 3 layers, 16 experts, native top-8, hidden size 32."""
    config = OlmoeConfig(
        **{
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "intermediate_size": 16,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "num_experts": 16,
            "num_experts_per_tok": 8,
            "max_position_embeddings": 64,
            "initializer_range": 0.3,  # large enough for experts to change the output
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": None,
            **settings,
        }
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = OlmoeForCausalLM(config)
    model.set_experts_implementation("eager")
    return spread_routers(model, seed)


@pytest.fixture(scope="session")
def olmoe():
    """A tiny OLMoE in float32; a test that changes it puts it back."""
    return tiny_olmoe()


@dataclass(frozen=True)
class Embedded:
    loaded: LoadedModel
    tokenizer: object
    null_distribution: NullDistribution
    router_logits: np.ndarray  # (T, L, E) of the text that it is of


@pytest.fixture(scope="session")
def embedded():
    """The embedded model in float32 on the CPU, its tokenizer, and a null distribution of its own logits."""
    info = inspect_model(ROOT / "resources/embedded_model")
    loaded, tokenizer = load_model(info, "float32", "cpu"), load_tokenizer(info)
    rows = load_rows(str(ROOT / "resources/datasets/calibration.jsonl"))
    samples = encode_calibration_text(rows, "text", tokenizer, max_tokens=400, max_length=128)
    logits = collect_router_logits(loaded, samples, batch_tokens=1024)
    null_distribution = fit_null_distribution(logits.transpose(0, 1).numpy())
    return Embedded(loaded, tokenizer, null_distribution, logits.numpy())


@pytest.fixture(scope="session")
def make_once(tmp_path_factory, request):
    """A function (name, make) → the folder `name` that `make(folder)` has filled, once for all processes.

    Who comes while another process fills it waits. The folder is everybody's: tests change copies of it.
    """
    root = tmp_path_factory.getbasetemp()
    if hasattr(request.config, "workerinput"):  # one of several processes, in a folder of its own there
        root = root.parent

    def once(name, make):
        folder, done = root / "made once" / name, root / "made once" / f"{name}.done"
        folder.parent.mkdir(exist_ok=True)
        with open(folder.parent / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of a process that failed here
                folder.mkdir()
                make(folder)
                done.touch()
        return folder

    return once


@pytest.fixture(scope="session")
def small_study(make_once):
    """A function that copies a finished study of 3 configurations x 3 data sets, and gives the copy.

    Its arguments: a folder that does not exist, and the project, of the same code as this one. The study ran
    from a checkout of this project, which is its `checkout`; `printed` is what the run wrote to stdout.
    """

    def make(folder):
        checkout = copy_project(folder / "checkout")
        shutil.copy(ROOT / ".gitignore", checkout)
        if shutil.which("git"):
            commit_all(checkout)
        study = StudyFolder(folder / "study", checkout)
        (folder / "printed").write_text(study.command().stdout)

    made = make_once("small study", make)

    def copy(folder, project=ROOT):
        shutil.copytree(made / "study", folder, symlinks=True)
        study = StudyFolder(folder, project)
        study.printed, study.checkout = (made / "printed").read_text(), made / "checkout"
        return study

    return copy
