"""Reports: an evaluation as a page that can be shown to somebody."""

from nitrodistill.evaluation.report.page import report_html, write_report
from nitrodistill.evaluation.report.verdict import Judgement, Verdict, judge, verdict

__all__ = ["Judgement", "Verdict", "judge", "report_html", "verdict", "write_report"]
