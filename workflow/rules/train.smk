# The one expensive rule and the cheap one that judges what it left.


rule setup_workload:
    """Make a workload's program ready, once. Runs where the workflow runs: it may need the internet."""
    output:
        f"{DATA}/setup/{{workload}}.json",
    log:
        f"{DATA}/logs/setup/{{workload}}.log",
    wildcard_constraints:
        workload=NAME_PATTERN,
    retries: 0
    conda:
        "../envs/dist3dgs.yaml"
    params:
        application=lambda wildcards: workload_setup(wildcards.workload),
    shell:
        "dist3dgs --log {log:q} setup-workload {wildcards.workload:q} --application {params.application:q}"
        " --out {output:q}"


rule train:
    """One scaling point. Its output is there whether the run succeeded or failed."""
    input:
        scene=scene_input,
        data=exported_input,
        setup=setup_input,
        parts=parts_input,
    output:
        "{results}/{scene}/{strategy}/{layout}/{repeat}/launch.json",
    log:
        "{results}/logs/train/{scene}/{strategy}/{layout}/{repeat}.log",
    # A wildcard with one value: it names the study in the comment and the log folder of the Slurm job.
    wildcard_constraints:
        results=re.escape(RESULTS),
    conda:
        "../envs/dist3dgs.yaml"
    envmodules:
        *SITE.modules,
    # What counts on a cluster is cpus_per_task; a function less to call for each job of a big study.
    threads: 1 if ON_CLUSTER else train_threads
    resources:
        **(rule_resources(train_request, SITE) if ON_CLUSTER else {}),
        trainings=1,
    params:
        # A change of this trains again.
        decides,
        # Not of this one: Snakemake does not compare what is derived from outputs, as a function that takes them is.
        spec=spec_of,
        out=subpath(output[0], parent=True),
        weights=lambda wildcards: WEIGHTS,
    shell:
        "dist3dgs --log {log:q} launch --spec {params.spec:q} --scene {input.scene:q}"
        " --out {params.out:q} --weights {params.weights:q}"


# Of points whose blocks train in jobs of their own. Two rules: the Snakemake in a job may run its own rule alone, and so
# leaves the job before it as it is.
use rule train as train_coarse with:
    output:
        "{results}/{scene}/{strategy}/{layout}/{repeat}/parts/{part}/launch.json",
    log:
        "{results}/logs/train/{scene}/{strategy}/{layout}/{repeat}/{part}.log",
    wildcard_constraints:
        results=re.escape(RESULTS),
        part="coarse",


use rule train_coarse as train_block with:
    wildcard_constraints:
        results=re.escape(RESULTS),
        part="block-[0-9]+",


rule record:
    """Evidence in, verdict out. A better parser judges old runs again without training them again."""
    input:
        launch=f"{RESULTS}/{{scene}}/{{strategy}}/{{layout}}/{{repeat}}/launch.json",
    output:
        f"{RESULTS}/{{scene}}/{{strategy}}/{{layout}}/{{repeat}}/record.json",
    log:
        f"{RESULTS}/logs/record/{{scene}}/{{strategy}}/{{layout}}/{{repeat}}.log",
    # Before the next training is submitted: a big study's rows are there as its points end, not when all are submitted.
    priority: 1
    retries: 0
    conda:
        "../envs/dist3dgs.yaml"
    params:
        # Of a workload: a change reads again what the program has printed, and runs it not again.
        criteria=criteria_of,
    # The digest of the judging code stands in the shell line, which Snakemake compares: a parameter would be one object
    # more for each of a big study's jobs.
    shell:
        "dist3dgs --log {log:q} record --launch {input.launch:q} --out {output:q} --criteria {params.criteria:q}"
        f"  # judged by {JUDGE}"


localrules:
    record,
    setup_workload,
