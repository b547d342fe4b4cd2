"""Runs model-written SQL, which is hostile input, and judges what it returns."""

from evaluation.sql.bottle import Judge
from evaluation.sql.engines import Refused, Verdict

__all__ = ["Judge", "Refused", "Verdict"]
