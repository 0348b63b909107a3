"""Rules for the GPU: memory and faults."""

# ruff: noqa: E501 (a pattern is read best on one line)

import re

from ...units import MIB, parse_bytes
from .rule import Hit, Rule, Tier, patterns

#: Frames in which a process first touches its GPU, before it holds anything there.
FIRST_TOUCH = re.compile(
    r"\b(?:barrier|init_process_group|_cuda_init|_lazy_init|set_device|manual_seed(?:_all)?|_store_based_barrier|get_device_properties|"
    r"mem_get_info|initialize_megatron|init_distributed|synchronize|empty_cache|_C\._cuda_\w+|monitored_barrier)\("
)
#: CUDA's messages about a kernel that failed while it ran.
KERNEL_FAULT = r"an illegal (?:memory access|instruction) was encountered|misaligned address|unspecified launch failure|invalid program counter|hardware stack error"
#: Kernels outside torch: of splatting trainers, other compiled extensions, kernels in Python.
OWN_KERNEL = re.compile(
    r"(?i)gsplat|diff[-_]\w*(?:gauss|surfel|raster)|simple[-_]knn|distCUDA2|fused[-_]ssim|_?Rasterize(?:Gaussians|ToPixels)\w*|rasterize_\w+|cuda_rasterizer|fully_fused_projection|"
    r"isect_tiles|render(?:CUDA|kernel)|torch_extensions|nerfacc|tinycudann|\btcnn\b|nvdiffrast|kaolin|pytorch3d|spconv|MinkowskiEngine|torchsparse|torch_scatter|"
    r"flash_attn|xformers|\bapex\b|mmcv|detectron2/_C|detectron2/layers|RawKernel|numba[./]cuda|\[grid\]\(|custom_kernel|load_inline|triton/runtime/(?:jit|autotuner)|\b(?!torch_)\w+_(?:cuda|ext|cpp|ops)\.\w+\(|torch\.ops\.(?!aten|prim|c10d)\w+\.\w+\(|(?<!torch\.)(?<![\w.])_C\.\w+\("
)
#: Source files of torch and NVIDIA, whose kernels are not the program's.
OF_TORCH = re.compile(r"/?aten/|c10/|/pytorch/|torch/csrc|nccl|cub/|thrust/")


def _in_own_kernel(hit: Hit) -> bool:
    """Accept an illegal access only if its line, or a frame near the end of its traceback, is of a kernel that is not torch's."""
    text = hit.line.text
    if re.search(r"\.cuh?\b", text) and not OF_TORCH.search(text):
        return True
    if re.search(r"\bX[Ii][Dd]\b|Invalid __", text) or OWN_KERNEL.search(text):
        return True
    frames = hit.before(24).rsplit("Traceback (most recent call last)", 1)[-1]
    return OWN_KERNEL.search("\n".join(frames.splitlines()[-12:])) is not None


def _size(pattern: str, text: str) -> float | None:
    """Return the MiB that `pattern` finds, or None."""
    m = re.search(pattern, text)
    try:
        return parse_bytes(m[1]) / MIB if m else None
    except ValueError:
        return None


def is_broken_gpu(hit: Hit) -> bool:
    """Accept out of memory only where nothing can have used it: at the first access, or a tiny request on an empty GPU."""
    if hit.steps_before or hit.steps_above():
        return False
    text = hit.line.text
    asked = _size(r"Tried to allocate ([\d.]+ \w+)", text)
    if asked is None:
        frames = hit.before(14).rsplit("Traceback (most recent call last)", 1)[-1]
        last = [line for line in frames.splitlines() if line.strip() and not re.fullmatch(r"[\s~^]*", line)][
            -4:
        ]
        return bool(FIRST_TOUCH.search("\n".join(last)))
    held = _size(r"([\d.]+ \w+) already allocated", text)
    if held is None:
        held = _size(r"([\d.]+ \w+) is allocated by PyTorch", text)
    in_use = _size(r"this process has ([\d.]+ \w+) memory in use", text)
    total = _size(r"([\d.]+ \w+) total capacity", text) or _size(r"total capac\w+ of ([\d.]+ \w+)", text)
    others = re.search(r"Process \d+ has [\d.]+ \w+ memory in use", text)
    if total is None or held is None or others:
        return False
    return asked <= 64 and held <= 64 and (in_use is None or in_use < 1024)


RULES = (
    Rule(
        name="gpu-hardware",
        cause="gpu_fault",
        tier=Tier.PROOF,
        looks="`uncorrectable ECC error`, `NVRM: Xid 79`, `GPU has fallen off the bus`, `Unable to determine the device handle`",
        why="The GPU, its memory or its link is broken; no setting of the program matters.",
        remedy="Exclude the node and report it with this line; resubmit. "
        "`nvidia-smi -q -d ECC,PAGE_RETIREMENT` on the node shows the counters.",
        patterns=patterns(
            r"(?i)uncorrectable (?:ECC|NVLink) error|cudaErrorECCUncorrectable|double[- ]bit ECC|cudaErrorNvlinkUncorrectable",
            r"\bXid\b[^\n]*?: ?(?:48|61|62|63|64|69|74|79|92|94|95|109|119|120|140|149)\b",
            r"(?i)\bXid (?:errors? |events? |code |number )?(?:48|61|62|63|64|69|74|79|92|94|95|109|119|120|140|149)\b",
            r"(?i)fallen off the bus|GPU is lost|GPU requires reset|Unable to determine the device handle for GPU|hardware stack error|row remap(?:ping|per)? (?:failure|failed)",
            r"(?i)\bCUDA error: (?:system (?:not yet initialized|has unsupported)|hardware)|cudaErrorSystemNotReady|fabric ?manager[^\n]*(?:not running|fail)",
            r"Memory access fault by GPU node|HSA_STATUS_ERROR_(?:EXCEPTION|MEMORY_FAULT|HARDWARE)|HW Exception by GPU",
        ),
    ),
    Rule(
        name="oom-on-an-empty-gpu",
        cause="gpu_fault",
        tier=Tier.SPECIFIC,
        looks="`CUDA error: out of memory` at the first barrier or `set_device`, or `Tried to allocate 2.00 MiB` with nothing allocated",
        why="Nothing of the model is on the device yet, so memory cannot have run out: the GPU is broken or held by a "
        "process that another job left behind.",
        remedy="`nvidia-smi` on that node: if memory is used without a process of yours, exclude and report the node; "
        "do not lower the batch size.",
        phase="startup",
        patterns=patterns(r"(?i)CUDA error: out of memory|CUDA out of memory|CUDA_ERROR_OUT_OF_MEMORY|cudaErrorMemoryAllocation|Cuda failure (?:\d+ )?'out of memory'"),
        accept=is_broken_gpu,
    ),
    Rule(
        name="gpu-oom",
        cause="gpu_oom",
        tier=Tier.SPECIFIC,
        looks="`CUDA out of memory. Tried to allocate 512.00 MiB. GPU 0 has a total capacity of ...`",
        why="Model, activations and fragmentation need more GPU memory than the device has.",
        remedy="A smaller model per GPU, a smaller batch or resolution, more GPUs; if "
        "'reserved but unallocated' is large: PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True.",
        patterns=patterns(
            r"(?:CUDA|HIP|XPU|MPS backend|NPU)[^\n]{0,12} out of memory\.? ?(?:Tried|\(MPS)",
            r"(?:CUDA|HIP|XPU|MPS backend|NPU)(?: error:)? out of memory|torch(?:\.cuda)?\.OutOfMemoryError",
            r"CUDA_ERROR_OUT_OF_MEMORY|cudaErrorMemoryAllocation|hipErrorOutOfMemory|CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_ALLOC_FAILED|Cuda failure (?:\d+ )?'out of memory'",
            r"RESOURCE_EXHAUSTED: (?:OOM|Out of memory)|OOM when allocating tensor|Failed to CUDA calloc",
        ),
        unless=re.compile(r"(?i)may (?:run out|cause|lead to)|if you (?:run|get|see|encounter|hit)|in case of|except |retry(?:ing)? (?:with|after)|recovered from|catch(?:ing)? (?:CUDA )?out of memory"),
    ),
    Rule(
        name="device-assert",
        cause="code_error",
        tier=Tier.SPECIFIC,
        looks="`CUDA error: device-side assert triggered`, ``Assertion `t >= 0 && t < n_classes` failed``",
        why="A kernel checked its input and found it wrong, most often an index or a label out of range. The GPU is fine.",
        remedy="Run once with CUDA_LAUNCH_BLOCKING=1 (or on the CPU) to get the true line, and check the indices given to it.",
        patterns=patterns(r"\.cuh?:\d+:[^\n]*Assertion `[^`\n]*` failed", r"device-side assert triggered|cudaErrorAssert\b"),
    ),
    Rule(
        name="kernel-fault",
        cause="code_error",
        tier=Tier.SPECIFIC,
        looks="`NVRM: Xid (PCI:...): 31, pid=4711, name=python` or 13, `an illegal memory access was encountered` below frames of "
        "gsplat, diff_gaussian_rasterization or another extension, compute-sanitizer's `Invalid __global__ read of size 4`",
        why="A kernel of the program accessed memory out of bounds: Xid 13 and 31 and an illegal access in an extension are the "
        "program's in nearly all cases (an index out of range, an empty model, a count that overflows 32 bits). The GPU is the "
        "second suspect, and the first one where Xid 48, 63, 64, 74, 79, 94 or 95 or an ECC error appears beside it.",
        remedy="Run once with CUDA_LAUNCH_BLOCKING=1, or under `compute-sanitizer --tool memcheck`, to get the kernel and its "
        "line; check the sizes and indices given to it. Only if the same program runs on other GPUs and fails on this one: "
        "`nvidia-smi -q -d ECC,ROW_REMAPPER` there, and exclude the node.",
        phase="step",
        patterns=patterns(
            r"(?i)\bXid\b(?: ?\([^)\n]*\))?(?: (?:errors?|events?|code|number)\b)?[^\w\n]{0,4}(?:13|31)\b",
            rf"(?i:CUDA(?: kernel)?(?: error|_ERROR)\b|\bGPUassert)[^\n]*(?:{KERNEL_FAULT})|(?i:{KERNEL_FAULT})",
            r"\bcudaError(?:IllegalAddress|MisalignedAddress|IllegalInstruction|LaunchFailure)\b|CUDA_ERROR_(?:ILLEGAL_ADDRESS|LAUNCH_FAILED|MISALIGNED_ADDRESS)",
            r"^=+\s+Invalid __(?:global|shared|local)__ (?:read|write|atomic) of size \d",
        ),
        unless=re.compile(r"(?i)NCCL (?:comm )?abort|warn_once|NCCL WARN|watchdog"),
        accept=_in_own_kernel,
    ),
    Rule(
        name="gpu-fault",
        cause="gpu_fault",
        tier=Tier.SPECIFIC,
        looks="`CUDA error: unknown error`, `unspecified launch failure`, `an illegal memory access was encountered`, "
        "`all CUDA-capable devices are busy or unavailable`",
        why="The device or its driver failed below the program. On one rank or one node it is that GPU; in every run at "
        "the same place it is a kernel.",
        remedy="Run again elsewhere: exclude the node. If it comes back on any node, run with CUDA_LAUNCH_BLOCKING=1 and "
        "compute-sanitizer to find the kernel.",
        patterns=patterns(
            r"CUDA error: (?:unknown error|unspecified launch failure|an illegal (?:memory access|instruction) was encountered|misaligned address|"
            r"(?:all )?CUDA-capable device\(s\) (?:is/are|are) busy or unavailable|invalid program counter|the launch timed out|uncorrectable|"
            r"invalid device context)",
            r"cudaError(?:IllegalAddress|LaunchFailure|Unknown|MisalignedAddress|IllegalInstruction|DevicesUnavailable|LaunchTimeout)\b|CUDA_ERROR_(?:ILLEGAL_ADDRESS|LAUNCH_FAILED|UNKNOWN|DEVICE_UNAVAILABLE)",
            r"(?i)Cuda failure (?:\d+ )?'?(?:unspecified launch failure|an illegal memory access|unknown error|uncorrectable|misaligned)",
            r"(?i)all CUDA-capable devices are busy or unavailable|CUDA unknown error - this may be due to an incorrectly set up environment|an illegal memory access was encountered|unspecified launch failure",
            r"CU(?:BLAS|DNN)_STATUS_EXECUTION_FAILED|CUDNN_STATUS_INTERNAL_ERROR|CUFFT_EXEC_FAILED|CUDNN_STATUS_MAPPING_ERROR",
            r"NVRM: Xid|\bXid \d+\b",
        ),
        unless=re.compile(r"(?i)NCCL (?:comm )?abort|warn_once"),
    ),
)  # fmt: skip
