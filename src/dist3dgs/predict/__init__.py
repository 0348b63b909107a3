"""Predict time and memory of runs that were not made, check requests with them, and recommend layouts.

machine.py       machine files (config/machines/*.yaml): rates, memories and links, each with its source
workload.py      a training as far as its time depends on it: strategy, phases, images, Gaussians
collectives.py   what each strategy sends, and its seconds from message sizes, bandwidths and latencies
model.py         a step, its memory and a whole run of any layout; intervals from the errors on held-out points
calibration.py   the same model, scaled to what this study's records measured
validation.py    fits the few rates to a part of published.yaml and writes the errors on the rest
compare.py       predicted beside measured, for the figure and `predict --compare`
study.py         the points of a study as workloads, its records as calibration
run_time.py      run time of a layout that was not run, for the choice of a partition
projection.py    time to finish from the first steps of a run or from a table of epoch times
preflight.py     findings (ok, warn, refuse) about host memory, GPU memory, time, allocation, batch rule and disk
recommend.py     layouts to use and not to use, with reasons and alternatives
"""
