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
    threads: lambda wildcards: train_threads(wildcards)
    resources:
        **rule_resources(train_request),
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
        parser=PARSER_FILES,
    output:
        f"{RESULTS}/{{scene}}/{{strategy}}/{{layout}}/{{repeat}}/record.json",
    log:
        "logs/record/{scene}/{strategy}/{layout}/{repeat}.log",
    retries: 0
    conda:
        "../envs/dist3dgs.yaml"
    shell:
        "dist3dgs --log {log:q} record --launch {input.launch:q} --out {output:q}"


localrules:
    record,
