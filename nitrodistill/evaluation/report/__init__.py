"""Reports: evaluations as pages that can be shown to somebody."""

from nitrodistill.evaluation.report.compare import (
    Comparison,
    compare,
    comparison_html,
    write_comparison,
)
from nitrodistill.evaluation.report.markdown import model_card_table, model_results
from nitrodistill.evaluation.report.page import report_html, write_report
from nitrodistill.evaluation.report.verdict import Assessment, Verdict, assess, verdict

__all__ = [
    "Assessment",
    "Comparison",
    "Verdict",
    "assess",
    "compare",
    "comparison_html",
    "model_card_table",
    "model_results",
    "report_html",
    "verdict",
    "write_comparison",
    "write_report",
]
