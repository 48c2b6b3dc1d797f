"""Real rows and null distributions, and lm-evaluation-harness's own tasks on local rows."""

from pathlib import Path

from adaptive_routing.data.rows import load_rows
from conftest import ROOT

REAL_DATA = ROOT.parent / "shared/data"
REAL_NULLS = {"olmoe": REAL_DATA / "olmoe_1b_7b_null_cdf.npz"} | {
    name.replace("_", ""): REAL_DATA / f"olmoe_1b_7b_nulls/{name}.npz"
    for name in (
        *("epanechnikov", "gaussian", "linear", "tophat"),
        *(f"trimmed_{trim}" for trim in (0, 2, 4, 8)),
    )
}  # null distributions of OLMoE-1B-7B: the embedded model has as many layers
TASKS = {  # its task file and the split that it evaluates
    "wikitext": ("wikitext/wikitext.yaml", "test"),
    "lambada": ("lambada/lambada_openai.yaml", "test"),
    "hellaswag": ("hellaswag/hellaswag.yaml", "validation"),
    "arc_challenge": ("arc/arc_challenge.yaml", "test"),
}


def make_task(dataset, path, cache):
    """The harness's task of a data set, reading the JSONL file at `path`."""
    import lm_eval.tasks
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    file, split = TASKS[dataset]
    config = load_yaml(Path(lm_eval.tasks.__file__).parent / file)
    for key in ("include", "tag", "training_split", "validation_split", "test_split"):
        config.pop(key, None)
    config |= {
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {split: str(path)}, "cache_dir": str(cache)},
        f"{split}_split": split,
    }
    return ConfigurableTask(config=config)


def rows_of(path):
    """The rows of a local file, as a list."""
    return list(load_rows(str(path)))
