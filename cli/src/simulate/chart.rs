//! Replicas and load over time, for a terminal: two charts of one time axis. Eighths of a cell where the terminal has
//! Unicode, ASCII where it has not.

use stowage_simulator::record::Sample;

use super::report::{Report, thinned};
use super::text::Style;
use crate::out::Tone;

/// Rows of the charts.
const REPLICA_ROWS: usize = 6;
const LOAD_ROWS: usize = 4;
/// Columns of the scale left of a chart, its line included.
const SCALE: usize = 7;

/// Characters of one look.
struct Glyphs {
    /// A cell that is filled from nothing to whole.
    parts: [char; 9],
    starting: char,
    line: char,
}

const UNICODE: Glyphs =
    Glyphs { parts: [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'], starting: '░', line: '│' };
const ASCII: Glyphs = Glyphs { parts: [' ', '.', '.', '.', ':', ':', ':', '#', '#'], starting: '+', line: '|' };

pub(super) fn chart(report: &Report, style: Style) -> String {
    let glyphs = if style.unicode { UNICODE } else { ASCII };
    let columns = columns(&report.series, style.width.saturating_sub(SCALE).max(1));
    let most = |value: fn(&Sample) -> f64| columns.iter().map(value).fold(0.0, f64::max);
    let (replicas, load) = (most(|sample| sample.replicas as f64), most(|sample| sample.load));
    let (full, starting) = (glyphs.parts[8], glyphs.starting);
    let mut out = format!("replicas  {full} serving  {starting} starting\n");
    let bars = columns.iter().map(|sample| Bar { solid: sample.ready as f64, whole: sample.replicas as f64 });
    out += &panel(&bars.collect::<Vec<_>>(), replicas.max(1.0), REPLICA_ROWS, &glyphs, style, Tone::Good);
    out += "load      in busy replicas\n";
    let bars = columns.iter().map(|sample| Bar { solid: sample.load, whole: sample.load });
    out +=
        &panel(&bars.collect::<Vec<_>>(), if load > 0.0 { load } else { 1.0 }, LOAD_ROWS, &glyphs, style, Tone::Warn);
    let (from, to) = (report.time(0.0), report.time(report.trace.seconds));
    let gap = columns.len().saturating_sub(from.len() + to.len()).max(1);
    out + &format!("{:SCALE$}{from}{:gap$}{to}\n", "", "")
}

/// One sample per column; a short trace is stretched.
fn columns(series: &[Sample], width: usize) -> Vec<Sample> {
    let found = thinned(series, width);
    (0..width).filter_map(|column| found.get(column * found.len() / width).copied()).collect()
}

/// One column: filled up to the one value, marked up to the other.
struct Bar {
    solid: f64,
    whole: f64,
}

fn panel(bars: &[Bar], most: f64, rows: usize, glyphs: &Glyphs, style: Style, tone: Tone) -> String {
    let mut out = String::new();
    for row in (0..rows).rev() {
        // Eighths of a cell below this row.
        let eighths = |value: f64| (value / most * rows as f64 * 8.0).round() as i64 - 8 * row as i64;
        let cell = |bar: &Bar| match (eighths(bar.solid), eighths(bar.whole)) {
            (solid @ 1.., _) => glyphs.parts[solid.min(8) as usize],
            (_, 1..) => glyphs.starting,
            _ => ' ',
        };
        let scale = match row {
            row if row + 1 == rows => shown(most),
            0 => "0".to_owned(),
            _ => String::new(),
        };
        let cells: String = bars.iter().map(cell).collect();
        let cells = style.paint.paint(tone, cells.trim_end());
        out += format!("{scale:>5} {}{cells}", glyphs.line).trim_end();
        out.push('\n');
    }
    out
}

fn shown(value: f64) -> String {
    if value.fract() == 0.0 || value >= 100.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}
