"""Two devices that are none: what each tensor is on is pretended, and what a real machine refuses is refused.

Everything is computed on the CPU, so that results can be compared to the bit. Within `PretendedDevices`
tensors say that they are on `FIRST` or `SECOND` once they were moved there; operations on tensors of two
devices raise, as they do on GPUs, and so does reading one as an array without `cpu()`.
"""

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

FIRST, SECOND = torch.device("lazy:0"), torch.device("lazy:1")  # what torch only knows the name of
CPU = torch.device("cpu")


class PretendedDevices(TorchFunctionMode):
    """Keeps the device of every tensor, by its memory, which views share; unknown ones are on the CPU.

    Memory of the two devices is not given back before the end: NumPy would take it for arrays on the CPU.
    """

    def __init__(self):
        super().__init__()
        self.places = {}
        self._memory = []
        self.moves = []  # (from, to) of every copy between the two

    def place_of(self, tensor):
        return self.places.get(tensor.untyped_storage().data_ptr(), CPU)

    def put(self, tensor, device):
        if tensor.numel():
            self.places[tensor.untyped_storage().data_ptr()] = device
            if device != CPU:
                self._memory.append(tensor.untyped_storage())
        return tensor

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs, name = dict(kwargs or {}), getattr(function, "__name__", "")
        if function == torch.Tensor.device.__get__:
            return self.place_of(args[0])
        if function == torch.Tensor.is_cuda.__get__:
            return False
        tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
        asked = self._asked(name, args, kwargs)
        if name in ("to", "cpu"):
            return self._move(function, args, kwargs, asked)
        places = {self.place_of(one) for one in tensors if one.numel()}
        if len(places) > 1 and name not in ("copy_", "__get__", "__set__"):
            # As in torch, a number from the CPU may go with any device.
            places = {self.place_of(one) for one in tensors if one.numel() and one.dim()} or places
            if len(places) > 1:
                raise RuntimeError(f"{name}: tensors on {', '.join(sorted(map(str, places)))}")
        if name in ("numpy", "__array__") and places - {CPU}:
            raise TypeError(f"can't convert a tensor on {places} to numpy")
        if "device" in kwargs:
            kwargs["device"] = CPU
        result = function(*args, **kwargs)
        place = asked or next(iter(places), CPU)
        return tree_map_only(torch.Tensor, lambda one: self.put(one, place), result)

    def _asked(self, name, args, kwargs):
        """The device that a call names, or None."""
        if name == "cpu":
            return CPU
        found = [kwargs.get("device")]
        if name == "to":
            found += [self.place_of(one) if isinstance(one, torch.Tensor) else one for one in args[1:2]]
        device = next((one for one in found if isinstance(one, str | torch.device)), None)
        return None if device is None else torch.device(device)

    def _move(self, function, args, kwargs, asked):
        """`to` and `cpu`: a copy where the device changes."""
        tensor = args[0]
        place = self.place_of(tensor)
        target = asked or place
        kwargs = {key: value for key, value in kwargs.items() if key not in ("device", "non_blocking")}
        args = [CPU if isinstance(one, str | torch.device) else one for one in args[1:]]
        result = tensor.to(*args, **kwargs) if args or kwargs else tensor
        if target != place:
            self.moves.append((place, target))
            result = result.clone() if result is tensor else result
        return self.put(result, target)
