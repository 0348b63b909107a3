# Photographs from where they are, once: poses, pinhole images, one packed file.


localrules:
    photographs,
    export_scene,
    weights,


rule photographs:
    """Make, download or find a scene's photographs. Runs where the workflow runs: it may need the internet."""
    input:
        photographs_input,
    output:
        f"{DATA}/{{scene}}/source.json",
    log:
        f"{DATA}/logs/photographs/{{scene}}.log",
    retries: 0
    conda:
        "../envs/dist3dgs.yaml"
    params:
        scene=lambda wildcards: scene_of(wildcards).model_dump_json(
            include={"builtin", "images", "colmap", "download", "truth"}
        ),
        content=photographs_of,
    shell:
        "dist3dgs --log {log:q} photographs {wildcards.scene:q} --scene {params.scene:q} --out {output:q}"


rule ingest:
    """Structure from motion (or an existing model), undistortion, resizing, packing."""
    input:
        unless_remade("source.json"),
    output:
        pack=f"{DATA}/{{scene}}/scene.safetensors",
        facts=f"{DATA}/{{scene}}/ingest.json",
    log:
        f"{DATA}/logs/ingest/{{scene}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/ingest/{{scene}}.tsv"
    retries: 0
    conda:
        "../envs/dist3dgs.yaml"
    # The launcher of `train` runs outside the container because it needs Slurm; only its ranks run inside (launch/commands.py).
    container:
        SITE.image
    envmodules:
        *SITE.modules,
    # Extraction and matching use them all and give the same result with any number (docs/decisions/0020).
    threads: ingest_threads
    # The limits are resources: a change of a parameter makes outputs again, a change of a resource does not.
    resources:
        **rule_resources(ingest_request, SITE, INGEST_KEYS),
    params:
        scene=lambda wildcards: scene_of(wildcards).ingest_json(),
        made_from=scene_settings_of,
    shell:
        "dist3dgs --log {log:q} ingest {wildcards.scene:q} --scene {params.scene:q} --made-from {params.made_from}"
        " --threads {threads} --memory-mb {resources.sfm_mem_mb} --timeout-s {resources.sfm_timeout_s}"
        " --source {input:q} --pack {output.pack:q} --facts {output.facts:q}"


rule export_scene:
    """A packed scene as the COLMAP folder that other trainers read: pixels, poses, points and split of ours."""
    input:
        packed_input,
    output:
        f"{DATA}/{{scene}}/colmap/export.json",
    log:
        f"{DATA}/logs/export_scene/{{scene}}.log",
    retries: 0
    conda:
        "../envs/dist3dgs.yaml"
    params:
        packed=lambda wildcards: packed_digest(wildcards.scene),
    shell:
        "dist3dgs --log {log:q} export-scene --scene {input:q} --out {output:q}"


rule weights:
    """LPIPS weights, for those who want that metric; needs the internet."""
    output:
        WEIGHTS,
    log:
        f"{DATA}/logs/weights.log",
    retries: 0
    conda:
        "../envs/dist3dgs.yaml"
    shell:
        "dist3dgs --log {log:q} fetch-weights --out {output:q}"
