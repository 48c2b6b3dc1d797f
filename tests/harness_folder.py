"""Tasks for lm-evaluation-harness made of rows that are written here: a folder for `include_path`."""

import json
import re

import yaml

NAMES = ("Edda", "Soren", "Ulric", "Joss", "Wystan", "Corin", "Ilse", "Osric")
THINGS = ("key", "comb", "candle", "kettle", "ring", "letter", "spade", "map", "lamp")

FUNCTIONS = '''
def shout(dataset):
    """Rows with an even number alone, changed."""
    def change(row):
        return {**row, "text": row["text"].replace("bought", "found") + " It was"}
    return dataset.filter(lambda row: row["number"] % 2 == 0).map(change)


def blank_index(doc):
    return doc["choices"].index(doc["thing"])


def after_blank(doc):
    return "and kept it at the gate."


def filled(doc):
    return [doc["text"] + " a " + choice for choice in doc["choices"]]


def judged(doc, results):
    best = max(range(len(results)), key=lambda i: results[i][0])
    return {"first": float(best == 0), "spread": results[best][0] - min(r[0] for r in results)}
'''

ACC = {"metric": "acc", "aggregation": "mean", "higher_is_better": True}
ACC_NORM = ACC | {"metric": "acc_norm"}
CHOICES = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{text}} a",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{choices.index(thing)}}",
    "metric_list": [ACC, ACC_NORM],
}
YES_NO = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{text}} a {{choices[0]}}.\nQuestion: was it a {{thing}}?\nAnswer:",
    "doc_to_choice": ["no", "yes"],
    "doc_to_target": "{{answer}}",
}
TASKS = {
    "own_choices": CHOICES,
    "own_shots": CHOICES
    | {
        "num_fewshot": 2,
        "training_split": "train",
        "fewshot_split": "train",
        "description": "Who bought what?\n\n",
    },
    "own_own_shots": CHOICES | {"num_fewshot": 1, "doc_to_decontamination_query": "text"},
    "own_processed": CHOICES | {"process_docs": "!function own_functions.shout"},
    "own_blanks": CHOICES
    | {
        "doc_to_text": "!function own_functions.blank_index",
        "doc_to_target": "!function own_functions.after_blank",
        "doc_to_choice": "!function own_functions.filled",
        "metric_list": [ACC],
    },
    "own_questions": YES_NO | {"metric_list": [ACC]},
    "own_agreement": YES_NO
    | {
        "metric_list": [
            {"metric": "mcc"},
            {"metric": "f1", "aggregation": "f1", "higher_is_better": True},
            {"metric": "brier_score", "aggregation": "brier_score", "higher_is_better": False},
        ]
    },
    "own_endings": {
        "output_type": "loglikelihood",
        "doc_to_text": "{{text}} a",
        "doc_to_target": " {{thing}}",
        "metric_list": [
            {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
            ACC,
        ],
    },
    "own_articles": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{page}}",
        "metric_list": [
            {"metric": name, "aggregation": kind, "higher_is_better": False}
            for name, kind in (
                ("word_perplexity", "weighted_perplexity"),
                ("byte_perplexity", "weighted_perplexity"),
                ("bits_per_byte", "bits_per_byte"),
            )
        ],
    },
    "own_surprise": CHOICES | {"metric_list": [ACC, ACC | {"metric": "acc_mutual_info"}]},
    "own_several": CHOICES | {"doc_to_target": "{{several}}", "metric_list": [ACC]},
    "own_verdicts": CHOICES
    | {
        "process_results": "!function own_functions.judged",
        "metric_list": [ACC | {"metric": "first"}, ACC | {"metric": "spread"}],
    },
    "own_large": CHOICES | {"tag": ["own_pair"]},
    "own_small": CHOICES | {"split": "few", "tag": "own_pair"},
    "own_stories": {"output_type": "generate_until", "doc_to_text": "{{text}}", "doc_to_target": "{{thing}}"},
}
WEIGHTED = [{"metric": "acc", "weight_by_size": True}, {"metric": "acc_norm", "weight_by_size": True}]
GROUPS = {
    "own_weighted": {"task": ["own_large", "own_small"], "aggregate_metric_list": WEIGHTED},
    "own_mixed": {"task": ["own_choices", "own_stories"]},
    "own_everything": {
        "task": ["own_weighted", *(n for n in TASKS if n not in ("own_large", "own_small", "own_stories"))]
    },
}


def make_folder(folder):
    """Write the tasks' files and rows below a folder; returns the folder."""
    folder.mkdir(parents=True)
    files = {name: folder / f"{name}.jsonl" for name in ("test", "train", "few")}
    write(files["test"], rows(9))
    write(files["train"], rows(5, first=40))
    write(files["few"], rows(4, first=20))
    (folder / "own_functions.py").write_text(FUNCTIONS)
    for name, task in TASKS.items():
        split = task.get("split", "test")
        own = {key: value for key, value in task.items() if key != "split"}
        data = {"test": str(files[split])} | (
            {"train": str(files["train"])} if "training_split" in own else {}
        )
        config = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": data},
            "test_split": "test",
        }
        text = yaml.safe_dump(config | {"metadata": {"version": 1.0}} | own, sort_keys=False)
        # A tag of YAML, which the plain text of a value is not.
        (folder / f"{name}.yaml").write_text(re.sub("'(!function .*)'", r"\1", text))
    missing = {
        "task": "own_missing",
        "dataset_path": "json",
        "output_type": "loglikelihood",
        "test_split": "test",
    }
    missing |= {"dataset_kwargs": {"data_files": {"test": str(folder / "nowhere.jsonl")}}}
    (folder / "own_missing.yaml").write_text(yaml.safe_dump(missing))
    for name, group in GROUPS.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"group": name} | group, sort_keys=False))
    return folder


def rows(count, first=0):
    """Made-up rows; the second is the first again."""
    found = []
    for number in range(first, first + count):
        i = max(number, first + 1) if number < first + 2 else number
        name, thing = NAMES[i % 8], THINGS[(i * 5) % 9]
        choices = [THINGS[(i * 5 + 2 * k) % 9] for k in range(1 + (i % 2), 3)] + [thing]
        choices = choices[i % len(choices) :] + choices[: i % len(choices)]
        text = f"{NAMES[(i + 3) % 8]} held a {thing}. When it got dark, {name} bought"
        page = " ".join(
            f"{NAMES[(i + k) % 8]} bought a {THINGS[(i * k) % 9]} at the inn."
            for k in range(3 + 30 * (i % 3))
        )
        found.append(
            {
                "number": i, "text": text, "thing": thing, "choices": choices, "answer": i % 2, "page": page,
                "several": [choices.index(thing), 0],
            }
        )  # fmt: skip
    return found


def write(path, found):
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
