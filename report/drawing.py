"""What the figures share: texts as they are written, margins that fit them, files."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST = 40  # rows that a figure shows: more bars are not read, and would not fit a page
_LONGEST = 44  # characters of a label in a figure
_DPI = 150  # of figures as pixels
_CJK = ("Noto Sans CJK JP", "Noto Sans JP", "IPAexGothic", "IPAGothic", "WenQuanYi Zen Hei")
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "pdf.fonttype": 3,  # TrueType subsets take longer than all drawing; texts stay searchable
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "bottle",  # else ids differ from run to run
}


def written(text: str, longest: int = _LONGEST) -> str:
    """Write a name as a figure shows it: cut in the middle where it is long, and no mathematics.

    Args:
        text: Any text; a dollar sign in it would begin matplotlib's mathematics.
        longest: The most characters; a label's beginning and its end differ between rows.
    """
    text = " ".join(text.split())
    if len(text) > longest:
        text = f"{text[: longest * 2 // 3]}…{text[-(longest // 3 - 1) :]}"
    return text.replace("$", r"\$")


def style(texts: Iterable[str]) -> tuple[dict[Any, Any], str]:
    """Choose fonts that have all signs of some texts.

    Returns:
        Settings of matplotlib, and the signs that no installed font has.
    """
    from matplotlib import font_manager

    signs = {sign for text in texts for sign in text if ord(sign) > 0x2FF and sign.isprintable()}
    fonts = ["DejaVu Sans"]
    for name in (*fonts, *_CJK) if signs else ():
        try:
            path = font_manager.findfont(name, fallback_to_default=False)
        except ValueError:
            continue
        known = font_manager.get_font(path).get_charmap()
        if (rest := {sign for sign in signs if ord(sign) not in known}) != signs:
            fonts += [name] if name not in fonts else []
            signs = rest
    return {**STYLE, "font.family": fonts}, "".join(sorted(signs))


def width_of(figure: Figure, texts: Sequence[str], size: float = 8) -> float:
    """Return the width of the widest of some texts in inches, at a size in points."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.font_manager import FontProperties

    renderer, font = FigureCanvasAgg(figure).get_renderer(), FontProperties(size=size)
    plain = (text.replace(r"\$", "$") for text in texts)
    widths = [renderer.get_text_width_height_descent(t, font, ismath=False)[0] for t in plain]
    return max(widths, default=0.0) / figure.dpi


def margins(
    figure: Figure, left: float, right: float, top: float, bottom: float, **between: float
) -> dict[str, float]:
    """Turn margins in inches into the shares that matplotlib's grids take."""
    width, height = figure.get_size_inches()
    shares = {"left": left / width, "right": 1 - right / width}
    return shares | {"top": 1 - top / height, "bottom": bottom / height, **between}


def legend(figure: Figure, handles: Sequence[Any]) -> None:
    """Write a legend below all panels; see `legend_height`."""
    figure.legend(handles=handles, loc="lower center", ncols=_ACROSS, frameon=False)


_ACROSS = 5  # entries of a legend in a line


def legend_height(entries: int) -> float:
    """Return the height of a legend in inches."""
    return 0.18 * -(-entries // _ACROSS) + 0.12


def rendered(figure: Figure, form: str) -> bytes:
    """Return a figure as a file of a form: png, pdf or svg; equal figures give equal bytes."""
    # Dates and version strings would make equal figures differ.
    metadata: dict[str, dict[str, Any]] = {
        "pdf": {"CreationDate": None, "Producer": None},
        "svg": {"Date": None, "Creator": None},
    }
    stream = io.BytesIO()
    if form == "png":
        # Without the alpha channel, which is opaque, a file is smaller and sooner written.
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from PIL import Image

        own, canvas = figure.dpi, FigureCanvasAgg(figure)
        figure.dpi = _DPI
        canvas.draw()
        pixels = canvas.buffer_rgba()
        figure.dpi = own
        high, wide, _ = pixels.shape
        image = Image.frombuffer("RGBA", (wide, high), pixels).convert("RGB")
        image.save(stream, "png", dpi=(_DPI, _DPI), compress_level=3)
    else:
        figure.savefig(stream, format=form, dpi=_DPI, metadata=metadata[form])
    return stream.getvalue()
