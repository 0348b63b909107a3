"""The CPU renderer: compiled 16-lane kernels with an analytic backward pass."""
