"""Run calibration text through the model as it is and keep every layer's router logits.

Output: results/calibration/router_logits.safetensors, (tokens, layers, experts) in the model's dtype.
"""

from adaptive_routing.calibration import collect_router_logits, encode_calibration_text, save_router_logits
from adaptive_routing.data import load_rows
from adaptive_routing.files import read_json
from adaptive_routing.jobs import job
from adaptive_routing.models import load_model, load_tokenizer

with job(snakemake):
    calibration, model = snakemake.params.calibration, read_json(snakemake.input.model)
    source = {key: calibration[key] for key in ("source", "subset", "split", "revision")}
    samples = encode_calibration_text(
        load_rows(**source, name="null_distribution.calibration"),
        calibration["column"],
        load_tokenizer(model),
        calibration["max_tokens"],
        calibration["max_length"],
    )
    config = snakemake.config
    loaded = load_model(model, snakemake.params.dtype, config["model"]["device"])
    router_logits = collect_router_logits(loaded, samples, config["evaluation"]["batch_tokens"])
    save_router_logits(
        snakemake.output[0],
        router_logits,
        {"calibration": calibration, "dtype": snakemake.params.dtype},
    )
