"""Pictures of what a corpus holds."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, MaxNLocator

from radloop import html
from radloop.data.quality.overview import Frequencies, Overview, Size

# The same split has the same colour everywhere.
SPLITS = (("train", "first"), ("validation", "second"), ("test", "third"), ("no split", "rest"))
_ANSWER_TYPES = (("closed", "first"), ("open", "second"), ("without type", "rest"))
_PLAIN = (("", "first"),)
_ACCENT, _INK, _SOFT, _LINE, _REST = "#0b6e8a", "#1c2733", "#5b6b7b", "#d9e0e7", "#b8c0c8"
_TEXTS = {"report": "reports", "caption": "captions"}
_PARTS = {"question": "questions", "answer": "answers", "context": "contexts"}
_COLUMNS = {"modality": "Modality", "body_part": "Body part", "view": "View", "format": "File format"}
_FEWEST_BARS, _MAX_BARS = 12, 40
_SHOWN_SHARE, _LONG_TAIL = 0.995, 1.3
_PANELS_A_ROW = 3
_NAME = 40  # characters of a data set's or task's name


def contents(overview: Overview) -> Iterator[Markup]:
    """Yield the sections on what the corpus holds."""
    yield html.section("Samples and images", html.charts(_counted(overview)) + _not_given(overview))
    answers = [_answers(task, values) for task, values in overview.answers.items() if _is_shown(task, values)]
    if answers:
        yield html.section("Answers", html.charts(answers) if len(answers) > 1 else answers[0])
    if overview.labels.top:
        yield html.section("Findings and concepts", _findings(overview.labels))
    drawn = lengths(overview)
    if drawn:
        yield html.section("Lengths", html.figure(drawn) + html.note(_ABOUT_TOKENS))
    if overview.num_images:
        yield html.section(
            "Image sizes and use", html.figure(sizes_and_use(overview), _about_sizes(overview))
        )


_ABOUT_TOKENS = (
    "Tokens are words and punctuation marks here, not a model's own; of Chinese and Japanese, characters. "
    "Empty texts do not count."
)


def _counted(overview: Overview) -> Iterator[Markup]:
    rows = [
        (_named(group.dataset, group.task), group.splits, f"{group.samples:,}") for group in overview.groups
    ]
    samples, images = overview.num_samples, overview.num_images
    yield html.bars("Data sets", rows, SPLITS, f"{samples:,} samples by data set and task")
    for column, title in _COLUMNS.items():
        if overview.images[column].top:
            yield _bars(title, overview.images[column], f"of {images:,} images")
    if overview.question_types.top:
        yield _bars("Question types", overview.question_types, f"of {samples:,} samples")
    if overview.languages.distinct > 1:
        yield _bars("Languages", overview.languages, f"of {samples:,} samples")


def _named(dataset: str, task: str) -> str:
    return " · ".join(name[:_NAME] for name in (dataset, task) if name) or "unnamed"


def _not_given(overview: Overview) -> Markup:
    missing = [title.lower() for name, title in _COLUMNS.items() if not overview.images[name].top]
    if not overview.question_types.top:
        missing.append("question type")
    return html.note(f"Not given by the data: {', '.join(missing)}.") if missing else Markup("")


def _is_shown(task: str, answers: Frequencies) -> bool:
    """Texts that occur once each say nothing about frequencies."""
    return bool(answers.top) and (task not in _TEXTS or sum(answers.top[0].counts) > 1)


def _answers(task: str, answers: Frequencies) -> Markup:
    if task in _TEXTS:
        repeated = [item for item in answers.top if sum(item.counts) > 1]
        rows = [(item.value, (sum(item.counts),), f"{sum(item.counts):,}") for item in repeated]
        about = f"{answers.occurrences:,}, of which {answers.distinct:,} differ"
        return html.bars(f"Commonest {_TEXTS[task]}", rows, _PLAIN, about)
    types = [
        f"{count / answers.occurrences:.0%} {name}"
        for count, (name, _) in zip(answers.totals, _ANSWER_TYPES, strict=True)
        if count
    ]
    about = f"answers ({', '.join(types)}), of which {answers.distinct:,} differ"
    return _bars(f"Commonest answers: {task[:_NAME] or 'no task'}", answers, about, _ANSWER_TYPES)


def _findings(labels: Frequencies) -> Markup:
    about = f"{labels.occurrences:,} labels of samples, {labels.distinct:,} different"
    more = labels.distinct - len(labels.top)
    note = html.note(f"The {len(labels.top)} commonest; {more:,} others are rarer.") if more else Markup("")
    rows = [(item.value, item.counts, f"{sum(item.counts):,}") for item in labels.top]
    return html.bars("Commonest findings and concepts", rows, SPLITS, about) + note


def _bars(title: str, values: Frequencies, about: str, series: Sequence[tuple[str, str]] = _PLAIN) -> Markup:
    """Bars of the commonest values with their shares; how many there are, and what the others add up to."""
    total = values.occurrences
    rows = [(item.value, item.counts, _share(sum(item.counts), total)) for item in values.top]
    if values.others:
        about += f"; {values.distinct - len(values.top):,} rarer values: {_share(values.others, total)}"
    return html.bars(title, rows, series, f"{total:,} {about}")


def _share(count: int, total: int) -> str:
    share = count / total
    return f"{count:,} · {share:.1%}" if share < 0.0995 else f"{count:,} · {share:.0%}"


def lengths(overview: Overview) -> bytes | None:
    """Return a PNG: how long questions, answers, reports and contexts are; None if all are alike."""
    panels = [
        (_titled(task, part), counts)
        for task, parts in overview.lengths.items()
        for part, counts in parts.items()
        if len(counts) > 1
    ]
    if not panels:
        return None
    num_columns = min(len(panels), _PANELS_A_ROW)
    num_rows = -(-len(panels) // num_columns)
    figure = Figure(figsize=(10.6, 2.6 * num_rows), layout=ConstrainedLayoutEngine(hspace=0.1, wspace=0.06))
    all_axes = figure.subplots(num_rows, num_columns, squeeze=False).ravel()
    for axes, (title, counts) in zip(all_axes, panels, strict=False):
        _histogram(axes, counts, title, "tokens", "samples")
    for axes in all_axes[len(panels) :]:
        axes.set_visible(False)
    return _png(figure)


def _titled(task: str, part: str) -> str:
    if part == "answer" and task in _TEXTS:
        return _TEXTS[task].capitalize()
    return f"{_PARTS[part].capitalize()} ({task[:_NAME] or 'no task'})"


def sizes_and_use(overview: Overview) -> bytes:
    """Return a PNG: width and height of the images, and how many questions use one."""
    figure = Figure(figsize=(10.6, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    _sizes(left, overview.sizes)
    _histogram(right, overview.questions_per_image, "Samples that use an image", "samples", "images")
    return _png(figure)


def _about_sizes(overview: Overview) -> str:
    if not overview.sizes:
        return "No image could be read."
    images = sum(size.images for size in overview.sizes)
    common = overview.sizes[0]
    return (
        f"{images:,} of {overview.num_images:,} images could be read. Commonest size: about "
        f"{common.width} x {common.height} pixels ({_share(common.images, images)}). A circle's area "
        "is the number of images; those on the line are square."
    )


def _sizes(axes: Axes, sizes: list[Size]) -> None:
    axes.set_title("Image sizes", loc="left", fontsize=10, color=_INK)
    axes.set_visible(bool(sizes))
    if sizes:
        most = max(size.images for size in sizes)
        axes.scatter(
            [size.width for size in sizes], [size.height for size in sizes],
            s=[max(6.0, 420 * size.images / most) for size in sizes],
            color=_ACCENT, alpha=0.45, edgecolor=_ACCENT, lw=0.8, zorder=3,
        )  # fmt: skip
        low = min(min(size.width, size.height) for size in sizes) / 1.5
        high = max(max(size.width, size.height) for size in sizes) * 1.5
        axes.plot([low, high], [low, high], color=_REST, lw=1, zorder=2)
        powers = [2**k for k in range(17) if low <= 2**k <= high]
        axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_ticks(powers[:: 1 + len(powers) // 9])
            axis.set_ticks([], minor=True)
    axes.set_box_aspect(1)
    _finish(axes, "width in pixels", "height in pixels")
    axes.grid(axis="x", color=_LINE)


def _histogram(axes: Axes, counts: dict[int, int], title: str, unit: str, counted: str) -> None:
    """Draw whole numbers and how often each occurs; the few largest share the last bar."""
    ordered = sorted(counts.items())
    total, largest = sum(counts.values()), ordered[-1][0]
    low, last = ordered[0][0], largest
    if last - low >= _MAX_BARS:
        last = _quantile(ordered, _SHOWN_SHARE)
        if largest - low < _LONG_TAIL * (last - low):
            last = largest
    bars = max(_FEWEST_BARS, min(_MAX_BARS, int(2 * total**0.5)))  # of few samples, fine bars are a comb
    width = max(1, -(-(last - low + 1) // bars))
    heights: dict[int, int] = {}
    for value, count in ordered:
        start = low + (min(value, last) - low) // width * width
        heights[start] = heights.get(start, 0) + count
    centres = [start + (width - 1) / 2 for start in heights]
    axes.bar(centres, list(heights.values()), width=0.92 * width, color=_ACCENT)
    about = (
        f"median {_quantile(ordered, 0.5):,}, 95 % up to {_quantile(ordered, 0.95):,}, largest {largest:,}"
    )
    axes.set_title(f"{title}\n", loc="left", fontsize=10, color=_INK, parse_math=False)
    axes.text(0, 1.03, f"n = {total:,}; {about}", transform=axes.transAxes, fontsize=8, color=_SOFT)
    axes.set_xlim(centres[0] - width, max(centres[-1], centres[0] + 4 * width) + width)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    beyond = f"; the last bar: {last:,} and more" if largest > last else ""
    _finish(axes, f"{unit}{beyond}", counted)


def _quantile(ordered: list[tuple[int, int]], share: float) -> int:
    """The smallest value that at least this share of the counts does not exceed."""
    missing = share * sum(count for _, count in ordered)
    for value, count in ordered:  # noqa: B007 (it is what this returns)
        missing -= count
        if missing <= 0:
            break
    return value


_COUNT = FuncFormatter(lambda value, _: f"{value:,.0f}")


def _finish(axes: Axes, x_label: str, y_label: str) -> None:
    axes.set_xlabel(x_label, color=_SOFT, fontsize=9)
    axes.set_ylabel(y_label, color=_SOFT, fontsize=9)
    axes.xaxis.set_major_formatter(_COUNT)
    axes.yaxis.set_major_formatter(_COUNT)
    axes.grid(axis="y", color=_LINE)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelcolor=_INK, labelsize=9)
    axes.spines[:].set_visible(False)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160, metadata={"Software": None})
    return buffer.getvalue()
