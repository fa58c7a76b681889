//! The report as one HTML file: it loads nothing from elsewhere, runs no script, and has its figures as a table too.

use std::fmt::Write as _;

use stowage_simulator::record::Sample;

use super::report::{Report, thinned};

const STYLE: &str = include_str!("page.css");
/// Decisions in the page.
const MAX_DECISIONS: usize = 500;
/// Size of a plot, and the room for its scale.
const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 220.0;
const LEFT: f64 = 48.0;
const BOTTOM: f64 = 24.0;
/// Points of a line.
const POINTS: usize = 480;

pub(super) fn page(report: &Report) -> String {
    let name = escaped(&report.deployment);
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <title>{name} simulated</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{name} simulated</h1>\n"
    );
    facts(&mut out, report);
    figures(&mut out, report);
    let series = thinned(&report.series, POINTS);
    let replicas = |sample: &Sample| sample.replicas as f64;
    let ready = |sample: &Sample| sample.ready as f64;
    plot(&mut out, report, &series, "Replicas", &[("whole", "serve or start", &replicas), ("solid", "serve", &ready)]);
    plot(&mut out, report, &series, "Load, in busy replicas", &[("load", "load", &|sample: &Sample| sample.load)]);
    let queued = |sample: &Sample| sample.queued as f64;
    plot(&mut out, report, &series, "Requests that wait", &[("queue", "wait", &queued)]);
    decisions(&mut out, report);
    out + "</main>\n</body>\n</html>\n"
}

fn facts(out: &mut String, report: &Report) {
    out.push_str("<dl>\n");
    for (label, text) in report.facts() {
        let _ = writeln!(out, "<dt>{}</dt><dd>{}</dd>", escaped(label), escaped(&text));
    }
    for note in &report.notes {
        let _ = writeln!(out, "<dt>note</dt><dd>{}</dd>", escaped(note));
    }
    if let Some(why) = &report.frozen {
        let _ = writeln!(out, "<dt>no decision</dt><dd class=\"bad\">{}</dd>", escaped(why));
    }
    out.push_str("</dl>\n");
}

fn figures(out: &mut String, report: &Report) {
    out.push_str("<h2>Figures</h2>\n<div class=\"wide\"><table>\n<tr><td></td>");
    for result in &report.results {
        let _ = write!(out, "<th scope=\"col\">{}</th>", escaped(&result.policy));
    }
    out.push_str("</tr>\n");
    for (name, values) in report.rows() {
        let cells: String = values.iter().map(|value| format!("<td>{}</td>", escaped(value))).collect();
        let _ = writeln!(out, "<tr><th scope=\"row\">{}</th>{cells}</tr>", escaped(name));
    }
    out.push_str("</table></div>\n");
}

type Line<'a> = (&'a str, &'a str, &'a dyn Fn(&Sample) -> f64);

/// Areas over time, the later ones in front.
fn plot(out: &mut String, report: &Report, series: &[Sample], title: &str, lines: &[Line<'_>]) {
    let most = |(_, _, value): &Line<'_>| series.iter().map(value).fold(0.0, f64::max);
    let top = lines.iter().map(most).fold(0.0, f64::max);
    let scale = if top > 0.0 { top } else { 1.0 };
    let (end, base) = (report.trace.seconds.max(1.0), HEIGHT - BOTTOM);
    let _ = write!(
        out,
        "<figure>\n<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">\n<title>{}: at most {top:.1}</title>\n",
        escaped(title)
    );
    for (class, _, value) in lines {
        let mut path = format!("M{LEFT},{base}");
        for sample in series {
            let x = LEFT + (WIDTH - LEFT) * (sample.at_s / end).min(1.0);
            let y = base - (base - 8.0) * value(sample) / scale;
            let _ = write!(path, "V{y:.1}H{x:.1}");
        }
        let _ = writeln!(out, "<path class=\"{class}\" d=\"{path}V{base}Z\"/>");
    }
    let _ = write!(
        out,
        "<line x1=\"{LEFT}\" y1=\"{base}\" x2=\"{WIDTH}\" y2=\"{base}\"/>\n\
         <text x=\"{0}\" y=\"16\" text-anchor=\"end\">{top:.1}</text>\n<text x=\"{0}\" y=\"{base}\" text-anchor=\"end\">0</text>\n\
         <text x=\"{LEFT}\" y=\"{1}\">{2}</text>\n<text x=\"{WIDTH}\" y=\"{1}\" text-anchor=\"end\">{3}</text>\n</svg>\n",
        LEFT - 6.0,
        HEIGHT - 6.0,
        report.time(0.0),
        report.time(report.trace.seconds)
    );
    let keys: String =
        lines.iter().map(|(class, name, _)| format!("<span class=\"{class}\">{}</span>", escaped(name))).collect();
    let _ = writeln!(out, "<figcaption>{} {keys}</figcaption>\n</figure>", escaped(title));
}

fn decisions(out: &mut String, report: &Report) {
    let all = report.decisions.len();
    let shown = if all > MAX_DECISIONS { format!("{MAX_DECISIONS} of {all}") } else { all.to_string() };
    let _ = write!(
        out,
        "<h2>Decisions: {shown}</h2>\n<div class=\"wide\"><table>\n<tr><th scope=\"col\">time</th><th scope=\"col\">replicas</th><th scope=\"col\">why</th></tr>\n"
    );
    for decision in report.decisions.iter().take(MAX_DECISIONS) {
        let _ = writeln!(
            out,
            "<tr><td>{}</td><td>{} → {}</td><td>{}</td></tr>",
            report.time(decision.at_s),
            decision.from,
            decision.to,
            escaped(&decision.why)
        );
    }
    out.push_str("</table></div>\n");
}

/// As text or in an attribute.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}
