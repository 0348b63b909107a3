"""What mends a failure in the words of one trainer's own settings. `Rule.remedy` is what holds for any program.

Records of our own runs and `dist3dgs diagnose` both take ours from here.
"""

# ruff: noqa: E501 (one sentence, one line)

from collections.abc import Mapping

SITE = "profiles/slurm/site.yaml"

#: trainer -> rule -> what to do there.
REMEDIES: Mapping[str, Mapping[str, str]] = {
    "dist3dgs": {
        "submission-refused": f"Change what the message names in {SITE} (`dist3dgs site init --force` writes one that fits the "
        "cluster), then train again.",
        "node-lost": "Slurm queues the job of a lost node again by itself, on nodes that are up, and it resumes from its last "
        "checkpoint. If it is lost again: report the node, and train again when it is drained or repaired.",
        "cache-not-writable": f"Load a module that sets it with `site.modules` in {SITE}, or export the variable where Snakemake "
        "starts: jobs inherit the environment. Most programs follow XDG_CACHE_HOME, gsplat's build TORCH_EXTENSIONS_DIR.",
        "kernel-fault": "Run the point once with CUDA_LAUNCH_BLOCKING=1 to get the kernel, and look at the numbers of Gaussians in "
        "events.jsonl just before. Not retried. If other GPUs run the same point, "
        "report this one.",
        "collapsed": "Lower `train.densify.prune_opacity` or `train.lr.opacities`, or end densification earlier "
        "(`train.densify.stop_step`). Do not resume from a checkpoint after it.",
        "time-limit": f"Raise `site.runtime_min` in {SITE} (attempts after a time limit ask for more, up to "
        "`site.max_runtime_min`), or lower `train.checkpoint_every` so that less is lost; the run resumes from its last "
        "checkpoint.",
        "preempted": "Nothing to mend: the next attempt resumes from the checkpoint written on SIGTERM. `dist3dgs partitions` "
        "shows where nobody preempts.",
        "cancelled": "Train again with `dist3dgs retry POINT`: it "
        "resumes from the last checkpoint. Cancelled runs are not retried.",
        "oom-killer": f"Raise `site.mem_gib_per_gpu` in {SITE} (attempts after this failure ask for more, up to "
        "`site.max_mem_gib`). The record's peak host memory says how much is needed.",
        "host-allocation-failed": f"Raise `site.mem_gib_per_gpu` in {SITE}; the record's peak host memory says how much is needed.",
        "killed": f"`dmesg -T | grep -i oom` on the node; if it was memory, raise `site.mem_gib_per_gpu` in {SITE}. If memory "
        "was far from its limit, somebody killed it.",
        "killed-by-signal": "See whether the kernel's out-of-memory killer did it (`dmesg -T | grep -i oom`); then train again: "
        "it resumes from the last checkpoint.",
        "disk-full": "`df -h`, `df -i` and `quota -s` on the results folder; lower `train.keep_checkpoints` or point `results` "
        "to a larger file system. Nothing half-written is kept.",
        "gpu-oom": "Fewer Gaussians per GPU: lower `train.densify.max_gaussians`, take the strategy `sharded`, or more GPUs; "
        "lower `train.batch_per_rank`.",
        "duplicate-gpu": "Compare the layers in launch.json: `world`; give every rank its own device, and ask for a layout "
        "that fits what the allocation has.",
        "ddp-parameters-differ": "`init: broadcast` in the strategy: rank 0 reads and initialises, contiguous parameters are "
        "broadcast and their digests compared. The same seed alone is not enough.",
        "collective-timeout": "Look at the rank that is missing or in another collective (its stack is at the end of "
        "train.log). If it only needs longer: raise `hardware.timeout_s`.",
        "no-step": "The ranks' stacks are at the end of train.log where the launcher could ask for them; look at the rank "
        "that wrote least. A lower `hardware.timeout_s` ends the next hang sooner.",
        "sfm-failed": "`ingest.json` names the images left out. Photographs with more overlap and less blur, `sfm.matcher: "
        "exhaustive`, or a higher `sfm.num_features`.",
        "diverged": "Lower the learning rates (`train.lr`). Do not resume from a checkpoint after it.",
        "environment": "`make setup` installs the locked versions; load what the nodes need with `site.modules` in "
        f"{SITE}, or take an image with `site.image`.",
        "settings": "The message says what was expected and the next command to run. Not retried.",
    },
    "nerfstudio": {
        "duplicate-gpu": "`ns-train METHOD --machine.num-devices N` (the default is 1, whatever Slurm allocates), or "
        "ask Slurm for the one GPU that is used.",
        "ddp-parameters-differ": "Splatfacto initialises its Gaussians on every rank by itself and has no setting against it: "
        "train on one GPU (`--machine.num-devices 1`), or broadcast rank 0's parameters before DDP wraps the model.",
        "gpu-oom": "`--pipeline.datamanager.cache-images cpu`, smaller images (`nerfstudio-data --downscale-factor 2`), a "
        "higher `--pipeline.model.cull-alpha-thresh`.",
        "oom-killer": "All images are kept in memory, undistorted: more host memory for the job, or smaller images "
        "(`nerfstudio-data --downscale-factor 2`).",
        "sfm-failed": "`ns-process-data images --matching-method exhaustive`; photographs with more overlap and less blur.",
        "port-in-use": "`--machine.dist-url tcp://127.0.0.1:PORT` with another port for each job on a node.",
    },
    "gsplat": {
        "gpu-oom": "`--packed`, a lower `--strategy.refine-stop-iter`, `mcmc --strategy.cap-max N`, `--data-factor 4`, or more "
        "GPUs: simple_trainer shares the Gaussians out.",
        "duplicate-gpu": "simple_trainer.py starts one process per visible GPU: set CUDA_VISIBLE_DEVICES to those allocated.",
    },
}
