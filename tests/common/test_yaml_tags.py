"""YAML from others is data: a tag that names a Python function is an error."""

import pytest

from common.errors import UserError


def readers():
    from evaluation.own_data import _definition
    from merges.mergekit.translation import translate
    from workflow.configuration import load

    return {"configuration": load, "mergekit": translate, "task of lm-eval": _definition}


@pytest.mark.parametrize("kind", ["configuration", "mergekit", "task of lm-eval"])
def test_a_python_tag_in_yaml_is_an_error_and_runs_nothing(tmp_path, kind):
    trace, path = tmp_path / "trace", tmp_path / "a.yaml"
    path.write_text(f"a: !!python/object/apply:builtins.open [{trace}, w]\n", encoding="utf-8")
    with pytest.raises(UserError):
        readers()[kind](path)
    assert not trace.exists()
