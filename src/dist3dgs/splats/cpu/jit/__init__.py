"""Kernels written in Python as 16-lane vector code, compiled by LLVM for the machine at hand (no compiler needed).

`ir` is the kernel language, `vmath` its exp2, log2 and sums, `build` compiles and caches, `threads` runs.
"""
