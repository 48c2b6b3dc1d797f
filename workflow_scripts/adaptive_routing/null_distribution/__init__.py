"""p-values of router logits: each layer's null distribution as a survival function on a uniform grid.

`table` holds the stored form and turns logits into p-values; `estimate` makes it from calibration
logits by kernel density estimation with the kernels in `kernels`; `from_model` gets these from a model in
memory. Only the stored form is imported here: an experiment needs no estimation code. Imports `data` and
`system`.
"""

from adaptive_routing.null_distribution.table import NullDistribution

__all__ = ["NullDistribution"]
