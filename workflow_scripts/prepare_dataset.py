"""Read one data set, keep the samples to score and tokenise them as lm-evaluation-harness does.

Output: results/datasets/{dataset}.json, all that the experiments need of the data set.
"""

from adaptive_routing.data.rows import open_rows
from adaptive_routing.data.samples import check_vocabulary, prepare_samples, prepared_to_json, skipped_rows
from adaptive_routing.jobs.script import job
from adaptive_routing.model.description import read_model_info
from adaptive_routing.model.tokenizer import load_tokenizer
from adaptive_routing.system.errors import InputError
from adaptive_routing.system.json_files import write_json

with job(snakemake):
    dataset, settings = snakemake.wildcards.dataset, snakemake.params.settings
    model = read_model_info(snakemake.input.model)
    source = {key: settings[key] for key in ("source", "subset", "split", "revision")}
    # What is generated has to fit beside the prompt.
    readable = model["max_position_embeddings"] - settings.get("max_new_tokens", 0)
    if readable < 2:
        raise InputError(
            f"datasets.{dataset}.max_new_tokens is {settings['max_new_tokens']}, but the model reads at most "
            f"{model['max_position_embeddings']} tokens, prompt included"
        )
    commit, rows = open_rows(**source, name=f"datasets.{dataset}")
    prepared = prepare_samples(
        dataset,
        rows,
        load_tokenizer(model),
        settings["max_samples"],
        settings.get("max_length"),
        readable,
        settings.get("protocol"),
        settings.get("task"),
    )
    check_vocabulary(prepared, model["shapes"]["vocab_size"], f"datasets.{dataset}")
    settings = settings | {"skipped_rows": skipped_rows(prepared)}
    if commit is not None:  # what the revision of a hub data set stood for
        settings["commit"] = commit
    write_json(snakemake.output[0], prepared_to_json(dataset, prepared, settings))
