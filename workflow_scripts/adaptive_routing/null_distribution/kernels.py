"""The kernels of the density estimate, by their survival functions.

Conventions are those of scikit-learn's KernelDensity: u = (x − z) / h, where the bandwidth h is the
standard deviation of the gaussian and the half-width of the kernels with bounded support.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr


@dataclass(frozen=True)
class Kernel:
    """A symmetric kernel density K with survival function S(u) = ∫_u^∞ K.

    survival_derivatives: u (N,) → (orders, N), the rows S, S', S'', … at |u| < reach. For bounded support S
    is a polynomial between the knots −1, 0 and 1 and the rows are all its non-zero derivatives.
    reach: outside [−reach, reach] S is 1 or 0, to within double precision.
    max_slope: largest |K'|; infinite where K jumps.
    taylor_remainder: c such that expanding S from a point r away, with the orders given, errs by ≤ c·r⁴.
    """

    survival_derivatives: Callable[[NDArray[np.float64]], NDArray[np.float64]]
    reach: int
    max_slope: float
    taylor_remainder: float = 0.0


def _gaussian(u):
    density = np.exp(-0.5 * u**2) / np.sqrt(2 * np.pi)
    return np.stack([ndtr(-u), -density, u * density, (1 - u**2) * density])


def _epanechnikov(u):  # K = ¾ (1 − u²)
    return np.stack([0.5 - 0.75 * u + 0.25 * u**3, -0.75 * (1 - u**2), 1.5 * u, np.full_like(u, 1.5)])


def _tophat(u):  # K = ½
    return np.stack([0.5 * (1 - u), np.full_like(u, -0.5)])


def _linear(u):  # K = 1 − |u|
    upper_tail = 0.5 * (1 - np.abs(u)) ** 2
    return np.stack([np.where(u < 0, 1 - upper_tail, upper_tail), np.abs(u) - 1, np.sign(u)])


# The gaussian's fourth derivative of S is (3u − u³)·φ(u) up to sign, at most 1.381; its |K'| is at most φ(1).
KERNELS = {
    "gaussian": Kernel(_gaussian, reach=8, max_slope=0.242, taylor_remainder=1.381 / 24),
    "epanechnikov": Kernel(_epanechnikov, reach=1, max_slope=1.5),
    "tophat": Kernel(_tophat, reach=1, max_slope=np.inf),
    "linear": Kernel(_linear, reach=1, max_slope=1.0),
}
