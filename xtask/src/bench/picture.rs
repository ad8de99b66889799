//! Tables as a picture: bars, one panel for each drawn column, one group of them for each group of rows.

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::{
    BLACK, ChartBuilder, Color as _, DrawingArea, IntoDrawingArea as _, IntoFont as _, IntoLogRange as _,
    RGBColor, Ranged, Rectangle, SVGBackend, WHITE,
};
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::report::Table;

const WIDTH: u32 = 1200;
/// The width of the groups' names.
const NAMES: u32 = 260;
/// A bar, and the space between two groups of them.
const BAR: u32 = 11;
const GAP: u32 = 9;
/// A panel's title and axis; a table's caption and legend.
const FRAME: u32 = 56;
const HEADING: u32 = 52;
const FONT: &str = "sans-serif";

/// An SVG of all tables, one above the other.
pub(super) fn draw(tables: &[Table]) -> Result<String> {
    let heights: Vec<u32> = tables.iter().map(height).collect();
    let mut svg = String::new();
    {
        let mut rest = SVGBackend::with_string(&mut svg, (WIDTH, heights.iter().sum())).into_drawing_area();
        rest.fill(&WHITE).map_err(failed)?;
        for (table, height) in tables.iter().zip(heights) {
            let (area, below) = rest.split_vertically(height);
            draw_table(&area, table)?;
            rest = below;
        }
    }
    Ok(svg)
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Okabe and Ito's colours, which colour-blind people can distinguish; ours first.
const COLOURS: [RGBColor; 5] = [
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(153, 153, 153),
];

fn height(table: &Table) -> u32 {
    HEADING + FRAME + bars_height(table)
}

fn bars_height(table: &Table) -> u32 {
    table.groups.iter().map(|group| group.rows.len() as u32 * BAR + GAP).sum()
}

fn draw_table(area: &Area<'_>, table: &Table) -> Result<()> {
    let (heading, body) = area.split_vertically(HEADING);
    let text = |area: &Area<'_>, text: &str, at: (i32, i32), anchor: HPos| {
        let style = (FONT, 13).into_font().color(&BLACK).pos(Pos::new(anchor, VPos::Center));
        area.draw_text(text, &style, at).map_err(failed)
    };
    text(&heading, &table.caption, (10, 16), HPos::Left)?;
    let mut x = 10;
    for ((name, _), colour) in table.groups.iter().take(1).flat_map(|g| &g.rows).zip(COLOURS) {
        heading.draw(&Rectangle::new([(x, 32), (x + 12, 44)], colour.filled())).map_err(failed)?;
        text(&heading, name, (x + 18, 38), HPos::Left)?;
        x += 40 + 8 * name.chars().count() as i32;
    }
    let (names, panels) = body.split_horizontally(NAMES);
    let drawn: Vec<usize> = (0..table.heads.len()).filter(|column| table.heads[*column].1).collect();
    for (column, panel) in drawn.iter().zip(panels.split_evenly((1, drawn.len().max(1)))) {
        draw_panel(&panel, table, *column)?;
    }
    // As high as the panels' titles.
    let mut y = TITLE as i32;
    for group in &table.groups {
        let height = (group.rows.len() as u32 * BAR) as i32;
        text(&names, &group.title, (NAMES as i32 - 6, y + height / 2), HPos::Right)?;
        y += height + GAP as i32;
    }
    Ok(())
}

/// A logarithmic scale where one bar would hide the others.
fn draw_panel(area: &Area<'_>, table: &Table, column: usize) -> Result<()> {
    let values = table.groups.iter().flat_map(|group| &group.rows).filter_map(|(_, values)| values[column]);
    let values: Vec<f64> = values.filter(|value| value.is_finite() && *value > 0.0).collect();
    let (Some(least), Some(most)) =
        (values.iter().copied().reduce(f64::min), values.iter().copied().reduce(f64::max))
    else {
        return Ok(());
    };
    if most / least > 20.0 {
        let (low, high) = (10f64.powf(least.log10().floor()), 10f64.powf(most.log10().ceil()));
        draw_bars(area, table, column, low, (low..high).log_scale())
    } else {
        draw_bars(area, table, column, 0.0, 0.0..most * 1.05)
    }
}

const TITLE: u32 = 26;

fn draw_bars<X>(area: &Area<'_>, table: &Table, column: usize, low: f64, x: X) -> Result<()>
where
    X: AsRangedCoord<Value = f64>,
    X::CoordDescType: ValueFormatter<f64> + Ranged<ValueType = f64>,
{
    let (title, area) = area.split_vertically(TITLE);
    let centred = (FONT, 14).into_font().color(&BLACK).pos(Pos::new(HPos::Center, VPos::Center));
    let middle = (title.dim_in_pixel().0 as i32 / 2, TITLE as i32 / 2);
    title.draw_text(table.heads[column].0, &centred, middle).map_err(failed)?;
    let bars = f64::from(bars_height(table));
    let mut chart = ChartBuilder::on(&area)
        .margin_right(18)
        .margin_left(18)
        .x_label_area_size(FRAME - TITLE)
        .build_cartesian_2d(x, 0.0..bars)
        .map_err(failed)?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .disable_y_axis()
        .x_labels(5)
        .x_label_formatter(&|value| tick(*value))
        .light_line_style(WHITE)
        .draw()
        .map_err(failed)?;
    let mut y = bars;
    for group in &table.groups {
        for ((_, values), colour) in group.rows.iter().zip(COLOURS.iter().cycle()) {
            if let Some(value) = values[column] {
                let bar = [(low, y), (value.max(low), y - f64::from(BAR - 2))];
                chart.draw_series([Rectangle::new(bar, colour.filled())]).map_err(failed)?;
            }
            y -= f64::from(BAR);
        }
        y -= f64::from(GAP);
    }
    Ok(())
}

/// A number on an axis.
fn tick(value: f64) -> String {
    match value {
        value if value >= 1e6 => format!("{}M", value / 1e6),
        value if value >= 1e3 => format!("{}k", value / 1e3),
        value => value.to_string(),
    }
}

fn failed(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("drawing: {error}")
}

#[cfg(test)]
mod tests {
    use super::super::report::Group;
    use super::*;

    #[test]
    fn every_value_is_a_bar_in_every_drawn_column() {
        let row = |name: &str, x: f64| (name.to_owned(), vec![Some(x), Some(1.0), None]);
        let groups = ["one", "two"].map(|title| Group {
            title: title.into(),
            rows: vec![row("a", 0.5), row("b", 70.0), ("c".into(), vec![None; 3])],
        });
        let heads = vec![("x/s", true), ("s", true), ("hidden", false)];
        let svg = draw(&[Table { caption: "Medians".into(), heads, groups: groups.into() }]).unwrap();
        let bars = |colour: &str| svg.matches(&format!("fill=\"{colour}\"")).count();
        assert_eq!(bars("#0072B2"), 1 + 2 * 2, "a in the legend, and in two groups of two panels");
        assert_eq!(bars("#E69F00"), 1 + 2 * 2);
        assert_eq!(bars("#009E73"), 1, "c has no values");
        for text in ["Medians", "one", "two", "x/s"] {
            assert!(svg.contains(text), "{text}");
        }
        assert!(!svg.contains("hidden"));
    }
}
