"""Survival functions of L layers on uniform grids: stored form and p-values of router logits.

A p-value is S_l(z) = 1 − CDF_l(z), linearly interpolated (as numpy.interp does) in float64: BH compares it
with multiples of α/E, which lower precision does not resolve. A null distribution of centred logits
(`center`) is of z less the mean of the token's logits.
"""

from __future__ import annotations

import importlib
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from adaptive_routing.system.errors import InputError
from adaptive_routing.system.files import MADE_ANEW, atomic_path
from adaptive_routing.system.json_files import to_json
from adaptive_routing.system.tensor_files import TensorFile

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CENTERS = ("none", "mean")
DEFAULT = "default"
ROUNDING = 1e-9  # a cumulative distribution may step down, or leave [0, 1], by this much; it is repaired


def null_distribution_file(name: str | None = None) -> str:
    """The name of the file of a null distribution, in the folder `calibration`; None is the default one."""
    return f"null_distribution{'' if name in (None, DEFAULT) else f'_{name}'}.safetensors"


@dataclass(eq=False)
class NullDistribution:
    """x0 (L,), dx (L,) and survival (L, G), float64: survival[l, j] is S_l(x0[l] + j·dx[l]).

    Each row of `survival` is non-increasing in [0, 1]. Outside the grid its end values hold.
    """

    x0: NDArray[np.float64]
    dx: NDArray[np.float64]
    survival: NDArray[np.float64]
    metadata: dict[str, Any] = field(default_factory=dict)
    _on_device: dict = field(default_factory=dict, init=False, repr=False)

    @property
    def num_layers(self) -> int:
        return len(self.survival)

    @property
    def center(self) -> str:
        """What is subtracted from a token's logits first: "none", or their "mean"."""
        return self.metadata.get("center", "none")

    def tested(self, router_logits: torch.Tensor) -> torch.Tensor:
        """What is tested of router logits (..., E), float64: centred where the null distribution is.

        −∞, the score of an expert that a token does not see, enters no mean. The order never changes.
        """
        import torch  # only here: fitting and checking a null distribution take NumPy alone

        with torch.no_grad():
            tested = router_logits.to(torch.float64, copy=True)
            if self.center == "mean":
                seen = tested > -torch.inf
                tested -= tested.where(seen, 0.0).sum(-1, keepdim=True) / seen.sum(-1, keepdim=True)
            return tested

    def p_values(self, router_logits: torch.Tensor, layer: int) -> torch.Tensor:
        """p-values (..., E) in float64 of `layer`'s router logits (..., E), of any floating dtype.

        A larger logit of a token never has a larger p-value. NaN gives NaN. Nothing waits for the device.
        """
        return self._survival_at(self.tested(router_logits), layer)

    def survival_at(self, tested: torch.Tensor, layer: int) -> torch.Tensor:
        """p-values (...) in float64 of values (...) as `tested` gives them."""
        import torch

        with torch.no_grad():
            return self._survival_at(tested.to(torch.float64, copy=True), layer)

    def _survival_at(self, router_logits, layer):
        """`survival_at`, in the place of the values."""
        survival = self._survival_on(router_logits.device)[layer]  # (G,)
        last_cell = len(survival) - 2
        # In place: on the CPU, fresh memory for every step costs more than the arithmetic.
        position = router_logits.sub_(float(self.x0[layer]))
        position.div_(float(self.dx[layer])).clamp_(0, last_cell + 1)  # in cells
        cell = position.long().clamp_(0, last_cell)  # NaN converts to any integer, hence the lower bound
        left, right = survival[:-1][cell], survival[1:][cell]
        # Monotone across cells too: a fraction below 1 shortens the step by more than the step was rounded.
        return (right - left).mul_(position.sub_(cell)).add_(left)

    def _survival_on(self, device):
        import torch

        if device not in self._on_device:
            self._on_device[device] = torch.from_numpy(self.survival).to(device)
        return self._on_device[device]

    def expect_layers(self, num_moe_layers: int, source: Path | str = "the null distribution") -> None:
        """Raise InputError unless there is one survival function for each of the model's MoE layers."""
        if self.num_layers != num_moe_layers:
            raise InputError(
                f"{source} has {self.num_layers} layers but the model has {num_moe_layers} MoE layers; "
                "they must be equal."
            )

    def expect_model(self, info: Mapping[str, Any], path: Path | str) -> None:
        """Raise InputError unless the file at `path`, read as this, was made for the model.

        info: result of `inspect.inspect_model`.
        """
        self.expect_layers(info["shapes"]["num_moe_layers"], path)
        made_for = self.metadata.get("model_fingerprint", info["fingerprint"])
        if made_for != info["fingerprint"]:
            raise InputError(
                f"{path} was made for another model than {info['name']}: its fingerprint is {made_for}, the "
                f"model's {info['fingerprint']}; {MADE_ANEW}"
            )

    def save(self, path: Path | str) -> None:
        """Write a safetensors file: the three tensors, and the metadata as JSON in its header."""
        tensors = {"x0": self.x0, "dx": self.dx, "survival": self.survival}
        header = {"null_distribution": to_json(self.metadata, indent=False).decode()}
        with atomic_path(path) as temporary:
            save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, temporary, metadata=header)

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read a file that `save` wrote."""
        with TensorFile(path) as file:
            if set(file.keys()) != {"x0", "dx", "survival"} or "null_distribution" not in file.metadata:
                raise InputError(
                    f"{path} is not a null distribution: it holds the tensors {sorted(file.keys())}; "
                    "needed are dx, survival and x0, and the settings in the header."
                )
            tensors = {name: file.read(name) for name in file.keys()}  # noqa: SIM118 -- not a mapping
            metadata = file.metadata_json("null_distribution")
        problem = _table_problem(**tensors)
        if problem:
            raise InputError(f"{path} is not a null distribution: {problem}.")
        return cls(**tensors, metadata=metadata)

    @staticmethod
    def fit(
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        texts: Iterable[str],
        kernel: str = "gaussian",
        bandwidth: str | float = "silverman",
        trim: int = 0,
        max_tokens: int = 20000,
        max_length: int = 512,
        center: str = "none",
    ) -> NullDistribution:
        """Estimate a model's null distribution from its router logits on texts, under its own routing.

        Args:
            model: a `PreTrainedModel` whose router logits transformers can record, not patched.
            tokenizer: its tokenizer.
            texts: strings that nothing else is measured on; as many are read as `max_tokens` takes.
            kernel, bandwidth, trim, center: as in the config file.
            max_tokens: how many tokens to use.
            max_length: each text is cut to this many tokens.

        Raises:
            InputError: there is no text, or it does not do for an estimate.
        """
        # By name: what only reads a null distribution does not depend on how one is made.
        made_by = importlib.import_module("adaptive_routing.null_distribution.from_model")
        return made_by.fit_to_model(
            model, tokenizer, texts, kernel, bandwidth, trim, max_tokens, max_length, center
        )

    @classmethod
    def from_cdf_table(cls, path: Path | str) -> Self:
        """Read a `.npz` made elsewhere: `x` (L, G), uniform and ascending, and `cdf` (L, G)."""
        x, cdf = _read_cdf_table(path)
        if x.ndim != 2 or x.shape != cdf.shape or x.shape[0] < 1 or x.shape[1] < 2:
            raise InputError(
                f"{path}: x has shape {x.shape} and cdf {cdf.shape}; both must be (layers, grid points), "
                "equal, with 2 grid points at least."
            )
        for name, array in (("x", x), ("cdf", cdf)):
            if not np.isfinite(array).all():
                raise InputError(
                    f"{path}: {name} of layer {_first_layer(~np.isfinite(array))} has NaN or infinity."
                )
        num_points = x.shape[1]
        dx = (x[:, -1] - x[:, 0]) / (num_points - 1)
        uniform = x[:, :1] + dx[:, None] * np.arange(num_points)
        # Room for float32, whose rounding is relative to |x|; but never for a p-value that differs by 1e-6.
        deviation = np.abs(x - uniform).max(axis=1)
        steepest = np.abs(np.diff(cdf)).max(axis=1)
        uneven = (deviation > 1e-6 * np.abs(x).max(axis=1)) | (deviation * steepest > 1e-6 * dx)
        descending = (np.diff(x) <= 0).any(axis=1)
        if (uneven | descending).any():
            raise InputError(
                f"{path}: x of layer {_first_layer((uneven | descending)[:, None])} is not an ascending grid "
                "of equal steps; resample cdf on numpy.linspace(first, last, points)."
            )
        outside = (cdf < -ROUNDING) | (cdf > 1 + ROUNDING)
        if outside.any():
            raise InputError(f"{path}: cdf of layer {_first_layer(outside)} leaves [0, 1].")
        falling = np.diff(cdf) < -ROUNDING
        if falling.any():
            raise InputError(f"{path}: cdf of layer {_first_layer(falling)} decreases; it must never.")
        cdf = np.maximum.accumulate(np.clip(cdf, 0.0, 1.0), axis=1)
        return cls(x[:, 0].copy(), dx, 1.0 - cdf, {"method": "table", "table": Path(path).name})


def _first_layer(faults):
    """The first layer (row) with a fault, in a boolean array (L, …)."""
    return int(np.flatnonzero(faults.any(axis=1))[0])


def _table_problem(x0, dx, survival):
    """What is wrong with a stored table, or None."""
    if any(array.dtype != np.float64 for array in (x0, dx, survival)):
        return f"the tensors are {x0.dtype}, {dx.dtype} and {survival.dtype}; they must be float64"
    if survival.ndim != 2 or survival.shape[1] < 2 or not x0.shape == dx.shape == survival.shape[:1]:
        return (
            f"x0, dx and survival have shapes {x0.shape}, {dx.shape} and {survival.shape}; "
            "they must be (layers,), (layers,) and (layers, grid points)"
        )
    if not (np.isfinite(x0).all() and np.isfinite(dx).all() and (dx > 0).all()):
        return "x0 and dx must be finite, and dx above 0"
    # Written so that NaN fails.
    if not ((survival >= 0) & (survival <= 1)).all() or not (np.diff(survival) <= 0).all():
        return "survival must be non-increasing from 1 to 0 at most"
    return None


def _read_cdf_table(path):
    """x and cdf of a .npz file as float64; anything pickled is refused unread."""
    pickled = InputError(
        f"{path} holds pickled Python objects, which can run code when read; convert it where it was made: "
        "numpy.savez(path, x=..., cdf=...) with two float arrays of shape (layers, grid points)."
    )
    path = Path(path)
    if path.suffix in {".pkl", ".pickle", ".pt", ".pth"}:
        raise pickled
    try:
        with open(path, "rb") as file:
            is_pickle = file.read(1) == b"\x80"
        if is_pickle:
            raise pickled
        if not zipfile.is_zipfile(path):
            raise InputError(f"{path} is not a .npz file; write it with numpy.savez(path, x=..., cdf=...).")
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith(".pkl") for name in archive.namelist()):  # what torch.save writes
                raise pickled
        with np.load(path, allow_pickle=False) as arrays:
            if not {"x", "cdf"} <= set(arrays.files):
                raise InputError(f"{path} holds the arrays {arrays.files}; needed are x and cdf.")
            x, cdf = arrays["x"], arrays["cdf"]
    except FileNotFoundError:
        raise InputError(f"{path} does not exist (null_distribution.table).") from None
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path} cannot be read as a .npz file ({error}); write it again.") from None
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        if "pickle" in str(error):
            raise pickled from None
        raise InputError(f"{path} cannot be read as a .npz file ({error}); write it again.") from None
    for name, array in (("x", x), ("cdf", cdf)):
        if array.dtype not in (np.float32, np.float64):
            raise InputError(f"{path}: {name} is {array.dtype}; it must be float32 or float64.")
    return x.astype(np.float64), cdf.astype(np.float64)
