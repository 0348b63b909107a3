"""Full float32 precision on GPUs."""

import torch


def full_precision() -> None:
    """Have cuDNN and cuBLAS compute float32 as float32, not as TF32 with its mantissa of 10 bits.

    PyTorch allows TF32 in convolutions by default. SSIM takes local variances as differences of convolved squares,
    mean(x^2) - mean(x)^2: an error of 2^-11 of the mean square is as large as the variance itself in smooth image
    regions.
    """
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
