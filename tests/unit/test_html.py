from __future__ import annotations

import base64

from radloop import html

HOSTILE = "<script>alert('x')</script> \"&"


def test_everything_from_data_is_escaped() -> None:
    page = html.page(
        HOSTILE,
        html.section(HOSTILE, html.note(HOSTILE) + html.paragraph(HOSTILE) + html.badge(HOSTILE)),
        html.table([HOSTILE], [[HOSTILE]]),
        html.figure(b"png", HOSTILE),
        html.grid([(b"png", HOSTILE)]),
        html.tiles([(HOSTILE, HOSTILE)]),
    )
    assert "<script" not in page
    assert page.count("&lt;script&gt;") == 13
    assert '"&"' not in page


def test_a_badge_in_a_cell_stays_markup() -> None:
    assert '<span class="badge bad">no</span>' in html.table(["a"], [[html.badge("no", False)]])


def test_pages_reference_nothing_outside() -> None:
    page = html.page("t", html.figure(b"\x89PNG", "c"))
    assert base64.b64encode(b"\x89PNG").decode() in page
    assert "http" not in page


def test_number_columns_are_formatted_and_aligned() -> None:
    table = html.table(["n", "share", "text"], [[1234, 0.5, "1"], [None, 123.4567, "2"]])
    assert '<td class="number">1,234</td><td class="number">0.500</td><td>1</td>' in table
    assert '<td class="number">&ndash;</td><td class="number">123.5</td>' in table


def test_table_without_rows_says_so() -> None:
    assert "none" in html.table(["a"], [])
