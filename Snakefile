# dist3dgs: photographs -> structure from motion -> distributed training -> records -> tables, figures, report.
#
#   snakemake --profile profiles/local all                                      everything, on this machine
#   snakemake --profile profiles/slurm all                                      everything, one Slurm job per point
#   snakemake --profile profiles/local results/builtin/replicated/n1g4/r0/record.json    one point, in the config or not
#   snakemake --profile profiles/cached figures                                 redraw from records, train nothing

import sys
from pathlib import Path

from dist3dgs.config.load import FILES, Layers
from dist3dgs.errors import UserError
from snakemake.utils import min_version

min_version("9.0")


# Snakemake's own reader names neither the file nor the line of a mistake in it.
try:
    Layers.read(path for name in FILES if (path := Path("config", name)).is_file())
except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)


configfile: "config/config.yaml"
configfile: "config/scenes.yaml"
configfile: "config/strategies.yaml"


if Path("config/workloads.yaml").is_file():

    configfile: "config/workloads.yaml"


include: "workflow/rules/common.smk"
include: "workflow/rules/ingest.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/figures.smk"


localrules:
    all,
    train_all,
    tables,
    figures,
    report,


# The terminal follows the points of the run and sums them up (dist3dgs.status.follow).
onstart:
    check_start()
    follow.begin(FOLLOWED, *points_of_run(), log)


onsuccess:
    follow.end(FOLLOWED)


onerror:
    follow.end(FOLLOWED)


# Names all results: one that was deleted is made again.
rule all:
    input:
        rules.write_report.output,
        FIGURE_FILES,
        rules.tabulate.output,
        all_records,
        CHECKED,


rule train_all:
    input:
        lambda wildcards: [record_path(p) for p in POINTS],


rule tables:
    input:
        rules.tabulate.output,


rule figures:
    input:
        FIGURE_FILES,


rule report:
    input:
        rules.write_report.output,
