"""A few numbers on their way from the device to the host, without waiting for the work queued behind them."""

import torch
from torch import Tensor


class HostCopy:
    """Starts to copy a small tensor to the host; `read` gives its numbers.

    Read right away it waits for the device as `.tolist()` does. Read a step later it waits for nothing: gsplat has
    waited since for all that was queued before.
    """

    def __init__(self, tensor: Tensor) -> None:
        """tensor: [n] or 0-dim, of any dtype."""
        self._event: torch.cuda.Event | None = None
        if tensor.is_cuda:
            # A copy to memory that is not pinned would wait at once.
            self._values = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._values.copy_(tensor.detach(), non_blocking=True)
            self._event = torch.cuda.current_stream(tensor.device).record_event()
        else:
            self._values = tensor.detach().clone()

    def read(self) -> list[float]:
        """Return the numbers, in order, when their copy has arrived."""
        if self._event is not None:
            self._event.synchronize()
        return [float(value) for value in self._values.reshape(-1).tolist()]


def on_device(values: list[float], device: torch.device) -> Tensor:
    """Return float32 [n] with these values on the device, without waiting for it."""
    tensor = torch.tensor(values)
    # From pinned memory: a copy from elsewhere waits for all work queued on the GPU.
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)
