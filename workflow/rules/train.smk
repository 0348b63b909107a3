# The one expensive rule and the cheap one that judges what it left.


rule train:
    """One scaling point. Its output is there whether the run succeeded or failed."""
    input:
        scene=f"{DATA}/{{scene}}/scene.safetensors",
    output:
        f"{RESULTS}/{{scene}}/{{strategy}}/{{layout}}/{{repeat}}/launch.json",
    log:
        "logs/train/{scene}/{strategy}/{layout}/{repeat}.log",
    conda:
        "../envs/dist3dgs.yaml"
    envmodules:
        *SITE.modules,
    # What counts on a cluster is cpus_per_task; a function less to call for each job of a big study.
    threads: 1 if ON_CLUSTER else train_threads
    resources:
        **rule_resources(train_request, SITE),
        trainings=1,
    params:
        spec=spec_of,
        out=subpath(output[0], parent=True),
        weights=f"{DATA}/weights/lpips-alex.safetensors",
    shell:
        "dist3dgs --log {log:q} launch --spec {params.spec:q} --scene {input.scene:q}"
        " --out {params.out:q} --weights {params.weights:q}"


rule record:
    """Evidence in, verdict out. A better parser judges old runs again without training them again."""
    input:
        launch=rules.train.output[0],
        parser=JUDGE_FILE,
    output:
        f"{RESULTS}/{{scene}}/{{strategy}}/{{layout}}/{{repeat}}/record.json",
    log:
        "logs/record/{scene}/{strategy}/{layout}/{repeat}.log",
    # Before the next training is submitted: a big study's rows are there as its points end, not when all are submitted.
    priority: 1
    retries: 0
    conda:
        "../envs/dist3dgs.yaml"
    shell:
        "dist3dgs --log {log:q} record --launch {input.launch:q} --out {output:q}"


localrules:
    record,
