"""A new study is one folder: key, command, target and rules come with it."""

import copy

import pytest

from tests.workflow.conftest import Project

pytestmark = pytest.mark.workflow

FILES = {
    "__init__.py": '"""How many rows a case has."""\n',
    "settings.py": '''
from pydantic import Field

from studies.study import Study
from workflow.config.entry import Name, known


class RowCount(Study):
    """Rows of a case, counted."""

    case: Name = Field(description="The case.")

    def check(self, experiment):
        known(self.case, experiment.cases, "studies.row_count.case", "case")
''',
    "rules.smk": """
rule study_row_count:
    output:
        f"{OUT}/studies/row_count/manifest.json",
    params:
        rows=len(CONFIG.rows_of(CONFIG.studies.row_count.case)),
    shell:
        "echo {params.rows} > {output}"
""",
}


@pytest.fixture
def with_study(tiny_config, tmp_path):
    project = Project(tmp_path, copy.deepcopy(tiny_config))
    for name, text in FILES.items():
        path = tmp_path / "studies" / "row_count" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    project.config["studies"] = {"row_count": {"case": "case1"}}
    project.write()
    return project


def test_a_new_folder_is_a_study(with_study):
    code, output = with_study.run("workflow", "study", "--help")
    assert code == 0 and "row_count: How many rows a case has." in " ".join(output.split())
    assert with_study.planned("study_row_count") == {"study_row_count": 1}
    with_study.config["studies"]["row_count"]["case"] = "case3"
    with_study.write()
    code, output = with_study.run("workflow", "check", "--config", "tiny.yaml")
    assert code == 2 and "studies.row_count.case: unknown case 'case3'" in output
