# From records alone: tables, figures, report.


localrules:
    tabulate,
    figure,
    write_report,
    check,


rule tabulate:
    input:
        all_records,
    output:
        runs=f"{RESULTS}/tables/runs.csv",
        points=f"{RESULTS}/tables/points.csv",
        challenges=f"{RESULTS}/tables/technical_challenges.csv",
        performance=f"{RESULTS}/tables/performance_comparison.csv",
        resources=f"{RESULTS}/tables/resources.csv",
        scaling=[f"{RESULTS}/tables/scaling.{kind}" for kind in ("csv", "md", "tex")],
        trainers=[f"{RESULTS}/tables/trainers.{kind}" for kind in ("csv", "md", "tex")],
        over_scenes=[f"{RESULTS}/tables/over_scenes.{kind}" for kind in ("csv", "md", "tex")],
    log:
        f"{RESULTS}/logs/tabulate.log",
    benchmark:
        f"{RESULTS}/benchmarks/tabulate.tsv"
    retries: 0
    conda:
        "../envs/dist3dgs.yaml"
    params:
        others=OTHER_RECORDS,
        contents=other_records,
        code=lambda wildcards: code_of("analysis.tables", "predict.compare"),
        baseline=f"--baseline {STUDY.config.baseline}" if STUDY.config.baseline else "",
    shell:
        "dist3dgs --log {log:q} tabulate --runs {output.runs:q} --points {output.points:q} {params.baseline}"
        " --records {input:q} {params.others:q}"


rule figure:
    input:
        runs=rules.tabulate.output.runs,
        points=rules.tabulate.output.points,
        beside=[rules.tabulate.output.challenges, rules.tabulate.output.performance],
        records=all_records,
    output:
        [f"{RESULTS}/figures/{{figure}}.{kind}" for kind in FIGURE_KINDS],
    log:
        f"{RESULTS}/logs/figures/{{figure}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/figures/{{figure}}.tsv"
    wildcard_constraints:
        figure="|".join(FIGURES),
    retries: 0
    conda:
        "../envs/dist3dgs.yaml"
    params:
        base=subpath(output[0], strip_suffix=".svg"),
        others=OTHER_RECORDS,
        contents=other_records,
        code=code_of_figure,
    shell:
        "dist3dgs --log {log:q} figure {wildcards.figure:q} --runs {input.runs:q} --points {input.points:q}"
        " --out {params.base:q} --records {input.records:q} {params.others:q}"


rule write_report:
    input:
        figures=FIGURE_FILES,
        tables=rules.tabulate.output,
        records=all_records,
    output:
        html=report(
            f"{RESULTS}/report/report.html",
            category="Report",
            caption="../report/report.rst",
        ),
        tex=f"{RESULTS}/report/report.tex",
    log:
        f"{RESULTS}/logs/report.log",
    benchmark:
        f"{RESULTS}/benchmarks/report.tsv"
    retries: 0
    conda:
        "../envs/dist3dgs.yaml"
    params:
        figures=lambda wildcards, input: os.path.dirname(input.figures[0]),
        tables=lambda wildcards, input: os.path.dirname(input.tables[0]),
        data=DATA,
        study=study_facts(),
        others=OTHER_RECORDS,
        contents=other_records,
        code=lambda wildcards: code_of("report"),
        # The report marks records that other code has trained.
        training_code=lambda wildcards: code_digest(),
    shell:
        "dist3dgs --log {log:q} report --out {output.html:q} --figures {params.figures:q} --tables {params.tables:q}"
        " --data {params.data:q} --study {params.study:q} --records {input.records:q} {params.others:q}"


rule check:
    """Fail where a point has failed (`fail_on: failed`), when all that can be made has been made."""
    input:
        records=all_records,
        report=rules.write_report.output.html,
    output:
        f"{RESULTS}/tables/no_failed_points.txt",
    log:
        "logs/check.log",
    retries: 0
    conda:
        "../envs/dist3dgs.yaml"
    shell:
        "dist3dgs --log {log:q} check --records {input.records:q} --out {output:q}"
