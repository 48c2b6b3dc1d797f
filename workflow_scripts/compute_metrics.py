"""Make metrics/{config}_{dataset}.json from an experiment's summary and tensors."""

from adaptive_routing.files import blaming, read_json, write_json
from adaptive_routing.jobs import job
from adaptive_routing.metrics import compute_metrics
from adaptive_routing.tensor_files import TensorFile

with job(snakemake):
    path = snakemake.input.summary
    with TensorFile(snakemake.input.tensors) as tensors, blaming("summary", path):
        metrics = compute_metrics(read_json(path), tensors)
    write_json(snakemake.output[0], metrics)
