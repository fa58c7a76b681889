//! The answer as text: what was simulated, the figures, the chart, the decisions.

use super::chart::chart;
use super::report::Report;
use crate::out::{Paint, Table, Tone, ascii};

/// What the terminal can do.
#[derive(Clone, Copy, Debug)]
pub(super) struct Style {
    /// Columns.
    pub width: usize,
    pub unicode: bool,
    pub paint: Paint,
}

/// Columns of the labels.
const LABEL: usize = 12;
/// Columns of a policy in the table, and of the names of the figures.
const POLICY: usize = 12;
const FIGURE: usize = 17;

pub(super) fn text(report: &Report, decisions: usize, style: Style) -> String {
    let mut out = style.paint.paint(Tone::Strong, &report.deployment) + "\n";
    for (label, text) in report.facts() {
        out += &labelled(label, &text, style.width);
    }
    out += &notes(report, style);
    out.push('\n');
    out += &figures(report, style);
    out.push('\n');
    out += &chart(report, style);
    out.push('\n');
    out += &decided(report, decisions, style);
    let text = if style.unicode { out } else { ascii(&out) };
    text.trim_end().to_owned() + "\n"
}

fn notes(report: &Report, style: Style) -> String {
    let mut out = String::new();
    for note in &report.notes {
        out += &style.paint.paint(Tone::Faint, labelled("note", note, style.width).trim_end());
        out.push('\n');
    }
    if let Some(why) = &report.frozen {
        out += &style.paint.paint(Tone::Bad, labelled("no decision", why, style.width).trim_end());
        out.push('\n');
    }
    out
}

/// As many policies beside each other as there is room for, the product's always first.
fn figures(report: &Report, style: Style) -> String {
    let beside = (style.width.saturating_sub(FIGURE) / POLICY).saturating_sub(1).max(1);
    let others: Vec<usize> = (1..report.results.len()).collect();
    let blocks: Vec<&[usize]> = if others.is_empty() { vec![&[]] } else { others.chunks(beside).collect() };
    let rows = report.rows();
    let table = |block: &&[usize]| {
        let columns = || std::iter::once(0).chain(block.iter().copied());
        let mut table = Table::default();
        table.row(std::iter::once(String::new()).chain(columns().map(|c| report.results[c].policy.clone())));
        for (name, values) in &rows {
            table.row(std::iter::once((*name).to_owned()).chain(columns().map(|c| values[c].clone())));
        }
        table.render("", style.paint)
    };
    blocks.iter().map(table).collect::<Vec<_>>().join("\n")
}

fn decided(report: &Report, most: usize, style: Style) -> String {
    let all = report.decisions.len();
    if all == 0 {
        return "decisions   none: the number of replicas stayed\n".to_owned();
    }
    let mut out = format!("decisions   {all}\n");
    for decision in report.decisions.iter().take(most) {
        let change = format!("{} → {}", decision.from, decision.to);
        let head = format!("{}  {change}", report.time(decision.at_s));
        out += &hanging(&format!("{head}  {}", decision.why), head.chars().count() + 2, style.width);
    }
    if all > most {
        out += &format!("and {} more (--decisions {all})\n", all - most);
    }
    out
}

fn labelled(label: &str, text: &str, width: usize) -> String {
    hanging(&format!("{label:<LABEL$}{text}"), LABEL, width)
}

/// Lines of at most `width` columns, broken at blanks; all but the first are indented, less where that leaves no room.
fn hanging(text: &str, indent: usize, width: usize) -> String {
    let indent = indent.min(width / 3);
    let (mut out, mut column, mut blanks, mut fresh) = (String::new(), 0, 0, true);
    for (position, word) in text.split(' ').enumerate() {
        // Blanks that align are kept.
        blanks += usize::from(position > 0);
        let length = word.chars().count();
        if length == 0 {
            continue;
        }
        if !fresh && column + blanks + length > width {
            out.push('\n');
            (column, blanks) = (0, indent);
        }
        out.extend(std::iter::repeat_n(' ', blanks));
        out.push_str(word);
        (column, blanks, fresh) = (column + blanks + length, 0, false);
    }
    out.push('\n');
    out
}
