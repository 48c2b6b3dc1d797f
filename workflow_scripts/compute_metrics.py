"""Make metrics/{config}_{dataset}.json and atlas/{config}_{dataset}.safetensors of one experiment."""

from adaptive_routing.analysis.harness import with_harness_scores
from adaptive_routing.analysis.metrics import HEAD, compute_metrics
from adaptive_routing.analysis.routing_summary import summarize_routing, write_routing_summary
from adaptive_routing.jobs.script import job
from adaptive_routing.system.files import blaming
from adaptive_routing.system.json_files import read_json, write_json
from adaptive_routing.system.tensor_files import TensorFile

with job(snakemake):
    path, output = snakemake.input.summary, snakemake.output
    with TensorFile(snakemake.input.tensors) as tensors, blaming("summary", path):
        summary, judged = read_json(path), {}
        if hasattr(snakemake.input, "dataset"):
            from adaptive_routing.data.harness import harness_scores

            scores = harness_scores(summary["dataset"], snakemake.input.dataset, summary["samples"])
            judged = {"harness": scores}
        summary = with_harness_scores(summary, judged)
        metrics = compute_metrics(summary, tensors) | judged
        arrays, shown = summarize_routing(tensors, summary["samples"])
    write_routing_summary(output.atlas, {key: summary[key] for key in HEAD}, arrays, shown)
    write_json(output.metrics, metrics)
