"""Whether the texts of a drawn matplotlib figure can be read: apart from each other, whole, large enough."""

from itertools import combinations

from adaptive_routing.figures import style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Annotation

SMALLEST = 6.0  # points at print size


def texts_of(figure):
    """Draw a figure and list (text, its bounding box in pixels, its size in points) of what is visible."""
    figure.dpi = 144  # quick, and letters are a little wider than at 300
    canvas = FigureCanvasAgg(figure)
    with style.visual_language():
        figure.draw_without_rendering()  # lays everything out, and paints nothing
        renderer = canvas.get_renderer()
        texts = list(figure.texts)
        texts += [figure._suptitle] if figure._suptitle is not None and figure._suptitle not in texts else []
        for legend in figure.legends:
            texts += legend.get_texts()
        for axes in figure.axes:
            texts += [axes.title, axes._left_title, axes._right_title, axes.xaxis.label, axes.yaxis.label]
            texts += axes.texts
            for axis in (axes.xaxis, axes.yaxis):
                low, high = sorted(axis.get_view_interval())
                for tick in axis.get_major_ticks():
                    if low <= tick.get_loc() <= high:
                        texts += [tick.label1, tick.label2]
        found = []
        for text in texts:
            if text.get_text().strip() and text.get_visible():
                # An annotation's own extent includes its leader line.
                box = super(Annotation, text) if isinstance(text, Annotation) else text
                found.append((text.get_text(), box.get_window_extent(renderer), text.get_fontsize()))
    return found


def illegible(figure):
    """What cannot be read: pairs of texts that cover each other, texts off the page or too small."""
    texts = texts_of(figure)
    # A box is a little taller than its letters: 1 point may be shared.
    point = figure.dpi / 72
    boxes = [(text, box.padded(-0.5 * point)) for text, box, _ in texts]
    faults = [(a, b) for (a, box_a), (b, box_b) in combinations(boxes, 2) if box_a.overlaps(box_b)]
    page = figure.bbox
    faults += [
        text
        for text, box in boxes
        if box.x0 < page.x0 or box.x1 > page.x1 or box.y0 < page.y0 or box.y1 > page.y1
    ]
    return faults + [text for text, _, size in texts if size < SMALLEST]
