"""Check a null distribution on calibration text held out from its fit.

Output: results/calibration/null_check.csv, one row per layer and level of BH, and null_check.safetensors with
the curves. An estimate is fitted once more to three quarters of the calibration text and checked on the rest;
a table made elsewhere is checked on all of it.
"""

from adaptive_routing.jobs.script import job
from adaptive_routing.model.description import read_model_info
from adaptive_routing.null_distribution import NullDistribution
from adaptive_routing.null_distribution.check import check, held_out_from, save_check
from adaptive_routing.null_distribution.estimate import fit_null_distribution
from adaptive_routing.system.tensor_files import TensorFile

with job(snakemake):
    inputs, params, output = snakemake.input, snakemake.params, snakemake.output
    null_distribution = NullDistribution.load(inputs.null_distribution)
    with TensorFile(inputs.router_logits) as calibration:
        router_logits = calibration.read("router_logits")  # (T, L, E)
        sequence_offsets = calibration.read("sequence_offsets")
    null_distribution.expect_layers(router_logits.shape[1], inputs.null_distribution)
    settings = {key: params[key] for key in ("kernel", "bandwidth", "trim", "center")}
    start = 0
    if params.table is None:
        start = held_out_from(sequence_offsets)
        null_distribution = fit_null_distribution(router_logits[:start].swapaxes(0, 1), **settings)
    found = check(
        null_distribution,
        router_logits[start:],
        params.alphas,
        params.trim,
        read_model_info(inputs.model)["native_top_k"],
        params.min_k,
    )
    made = {"table": null_distribution.metadata["table"]} if params.table else {}
    made |= {"null": params.name, "fitted_tokens": start, "min_k": params.min_k, **settings}
    save_check(found, output.table, output.curves, made)
