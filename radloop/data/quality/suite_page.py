"""The Data Docs page of a suite's result: one HTML file that opens offline and runs nothing."""

from __future__ import annotations

import copy
import html
import re
from collections.abc import Sequence
from typing import Any

_POLICY = (
    '<meta http-equiv="Content-Security-Policy" '
    "content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">"
)
_STYLE = """
:root { color-scheme: light; }
body { font: 14px/1.5 system-ui, "DejaVu Sans", sans-serif; margin: 1.5rem auto; padding: 0 1.5rem;
max-width: 75rem; color: #1c2733; }
h4 { font-size: 1.4rem; margin: 0; } h5 { font-size: 1.05rem; margin: 1.4rem 0 .2rem; }
h6 { font-size: 1rem; margin: .8rem 0 0; } .h6 { font-weight: 600; } .lead, .sticky { display: none; }
table { border-collapse: collapse; margin: .2rem 0 .6rem; }
th, td { text-align: left; vertical-align: top; padding: .35rem .8rem .35rem 0;
border-bottom: 1px solid #d9e0e7; overflow-wrap: anywhere; }
table.table[data-search] { width: 100%; table-layout: fixed; } table[data-search] > thead { display: none; }
table[data-search] > tbody > tr > td:first-child { width: 1.4rem; }
table[data-search] > tbody > tr > td:last-child { width: 13rem; padding-right: 0; text-align: right; }
.table-sm { font-size: .92em; } .table-sm td, .table-sm th { padding: .15rem 1.2rem .15rem 0; }
.table-sm tr:last-child td { border-bottom: 0; } .table-sm th:last-child { min-width: 3rem; }
strong.text-danger { color: #b3261e; font-weight: 600; } strong.text-danger br:first-child { display: none; }
i { font-style: normal; font-weight: 700; }
i.fa-check-circle::before { content: "\\2713"; color: #1a7f4b; }
i.fa-times::before { content: "\\2717"; color: #b3261e; }
i.fa-exclamation-triangle::before { content: "!"; color: #8a5a00; }
"""
_DROPPED = re.compile(
    r"<(script|style|title|nav|footer)\b.*?</\1\s*>|<link\b[^>]*>|<!--.*?-->|</?a\b[^>]*>|<input\b[^>]*>"
    r"|<img\b[^>]*\bsrc=[\"']http[^>]*>|Data asset: None<br>",
    flags=re.S | re.I,
)


def suite_page(title: str, result: Any, examples: Sequence[list[Any] | None]) -> str:
    """Render the Data Docs page of an `ExpectationSuiteValidationResult`.

    Great Expectations 1.24 links its style and scripts from other hosts, and writes values of the data
    and arguments of the expectations into the page as they are, `<script>` included.

    Args:
        title: Of the page.
        result: With one `ExpectationValidationResult` for each check.
        examples: For each check the values to show in place of the unexpected ones, which say nothing
            where a check looks at a flag; None keeps those.
    """
    from great_expectations.render.renderer import ValidationResultsPageRenderer  # type: ignore[attr-defined]
    from great_expectations.render.view import DefaultJinjaPageView  # type: ignore[attr-defined]

    result = copy.deepcopy(result)
    for item, shown in zip(result.results, examples, strict=True):
        if shown:
            del item.result["partial_unexpected_counts"]
            item.result["partial_unexpected_list"] = shown
        item.result = _escaped(item.result)
        item.expectation_config.kwargs = _escaped(item.expectation_config.kwargs)
        item.expectation_config.description = _escaped(item.expectation_config.description)
    document = ValidationResultsPageRenderer(run_info_at_end=True).render(result)
    # Its run has no name, and a time of its own would make equal results differ.
    document.sections = [section for section in document.sections if section.section_name != "Run Info"]
    page: str = DefaultJinjaPageView().render(document)  # type: ignore[no-untyped-call]
    page = _DROPPED.sub("", page).replace("Expectation Validation Result", html.escape(title), 1)
    head = f"<head>{_POLICY}<title>{html.escape(title)}</title><style>{_STYLE}</style>"
    return page.replace("<head>", head, 1)


def _escaped(value: Any) -> Any:
    if isinstance(value, str):
        return html.escape(value)
    if isinstance(value, dict):
        return {key: _escaped(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_escaped(item) for item in value]
    return value
