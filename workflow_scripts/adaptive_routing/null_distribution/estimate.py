"""Kernel density estimates of router logits, tabulated as survival functions.

The estimate of one layer is the mixture S(x) = mean_i S_K((x − z_i) / h) over the n router logits z of
calibration text. It is evaluated by binning (Silverman 1982, AS 176; Wand 1994, "Fast computation of
multivariate kernel estimators"), but with moments in place of counts alone: a bin's values enter through
the Taylor expansion of S_K about the bin's centre, and the sum over bins is a convolution. The bin width is
h/m with m an integer and the bins' edges are the evaluation points, so that a kernel's knots never fall
inside a bin: for the kernels with bounded support the expansion is finite and the result exact.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptive_routing.null_distribution.kernels import KERNELS, Kernel
from adaptive_routing.null_distribution.table import CENTERS, NullDistribution
from adaptive_routing.system.errors import InputError

# (3n/4)^(−1/5) and n^(−1/5): scipy.stats.gaussian_kde's factors in one dimension.
BANDWIDTH_FACTORS: dict[Any, Callable[[int], float]] = {
    "silverman": lambda n: (0.75 * n) ** -0.2,
    "scott": lambda n: n**-0.2,
}

ERROR_AIM = 2e-6  # the grid is refined until the error is this small
ERROR_LIMIT = 1e-5  # and a larger error than this is refused
MAX_GRID_POINTS = 131072
STRIDE = 8  # evaluation points per grid cell: those inside the cell measure its interpolation error
FIRST_BINS, FEWEST_BINS = 128, 16  # bins per bandwidth; with 16 the gaussian's expansion errs by < 1e-7


def fit_null_distribution(
    layers: Iterable[NDArray[np.floating]],
    kernel: str = "gaussian",
    bandwidth: str | float = "silverman",
    trim: int = 0,
    metadata: Mapping[str, Any] | None = None,
    center: str = "none",
) -> NullDistribution:
    """Estimate every layer's null distribution.

    layers: iterable of (T, E) float arrays, one a layer. metadata: recorded beside the fit's own settings.
    center: "mean" to subtract each token's mean first.
    """
    if center not in CENTERS:
        raise InputError(f"null_distribution.center is {center!r}; allowed are {', '.join(CENTERS)}.")
    fits = [
        fit(centered(logits) if center == "mean" else logits, kernel, bandwidth, trim, layer)
        for layer, logits in enumerate(layers)
    ]
    x0, dx, survival, info = zip(*fits, strict=True)
    num_points = max(map(len, survival))
    return NullDistribution(
        x0=np.array(x0),
        dx=np.array(dx),
        # One length for all: beyond its own grid a layer's function stays at its last value.
        survival=np.stack([np.pad(s, (0, num_points - len(s)), mode="edge") for s in survival]),
        metadata={
            "method": "kernel density estimate",
            "kernel": kernel,
            "bandwidth_rule": bandwidth if isinstance(bandwidth, str) else "fixed",
            "bandwidth": [i["bandwidth"] for i in info],
            "trim": trim,
            "center": center,
            "num_values": [i["num_values"] for i in info],
            "interpolation_error": [i["interpolation_error"] for i in info],
            **(metadata or {}),
        },
    )


def centered(router_logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Logits (T, E) less each token's mean, in float64."""
    router_logits = router_logits.astype(np.float64)
    return router_logits - router_logits.mean(axis=-1, keepdims=True)


def fit(
    router_logits: NDArray[np.floating],
    kernel: str = "gaussian",
    bandwidth: str | float = "silverman",
    trim: int = 0,
    layer: int = 0,
) -> tuple[float, float, NDArray[np.float64], dict[str, float]]:
    """Estimate one layer from its router logits (T, E): (x0, dx, survival (G,), info).

    `survival[j]` is the mixture at x0 + j·dx. `info["interpolation_error"]` bounds how far linear
    interpolation of it is from the exact mixture anywhere. `layer` names the layer in errors.
    """
    if kernel not in KERNELS:
        raise InputError(f"null_distribution.kernel is {kernel!r}; allowed are {', '.join(KERNELS)}.")
    # Before trimming: NaN and infinity sort to the ends and would be trimmed away unseen.
    if not np.isfinite(router_logits).all():
        raise InputError(f"The calibration router logits of layer {layer} contain NaN or infinity.")
    values = trim_logits(router_logits, trim, layer)
    h = bandwidth_of(values, bandwidth, layer)
    num_values = values.size
    values, counts = np.unique(values, return_counts=True)  # logits in bfloat16 have few distinct values
    weights = counts / num_values

    reach = KERNELS[kernel].reach
    x0 = values[0] - reach * h
    offsets = (values - x0) / h  # from the start of the grid, in bandwidths
    # Bins with which the grid just fits; none where h drowns in the rounding of the logits.
    resolved = h > 1e-12 * np.abs(values).max()
    finest = int(STRIDE * (MAX_GRID_POINTS - 2) / (offsets[-1] + reach)) if resolved else 0
    bins = min(FIRST_BINS, finest)
    error = np.inf
    while bins >= FEWEST_BINS:
        survival, error = tabulate(offsets, weights, KERNELS[kernel], bins)
        if error <= ERROR_AIM or bins == finest:
            break
        bins = min(2 * bins, finest)
    if error > ERROR_LIMIT:
        raise InputError(
            f"The null distribution of layer {layer} cannot be tabulated to {ERROR_LIMIT:g} with "
            f"{MAX_GRID_POINTS} grid points: its logits span {values[-1] - values[0]:.4g} and the bandwidth "
            f"is {h:.4g}; set a larger null_distribution.bandwidth, a larger null_distribution.trim or "
            "the gaussian kernel."
        )
    info = {"bandwidth": h, "num_values": num_values, "interpolation_error": error}
    return x0, h * STRIDE / bins, survival, info


def trim_logits(router_logits: NDArray[np.floating], trim: int, layer: int = 0) -> NDArray[np.float64]:
    """Flatten (T, E) logits to float64 (T·(E − 2·trim),) without each token's `trim` largest and smallest."""
    num_experts = router_logits.shape[-1]
    if not 0 <= 2 * trim < num_experts:
        raise InputError(
            f"null_distribution.trim is {trim}; layer {layer} has {num_experts} experts, "
            f"so it must be from 0 to {(num_experts - 1) // 2}."
        )
    if trim:
        router_logits = np.sort(router_logits, axis=-1)[:, trim : num_experts - trim]
    return router_logits.astype(np.float64).ravel()


def bandwidth_of(values: NDArray[np.float64], bandwidth: str | float, layer: int = 0) -> float:
    """The bandwidth h: a number as it is, or a rule's factor × the sample standard deviation (ddof = 1).

    The factor's n is the number of values, ties and tokens' dependence disregarded; it is the gaussian's
    rule, used unchanged for every kernel.
    """
    if bandwidth in BANDWIDTH_FACTORS:
        if values.size < 2:
            raise InputError(
                f"null_distribution.bandwidth is {bandwidth!r} but layer {layer} has {values.size} "
                "calibration logits; it needs 2 at least: use more calibration text."
            )
        h = float(BANDWIDTH_FACTORS[bandwidth](values.size) * values.std(ddof=1))
        # The standard deviation of equal values is rounding error rather than exactly 0.
        if not h > max(1e-12 * np.abs(values).max(), 1e-100):
            raise InputError(
                f"The calibration router logits of layer {layer} are all {values[0]:g}, so "
                f"null_distribution.bandwidth {bandwidth!r} gives 0; set it to a number, or use other "
                "calibration text."
            )
        return h
    is_number = isinstance(bandwidth, int | float) and not isinstance(bandwidth, bool)
    if not is_number or not 0 < bandwidth < np.inf:
        raise InputError(
            f"null_distribution.bandwidth is {bandwidth!r}; allowed are {', '.join(BANDWIDTH_FACTORS)} "
            "or a number above 0."
        )
    if values.size == 0:
        raise InputError(f"Layer {layer} has no calibration router logits; use more calibration text.")
    return float(bandwidth)


def tabulate(
    offsets: NDArray[np.float64], weights: NDArray[np.float64], kernel: Kernel, bins: int
) -> tuple[NDArray[np.float64], float]:
    """The mixture's survival function on the grid 0, STRIDE/bins, … (in bandwidths), and its error.

    offsets (N,): values in bandwidths from the grid's start, at least `kernel.reach`; weights (N,) sum to 1.
    The error returned bounds |linear interpolation − exact mixture| anywhere. It is the sum of
    the largest difference at the STRIDE − 1 points measured inside each cell; what the mixture can bend
    between two of these points; and the remainder of the gaussian's expansion.
    """
    margin = kernel.reach * bins
    num_cells = int(np.ceil((offsets.max() + kernel.reach) * bins / STRIDE))
    num_bins = num_cells * STRIDE
    index = np.minimum((offsets * bins).astype(np.int64), num_bins - 1)
    remainder = (index + 0.5) / bins - offsets  # u at the value = u at the bin's centre + remainder

    steps = np.arange(1 - margin, margin + 1)  # evaluation point − bin
    derivatives = kernel.survival_derivatives((steps - 0.5) / bins)  # (orders, 2·margin)
    moments = np.empty((len(derivatives), num_bins))  # Σ w·remainder^k / k!
    term = weights
    for order in range(len(derivatives)):
        moments[order] = np.bincount(index, term, num_bins)
        term = term * remainder / (order + 1)

    mass = moments[0]
    below = np.concatenate([np.zeros(1), np.cumsum(mass), np.full(margin, mass.sum())])  # in the bins before
    points = np.arange(num_bins + 1)
    beyond_reach = below[-1] - below[np.minimum(points + margin, num_bins)]
    # By NumPy: importing `scipy.signal` takes longer than the fit.
    size = 1 << (num_bins + 2 * margin).bit_length()
    pairs = zip(moments, derivatives, strict=True)
    spectrum = sum(np.fft.rfft(one, size) * np.fft.rfft(other, size) for one, other in pairs)
    near = np.fft.irfft(spectrum, size)[margin - 1 : margin + num_bins]
    # Rounding in the transform leaves ±1e-16.
    fine = np.minimum.accumulate(np.clip(beyond_reach + near, 0.0, 1.0))  # (num_bins + 1,)

    survival = fine[::STRIDE].copy()
    fraction = np.arange(STRIDE) / STRIDE
    straight = survival[:-1, None] + fraction * np.diff(survival)[:, None]  # (num_cells, STRIDE)
    measured = np.abs(straight - fine[:-1].reshape(num_cells, STRIDE)).max()
    if np.isinf(kernel.max_slope):
        # The density jumps by w/2 one bandwidth either side of a value: between two points the error is at
        # most width/4 × the jumps there, and those come from the two bins one bandwidth away.
        inside = np.pad(mass, bins)
        bend = (inside[:num_bins] + inside[2 * bins :]).max() / (8 * bins)
    else:
        # width²/8 × the largest |S''|, which only the mass within reach contributes to.
        cells = points[:-1]
        within_reach = below[cells + margin + 1] - below[np.maximum(cells - margin, 0)]
        bend = kernel.max_slope * within_reach.max() / (8 * bins**2)
    expansion = kernel.taylor_remainder * (0.5 / bins) ** 4
    return survival, float(measured + bend + expansion)
