"""Make the table of where adaptive configurations and their fixed controls differ, token by token."""

from adaptive_routing.analysis.tables import write_table
from adaptive_routing.analysis.where import begins_word, token_differences, where_table
from adaptive_routing.atlas.tokens import token_texts
from adaptive_routing.data.tasks.uncertainty import clusters_of
from adaptive_routing.jobs.script import job
from adaptive_routing.system.files import blaming
from adaptive_routing.system.json_files import read_json
from adaptive_routing.system.tensor_files import TensorFile

with job(snakemake):
    inputs, output = snakemake.input, snakemake.output
    used_tokens = set()

    def compared():
        """Yield each experiment's token differences, one after another: only one is in memory at a time."""
        # The lists of inputs are in the same order.
        for path, *tensors in zip(
            inputs.summaries, inputs.tensors, inputs.fixed, inputs.baseline, strict=True
        ):
            summary = read_json(path)
            adaptive, fixed, baseline = map(TensorFile, tensors)
            with adaptive, fixed, baseline:
                tokens = token_differences(adaptive, fixed, baseline, clusters_of(summary["samples"]))
            yield summary["config"], summary["dataset"], tokens

    # Which tokens occur decides what is looked up; every experiment on a data set has the same ones.
    for path in dict.fromkeys(inputs.baseline):
        with TensorFile(path) as tensors:
            used_tokens |= set(tensors.read("token_ids").tolist())
    with blaming("summary", *inputs.summaries):
        texts = token_texts(read_json(inputs.model)["folder"], sorted(used_tokens))
        table = where_table(compared(), begins_word(texts))
    write_table(table, output.csv, output.json)
