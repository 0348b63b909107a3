"""Another workflow can import this one, as `snakedeploy` and `module:` do."""

from pathlib import Path

import yaml

from dist3dgs import figures
from tests.workflow.test_graph import job_table, snakemake

SNAKEFILE = """
configfile: "config/config.yaml"
configfile: "config/scenes.yaml"
configfile: "config/strategies.yaml"

module dist3dgs:
    snakefile: "{snakefile}"
    config: config

use rule * from dist3dgs as dist3dgs_*

rule everything:
    input: rules.dist3dgs_all.input
    default_target: True
"""


def test_a_workflow_that_imports_this_one_plans_the_same_jobs(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "config").symlink_to(repository / "config")
    (tmp_path / "Snakefile").write_text(SNAKEFILE.format(snakefile=repository / "workflow/Snakefile"))
    imported = job_table(snakemake(tmp_path, "-n", "--cores", "2"))
    planned = {name.removeprefix("dist3dgs_"): n for name, n in imported.items() if name != "everything"}
    assert planned.pop("total") == sum(planned.values()) + 1
    assert planned.pop("figure") == len(figures.NAMES)
    assert planned.pop("train") == planned.pop("record") == 2
    assert planned == dict.fromkeys(("photographs", "ingest", "tabulate", "write_report"), 1)


def test_the_catalogue_entry_is_valid(repository: Path) -> None:
    entry = yaml.safe_load((repository / ".snakemake-workflow-catalog.yml").read_text())
    assert entry["usage"]["mandatory-flags"]["flags"] and (repository / "workflow/Snakefile").is_file()
