"""The console's charts, in Altair. Colours come from the theme, so that they work in light and dark mode."""

import altair as alt
import pandas as pd

SIDES = ["#2f6fb5", "#d2691e"]
"""A and B, in every chart that compares them."""
KEPT, DROPPED = "#b5502d", "#d9b8a4"
GROUPS = ["#2e8b6f", "#a0762c", "#7a4fa0"]
"""Further colours if more than two are compared."""
TITLES = {
    "loss": "Loss",
    "heldout_loss": "Held-out loss",
    "grad_norm": "Gradient norm",
    "lr": "Learning rate",
    "tokens_per_second": "Tokens per second",
}
HEIGHT = 190
SHORT = "abs(datum.value) >= 1000 ? format(datum.value, '~s') : format(datum.value, '~g')"
"""Vega expression that writes numbers like 1.2M and 0.0003."""


def title(curve: str) -> str:
    """A curve's display name."""
    return TITLES.get(curve) or curve.replace("heldout", "held-out").replace("_", " ").replace("/", ": ").capitalize()


def curve(frame: pd.DataFrame, name: str, height: int = HEIGHT) -> alt.Chart:
    """One curve of one job as a line, and its held-out counterpart, if any, as a line with points.

    `frame`: step, name, value.
    """
    held_out = f"heldout_{name}"
    shown = frame[frame["name"].isin([name, held_out])]
    if held_out not in set(shown["name"]):
        base = _lines(shown, alt.value(SIDES[0]), title(name))
        return base.mark_line(strokeWidth=1.6, point=len(shown) < 8).properties(height=height)
    shown = shown.assign(name=shown["name"].map({name: "training", held_out: "held-out"}))
    scale = alt.Scale(domain=["training", "held-out"], range=SIDES)
    base = _lines(shown, alt.Color("name:N", title=None, scale=scale, legend=alt.Legend(orient="top")), title(name))
    points = base.transform_filter(alt.datum.name == "held-out").mark_point(filled=True, size=45)
    return (base.mark_line(strokeWidth=1.6) + points).properties(height=height)


def compared_curve(frame: pd.DataFrame, name: str, checkpoints: tuple[str, str], height: int = 260) -> alt.Chart:
    """One curve of two jobs, overlaid. `frame`: step, name, value, checkpoint."""
    shown = frame[frame["name"] == name]
    colour = alt.Color("checkpoint:N", title=None, scale=_sides(checkpoints), legend=alt.Legend(orient="top"))
    base = _lines(shown, colour, title(name))
    return base.mark_line(strokeWidth=1.8, point=len(shown) < 16).properties(height=height)


def accuracy_bars(frame: pd.DataFrame, checkpoints: tuple[str, str]) -> alt.LayerChart:
    """Accuracy of two checkpoints by task, with 95% whiskers. `frame`: task, checkpoint, accuracy, low, high."""
    offset = alt.YOffset("checkpoint:N", sort=list(checkpoints))
    order = list(dict.fromkeys(frame["task"]))
    base = alt.Chart(frame).encode(
        y=alt.Y("task:N", title=None, sort=order, axis=alt.Axis(labelLimit=220)), yOffset=offset
    )
    tooltip = ["task", "checkpoint", *(alt.Tooltip(name, format=".1%") for name in ("accuracy", "low", "high"))]
    scale = alt.Scale(domain=[0, max(0.05, min(1.0, float(frame["high"].max()) * 1.05))])
    bars = base.mark_bar(opacity=0.85, cornerRadiusEnd=2).encode(
        x=alt.X("accuracy:Q", title="Answered correctly", axis=alt.Axis(format=".0%"), scale=scale),
        color=alt.Color("checkpoint:N", title=None, scale=_sides(checkpoints), legend=alt.Legend(orient="top")),
        tooltip=tooltip,
    )
    whiskers = base.mark_bar(size=2, color="#8a837c").encode(x="low:Q", x2="high:Q", tooltip=tooltip)
    return (bars + whiskers).properties(height=alt.Step(20))


def difference_plot(frame: pd.DataFrame) -> alt.LayerChart:
    """Difference by task with its interval, against zero. `frame`: task, difference, low, high (shares of 1)."""
    order = list(frame["task"])
    words = ["B is better", "not clear", "B is worse"]
    shown = frame.assign(
        verdict=[words[0] if row.low > 0 else words[2] if row.high < 0 else words[1] for row in frame.itertuples()]
    )
    clear = alt.Color(
        "verdict:N",
        title=None,
        scale=alt.Scale(domain=words, range=["#2e8b6f", "#8a837c", "#b03a52"]),
        legend=alt.Legend(orient="top"),
    )
    reach = max(0.05, float(frame[["low", "high"]].abs().to_numpy().max()) * 1.08)
    axis = alt.X(
        "low:Q",
        title="Difference (B minus A), 95% interval",
        axis=alt.Axis(format="+.0%"),
        scale=alt.Scale(domain=[-reach, reach]),
    )
    base = alt.Chart(shown).encode(
        y=alt.Y("task:N", title=None, sort=order, axis=alt.Axis(labelLimit=220)), color=clear
    )
    tooltip = ["task", *(alt.Tooltip(name, format="+.1%") for name in ("difference", "low", "high"))]
    zero = alt.Chart(pd.DataFrame({"x": [0]})).mark_rule(strokeDash=[3, 3], color="#8a837c").encode(x="x:Q")
    lines = base.mark_rule(strokeWidth=2.2).encode(x=axis, x2="high:Q", tooltip=tooltip)
    points = base.mark_point(filled=True, size=80, opacity=1).encode(x=alt.X("difference:Q"), tooltip=tooltip)
    return (zero + lines + points).properties(height=alt.Step(40))


def funnel(frame: pd.DataFrame, by: str = "step") -> alt.LayerChart:
    """Bytes kept and dropped by each step (or source). `frame`: `by`, documents_*, bytes_*."""
    shown = frame.assign(
        megabytes_in=frame["bytes_in"] / 1e6,
        megabytes=frame["bytes_out"] / 1e6,
        label=[f"{row.bytes_out / 1e6:,.1f} MB, {row.documents_out:,} documents" for row in frame.itertuples()],
    )
    order = list(frame[by])
    y = alt.Y(f"{by}:N", title=None, sort=order, axis=alt.Axis(labelLimit=260))
    tooltip = [
        by,
        *(alt.Tooltip(name, format=",") for name in ("documents_in", "documents_out", "bytes_in", "bytes_out")),
    ]
    limit = alt.Scale(domain=[0, float(shown["megabytes_in"].max()) * 1.45 or 1.0])
    x = alt.X(
        "megabytes_in:Q",
        title="Megabytes: dark is kept, light is dropped",
        scale=limit,
        axis=alt.Axis(tickCount=8),
    )
    base = alt.Chart(shown).encode(y=y, tooltip=tooltip)
    before = base.mark_bar(color=DROPPED, cornerRadiusEnd=2).encode(x=x)
    after = base.mark_bar(color=KEPT, cornerRadiusEnd=2).encode(x="megabytes:Q")
    text = base.mark_text(align="left", dx=6, color="#8a837c", fontSize=13).encode(x="megabytes_in:Q", text="label:N")
    return (before + after + text).properties(height=alt.Step(34))


def bars(frame: pd.DataFrame, category: str, amount: str, heading: str) -> alt.Chart:
    """One bar per category, in the given order."""
    y = alt.Y(f"{category}:N", title=None, sort=list(frame[category]), axis=alt.Axis(labelLimit=260))
    x = alt.X(f"{amount}:Q", title=heading, axis=alt.Axis(tickCount=8))
    tooltip = [category, alt.Tooltip(amount, format=",")]
    return (
        alt.Chart(frame)
        .mark_bar(color=KEPT, cornerRadiusEnd=2)
        .encode(x=x, y=y, tooltip=tooltip)
        .properties(height=alt.Step(26))
    )


def columns(frame: pd.DataFrame, category: str, amount: str, heading: str, below: str) -> alt.Chart:
    """One column per category, in the given order."""
    x = alt.X(f"{category}:N", title=below, sort=list(frame[category]), axis=alt.Axis(labelAngle=0))
    tooltip = [category, alt.Tooltip(amount, format=",")]
    base = alt.Chart(frame).mark_bar(color=KEPT, cornerRadiusEnd=2)
    return base.encode(x=x, y=alt.Y(f"{amount}:Q", title=heading), tooltip=tooltip).properties(height=HEIGHT)


def grouped(frame: pd.DataFrame, category: str, series: str, amount: str, heading: str, form: str) -> alt.Chart:
    """One bar per series for each category, in the given order; `form` is the number format."""
    order, names = list(dict.fromkeys(frame[category])), list(dict.fromkeys(frame[series]))
    colours = [SIDES[1], SIDES[0], *GROUPS][: len(names)]
    encoded = {
        "y": alt.Y(f"{category}:N", title=None, sort=order, axis=alt.Axis(labelLimit=220)),
        "yOffset": alt.YOffset(f"{series}:N", sort=names),
        "x": alt.X(f"{amount}:Q", title=heading, axis=alt.Axis(format=form, tickCount=6)),
        "color": alt.Color(
            f"{series}:N", title=None, scale=alt.Scale(domain=names, range=colours), legend=alt.Legend(orient="top")
        ),
        "tooltip": [category, series, alt.Tooltip(amount, format=form)],
    }
    base = alt.Chart(frame).mark_bar(cornerRadiusEnd=2).encode(**encoded)
    return base.properties(height=alt.Step(14))


def shares(frame: pd.DataFrame, across: str, down: str, share: str) -> alt.LayerChart:
    """A heatmap of shares, darker where less is left, in the given order."""
    base = alt.Chart(frame).encode(
        x=alt.X(
            f"{across}:N",
            title=None,
            sort=list(dict.fromkeys(frame[across])),
            axis=alt.Axis(labelAngle=0, orient="top"),
        ),
        y=alt.Y(f"{down}:N", title=None, sort=list(dict.fromkeys(frame[down])), axis=alt.Axis(labelLimit=220)),
        tooltip=[down, across, alt.Tooltip(share, format=".2%")],
    )
    fade = alt.Opacity("gone:Q", scale=alt.Scale(domain=[0, 1], range=[0.05, 1]), legend=None)
    cells = base.transform_calculate(gone=f"sqrt(1 - datum.{share})").mark_rect(color=KEPT).encode(opacity=fade)
    text = base.mark_text(color="#8a837c", fontSize=13).encode(text=alt.Text(f"{share}:Q", format=".1%"))
    return (cells + text).properties(height=alt.Step(30))


def _lines(frame: pd.DataFrame, colour: object, heading: str) -> alt.Chart:
    return alt.Chart(frame).encode(
        x=alt.X("step:Q", title="Step", axis=alt.Axis(tickMinStep=1, format="~s")),
        y=alt.Y("value:Q", title=None, scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=5, labelExpr=SHORT)),
        color=colour,
        tooltip=["step:Q", alt.Tooltip("value:Q", title=heading, format=".5g")],
    )


def _sides(checkpoints: tuple[str, str]) -> alt.Scale:
    return alt.Scale(domain=list(checkpoints), range=SIDES)
