"""A comparison as one HTML file: no script, nothing from elsewhere, every text escaped."""

from __future__ import annotations

import math
from html import escape
from pathlib import Path

from ..artifact.disk import beside
from ..errors import UserError
from ..schema import DumpHeader
from .compare import Comparison, Row

STYLE = """
body { font: 14px/1.5 system-ui, sans-serif; margin: 2em; color: #222; }
h1 { font-size: 1.4em; } h2 { font-size: 1.1em; margin-top: 2em; }
table { border-collapse: collapse; } td, th { padding: 2px 6px; text-align: right; font-weight: normal; }
.map td { min-width: 3.2em; border: 1px solid #fff; font-size: 11px; } .map th { font-size: 11px; }
.map thead th { writing-mode: vertical-rl; transform: rotate(180deg); text-align: left; }
.first { outline: 3px solid #000; } .good { color: #060; } .bad { color: #a00; }
.facts td { text-align: left; }
"""
NOISE, WORST = -8.0, 0.0
"""Powers of ten of the relative error between which the colors run from green to red."""


def html(comparison: Comparison) -> str:
    a, b = comparison.a, comparison.b
    verdict = "They agree." if comparison.agrees else "They differ."
    parts = [
        f"<h1>{escape(a.name)} ({escape(a.source)}) beside {escape(b.name)} ({escape(b.source)})</h1>",
        f'<p class="{"good" if comparison.agrees else "bad"}">{verdict}</p>',
        *(f"<p>{escape(text)}</p>" for text in lines(comparison)),
        "<p>Colors and numbers are relative root mean squares of the difference; the first value beyond tolerance has a "
        "frame. Point at a cell for more.</p>",
        *(_map(comparison, call) for call in a.calls if call in b.calls),
        "<h2>The dumps</h2>",
        _facts(a, b),
    ]
    head = f'<meta charset="utf-8"><title>{escape(a.name)}: {verdict}</title><style>{STYLE}</style>'
    return f"<!doctype html><html><head>{head}</head><body>{''.join(parts)}</body></html>\n"


def write_report(comparison: Comparison, path: Path) -> None:
    """Raises UserError where the file cannot be written."""
    try:
        with beside(path) as partial:
            partial.write_text(html(comparison), encoding="utf-8")
    except OSError as error:
        raise UserError(f"The report cannot be written to {path}: {error.strerror}.") from None


def lines(comparison: Comparison) -> list[str]:
    """Notes, the finding and NaNs, a sentence or two each."""
    finding = comparison.finding.sentences() if comparison.finding else []
    return [*comparison.notes, *finding, *comparison.nonfinite]


def _map(comparison: Comparison, call: str) -> str:
    """Layers down, roles across; what is in no layer has a row of its own."""
    rows = [row for row in comparison.rows if row.call == call]
    roles = list(
        dict.fromkeys(row.place[1] for row in rows if row.place[0] is not None and row.value != "blocks.0.ln0")
    )
    outside = [row for row in rows if row.place[1] not in roles]
    cells = {row.place: row for row in rows}
    layers = sorted({row.place[0] for row in rows if row.place[0] is not None})
    first = comparison.finding.row if comparison.finding else None
    heads = "".join(f"<th>{escape(role)}</th>" for role in roles)
    body = "".join(
        f"<tr><th>{layer}</th>{''.join(_cell(cells.get((layer, role)), first) for role in roles)}</tr>"
        for layer in layers
    )
    alone = "".join(f"<tr><th>{escape(row.value)}</th>{_cell(row, first)}</tr>" for row in outside)
    grid = f'<table class="map"><thead><tr><th>layer</th>{heads}</tr></thead><tbody>{body}</tbody></table>'
    return f'<h2>{escape(call)}</h2>{grid}<table class="map">{alone}</table>'


def _cell(row: Row | None, first: Row | None) -> str:
    if row is None:
        return "<td></td>"
    d = row.difference
    about = (
        f"{row.name} {list(d.shape)}: relative RMS {d.relative_rms:.2e} (limit {row.limit:.0e}), max abs {d.max_abs:.2e}, "
        f"cosine {d.cosine:.6f}, magnitudes {d.smallest[0]:.2e} to {d.largest[0]:.2e}, "
        f"expected {d.smallest[1]:.2e} to {d.largest[1]:.2e}"
    )
    about += f", {d.nonfinite}" if d.nonfinite else ""
    frame = ' class="first"' if row is first else ""
    text = f"{d.relative_rms:.0e}" if math.isfinite(d.relative_rms) else "NaN" if any(d.nan) else "inf"
    return f'<td{frame} style="background:{_color(d.relative_rms)}" title="{escape(about)}">{text}</td>'


def _color(error: float) -> str:
    """Green at rounding, red where nothing is right."""
    power = math.log10(error) if 0 < error < math.inf else NOISE if error == 0 else WORST
    part = min(max((power - NOISE) / (WORST - NOISE), 0.0), 1.0)
    return f"hsl({120 * (1 - part):.0f} 70% 75%)"


def _facts(a: DumpHeader, b: DumpHeader) -> str:
    def row(name: str, *found: object) -> str:
        return f"<tr><th>{escape(name)}</th>{''.join(f'<td>{escape(str(value))}</td>' for value in found)}</tr>"

    names = (
        "source",
        "name",
        "sha256",
        "quantization",
        "activations",
        "target",
        "device",
        "family",
        "tokens",
        "decoded",
        "chunk",
    )
    rows = "".join(row(name, getattr(a, name), getattr(b, name)) for name in names)
    return f'<table class="facts"><tbody>{rows}</tbody></table>'
