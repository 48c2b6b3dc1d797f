"""Make metrics/{config}_{dataset}.json from an experiment's summary and tensors."""

from adaptive_routing.files import read_json, write_json
from adaptive_routing.jobs import job
from adaptive_routing.metrics import compute_metrics
from adaptive_routing.tensor_files import TensorFile

with job(snakemake):
    with TensorFile(snakemake.input.tensors) as tensors:
        metrics = compute_metrics(read_json(snakemake.input.summary), tensors)
    write_json(snakemake.output[0], metrics)
