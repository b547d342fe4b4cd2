"""The report's small experiment, which the studies' tables are made beside."""

from tests.report.conftest import small  # noqa: F401
