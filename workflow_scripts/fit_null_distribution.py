"""Make calibration/null_distribution.safetensors.

From the calibration text's router logits (`input.router_logits`), or from a table made elsewhere
(`input.table`).
"""

from adaptive_routing.jobs.script import job
from adaptive_routing.model.description import read_model_info
from adaptive_routing.null_distribution import NullDistribution
from adaptive_routing.null_distribution.estimate import fit_null_distribution
from adaptive_routing.system.errors import InputError
from adaptive_routing.system.tensor_files import TensorFile

with job(snakemake):
    inputs, params, output = snakemake.input, snakemake.params, snakemake.output
    model = read_model_info(inputs.model)
    num_moe_layers, num_experts = model["shapes"]["num_moe_layers"], model["shapes"]["num_experts"]
    provenance = {"model_fingerprint": model["fingerprint"]}
    if "table" in inputs.keys():  # noqa: SIM118 -- Snakemake's named list
        null_distribution = NullDistribution.from_cdf_table(inputs.table)
        null_distribution.expect_layers(num_moe_layers, inputs.table)
        null_distribution.metadata |= provenance | {"center": params.center}
    else:
        with TensorFile(inputs.router_logits) as calibration:
            router_logits = calibration.read("router_logits")  # (T, L, E)
            if router_logits.shape[1:] != (num_moe_layers, num_experts):
                raise InputError(
                    f"{inputs.router_logits} holds router logits of shape {router_logits.shape}; the model "
                    f"has {num_moe_layers} MoE layers of {num_experts} experts."
                )
            provenance |= {key: calibration.metadata_json(key) for key in sorted(calibration.metadata)}
        null_distribution = fit_null_distribution(
            router_logits.swapaxes(0, 1),
            params.kernel,
            params.bandwidth,
            params.trim,
            provenance,
            params.center,
        )
    null_distribution.save(output[0])
