//! One frame of `top`. Pure: the state and what the terminal can do in, cells out.
//!
//! A GPU is a bar of its memory: what is promised by tenant, the part in use in a solid character. Tenants have colours where
//! the terminal has, and letters otherwise; the legend names them.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Clear, Paragraph, Wrap};
use stowage_contracts::summary::Health;
use stowage_planner::overview::{Deployment, Gpu, Tenant, Usage};
use stowage_planner::render::{age, bytes, clock, gpus, price, short_uuid};

use super::state::{App, Tab};
use crate::out::ascii;

/// What the terminal can show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Abilities {
    pub colours: bool,
    pub unicode: bool,
}

/// Below this width only what fits is shown.
const NARROW: u16 = 72;
const COLOURS: [Color; 6] = [Color::Cyan, Color::Yellow, Color::Magenta, Color::Green, Color::Blue, Color::LightRed];

/// Draws the state.
pub(crate) fn draw(frame: &mut Frame<'_>, app: &App, abilities: Abilities) {
    let mut painter = Painter { app, abilities, tenants: tenants(app), widest: 0 };
    let states = app.overview.gpus.iter().filter_map(|g| painter.state(g));
    painter.widest = states.map(|s| s.content.chars().count()).max().unwrap_or(0);
    let legend = u16::from(app.tab == Tab::Gpus && !painter.tenants.is_empty());
    let notes = painter.notes();
    let below = u16::try_from(notes.len()).unwrap_or(u16::MAX);
    let parts = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Min(1),
        Constraint::Length(legend),
        Constraint::Length(below),
    ]);
    let [head, tabs, body, colours, foot] = parts.areas(frame.area());
    frame.render_widget(painter.head(head.width), head);
    frame.render_widget(painter.tabs(), tabs);
    painter.body(frame, body);
    frame.render_widget(painter.legend(), colours);
    frame.render_widget(Paragraph::new(notes), foot);
    if let Some((title, text, first)) = &app.page {
        let area = frame.area();
        frame.render_widget(Clear, area);
        let borders = if abilities.unicode { Borders::TOP } else { Borders::NONE };
        let block = Block::new().borders(borders).title(title.as_str());
        let first = u16::try_from(*first).unwrap_or(u16::MAX);
        let text = if abilities.unicode { text.clone() } else { ascii(text) };
        frame.render_widget(Paragraph::new(text).block(block).wrap(Wrap { trim: false }).scroll((first, 0)), area);
    }
}

/// The tenants that have slices, in the order of their colours.
fn tenants(app: &App) -> Vec<&str> {
    let mut found: Vec<&str> = app.overview.gpus.iter().flat_map(|g| &g.slices).map(|s| s.tenant.as_str()).collect();
    found.sort_unstable();
    found.dedup();
    found
}

struct Painter<'a> {
    app: &'a App,
    abilities: Abilities,
    tenants: Vec<&'a str>,
    /// Length of the longest state of a GPU: all have the same room for it, so that their bars can be compared.
    widest: usize,
}

impl Painter<'_> {
    fn tone(&self, colour: Color) -> Style {
        if self.abilities.colours { Style::new().fg(colour) } else { Style::new() }
    }

    fn head(&self, width: u16) -> Line<'static> {
        let all = &self.app.overview;
        let nodes = all.gpus.iter().map(|g| &g.node).collect::<std::collections::BTreeSet<_>>().len();
        let (total, promised) = all.gpus.iter().fold((0u64, 0u64), |(total, promised), g| {
            (total.saturating_add(g.memory_bytes), promised.saturating_add(g.promised_bytes()))
        });
        let simulated = if all.gpus.iter().any(|g| g.simulated) { ", simulated" } else { "" };
        let (dot, at) = (self.dot(), if all.at_ms == 0 { "-".to_owned() } else { clock(all.at_ms) });
        let text = if width < NARROW {
            format!("{at} {dot} {} GPUs{simulated}", all.gpus.len())
        } else {
            format!(
                "stowage {at} {dot} {nodes} nodes, {} GPUs{simulated} {dot} {} of {} promised",
                all.gpus.len(),
                bytes(promised),
                bytes(total)
            )
        };
        Line::styled(text, Style::new().add_modifier(Modifier::BOLD))
    }

    fn dot(&self) -> &'static str {
        if self.abilities.unicode { "·" } else { "-" }
    }

    fn tabs(&self) -> Line<'static> {
        let tab = |tab: Tab, text: &str| {
            let here = tab == self.app.tab;
            let text = if here { format!("[{text}]") } else { format!(" {text} ") };
            let style = if here { Style::new().add_modifier(Modifier::BOLD) } else { Style::new() };
            Span::styled(text, style)
        };
        Line::from(vec![
            tab(Tab::Gpus, "1 GPUs"),
            tab(Tab::Deployments, "2 Deployments"),
            tab(Tab::Tenants, "3 Tenants"),
        ])
    }

    fn body(&self, frame: &mut Frame<'_>, area: Rect) {
        let rows: Vec<Line<'static>> = match self.app.tab {
            Tab::Gpus => self.app.gpus().into_iter().map(|g| self.gpu(g, area.width)).collect(),
            Tab::Deployments => self.deployments(area.width),
            Tab::Tenants => self.app.tenants().into_iter().map(|t| self.tenant(t, area.width)).collect(),
        };
        let header = usize::from(self.app.tab == Tab::Deployments && !rows.is_empty());
        if rows.len() == header {
            let nothing = if self.app.filter.is_empty() { "nothing to show" } else { "no row contains the filter" };
            frame.render_widget(Paragraph::new(nothing), area);
            return;
        }
        // The selected row is always in sight.
        let (height, at) = (usize::from(area.height).saturating_sub(header).max(1), self.app.selected);
        let first = at.saturating_sub(height - 1);
        let shown = rows.iter().take(header).chain(rows.iter().skip(header + first).take(height));
        let marked = shown.cloned().enumerate().map(|(n, line)| {
            let selected = n >= header && n - header + first == at;
            let mark = if selected { ">" } else { " " };
            let mut spans = vec![Span::raw(mark)];
            spans.extend(line.spans);
            let line = Line::from(spans);
            if selected { line.style(Style::new().add_modifier(Modifier::BOLD)) } else { line }
        });
        frame.render_widget(Paragraph::new(marked.collect::<Vec<_>>()), area);
    }

    fn gpu(&self, g: &Gpu, width: u16) -> Line<'static> {
        let narrow = width < NARROW;
        let (name, figures) = if narrow {
            (format!("{}/{} ", cut(&g.node, 8), g.index), format!(" {}%", percent(g.promised_bytes(), g.memory_bytes)))
        } else {
            let name = format!("{:<12} {} {:<9} ", cut(&g.node, 12), g.index, short_uuid(&g.uuid));
            (name, self.figures(g))
        };
        let state = self.state(g);
        let state_width = if self.widest == 0 { 0 } else { self.widest.min(if narrow { 6 } else { 28 }) + 1 };
        let taken = 1 + name.chars().count() + figures.chars().count() + 2 + state_width;
        let bar = usize::from(width).saturating_sub(taken).clamp(4, 60);
        let mut spans = vec![Span::raw(name), Span::raw("[")];
        spans.extend(self.bar(g, bar));
        spans.push(Span::raw("]"));
        spans.push(Span::raw(figures));
        if let Some(state) = state {
            spans.push(Span::raw(" "));
            spans.push(Span::styled(cut(&state.content, if narrow { 6 } else { 28 }), state.style));
        }
        Line::from(spans)
    }

    fn figures(&self, g: &Gpu) -> String {
        let used = g.used_bytes.map_or("-".to_owned(), bytes);
        let sm = g.used_sm_percent.map_or("-".to_owned(), |p| p.to_string());
        format!(
            " {:>8}/{:<7} used {used:<9} SM {:>3}% used {sm}%",
            bytes(g.promised_bytes()).replace(' ', ""),
            bytes(g.memory_bytes).replace(' ', ""),
            g.promised_sm_percent()
        )
    }

    /// `None`: healthy and open.
    fn state(&self, g: &Gpu) -> Option<Span<'static>> {
        let (colour, text) = match g.health {
            Health::Unhealthy => (Color::Red, format!("Unhealthy {}", g.reason)),
            Health::Degraded => (Color::Yellow, format!("Degraded {}", g.reason)),
            Health::Healthy if !g.closed.is_empty() => (Color::Yellow, g.closed.clone()),
            Health::Healthy => return None,
        };
        Some(Span::styled(text.trim_end().to_owned(), self.tone(colour)))
    }

    /// Memory from left to right: each slice by its tenant, then what is free. What is in use is shown as if it were used from
    /// the left, because readings of single slices are not kept.
    fn bar(&self, g: &Gpu, width: usize) -> Vec<Span<'static>> {
        let total = u128::from(g.memory_bytes.max(1));
        let cell = |bytes: u64| usize::try_from(u128::from(bytes) * width as u128 / total).unwrap_or(width).min(width);
        let used = g.used_bytes.map_or(0, |used| (u128::from(used) * width as u128).div_ceil(total) as usize);
        let mut spans = Vec::new();
        let (mut promised, mut at) = (0u64, 0usize);
        for slice in &g.slices {
            promised = promised.saturating_add(slice.memory_bytes);
            // A slice is never invisible.
            let end = cell(promised).max((at + 1).min(width));
            for n in at..end {
                spans.push(self.cell(&slice.tenant, n < used));
            }
            at = end.max(at);
        }
        let free = if self.abilities.unicode { "·" } else { "." };
        spans.push(Span::raw(free.repeat(width.saturating_sub(at))));
        spans
    }

    fn cell(&self, tenant: &str, used: bool) -> Span<'static> {
        let at = self.tenants.iter().position(|t| *t == tenant).unwrap_or(0);
        let style = self.tone(COLOURS[at % COLOURS.len()]);
        let text = match (self.abilities.colours && self.abilities.unicode, used) {
            (true, true) => "█".to_owned(),
            (true, false) => "▒".to_owned(),
            (false, used) => letter(at, used).to_string(),
        };
        Span::styled(text, style)
    }

    fn legend(&self) -> Line<'static> {
        let mut spans = Vec::new();
        for (at, tenant) in self.tenants.iter().enumerate() {
            let name = if tenant.is_empty() { "no tenant" } else { tenant };
            let mark = if self.abilities.colours && self.abilities.unicode { '█' } else { letter(at, true) };
            spans.push(Span::styled(format!("{mark} "), self.tone(COLOURS[at % COLOURS.len()])));
            spans.push(Span::raw(format!("{name}  ")));
        }
        spans.push(Span::raw(if self.abilities.colours && self.abilities.unicode {
            "█ used ▒ promised · free"
        } else {
            "A used a promised"
        }));
        Line::from(spans)
    }

    fn deployments(&self, width: u16) -> Vec<Line<'static>> {
        let all = self.app.deployments();
        if all.is_empty() {
            return Vec::new();
        }
        let narrow = width < NARROW;
        let names: Vec<String> = all.iter().map(|d| format!("{}/{}", d.namespace, d.name)).collect();
        let widest = names.iter().map(|n| n.chars().count()).max().unwrap_or(4).clamp(4, if narrow { 18 } else { 36 });
        let row = |name: &str, ready: &str, state: Span<'static>, rest: &str| {
            let name = format!("{:<widest$} {ready:<7} ", cut(name, widest));
            let state_width = if narrow { 12 } else { 16 };
            let state = Span::styled(format!("{:<state_width$}", cut(&state.content, state_width)), state.style);
            Line::from(vec![Span::raw(name), state, Span::raw(rest.trim_end().to_owned())])
        };
        let columns = if narrow { "" } else { "   REQ/S   RUN  WAIT     TTFT    COST/H" };
        let mut rows = vec![row("NAME", "READY", Span::raw("STATE"), columns)];
        for (d, name) in all.iter().zip(&names) {
            let state = Span::styled(d.state.clone(), self.tone(if d.well { Color::Green } else { Color::Red }));
            let rest = if narrow { String::new() } else { self.load(d) };
            rows.push(row(name, &format!("{}/{}", d.ready, d.wanted), state, &rest));
        }
        rows
    }

    fn load(&self, d: &Deployment) -> String {
        let known = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
        let arrivals = known(d.arrivals_milli.map(|m| format!("{:.1}", m as f64 / 1000.0)));
        let running = known(d.requests.map(|r| r.running.to_string()));
        let waiting = known(d.requests.map(|r| (r.queued + r.held).to_string()));
        let ttft = known(d.predicted_us.map(|(ttft, _)| format!("{} ms", ttft / 1000)));
        let cost = known(d.price_per_hour_micros.map(|m| format!("{} {}", price(m), d.currency)));
        format!("{arrivals:>8} {running:>5} {waiting:>5} {ttft:>8} {cost:>9}")
    }

    fn tenant(&self, t: &Tenant, width: u16) -> Line<'static> {
        let name = format!("{:<16} ", cut(&t.name, 16));
        let usage: Vec<String> = t.usage.iter().map(|u| usage(u, width < NARROW)).collect();
        let waiting = if t.waiting > 0 { format!("  {} wait", t.waiting) } else { String::new() };
        let text = if usage.is_empty() { "no GPU class in its quota".to_owned() } else { usage.join("  ") };
        Line::from(vec![Span::raw(name), Span::raw(text), Span::styled(waiting, self.tone(Color::Yellow))])
    }

    /// Below the list, the most urgent last.
    fn notes(&self) -> Vec<Line<'static>> {
        let app = self.app;
        let mut notes = Vec::new();
        for missing in &app.overview.missing {
            notes.push(Line::styled(format!("missing: {missing}"), self.tone(Color::DarkGray)));
        }
        if let Some(paused) = &app.overview.paused {
            notes.push(Line::styled(format!("planning is paused: {paused}"), self.tone(Color::Yellow)));
        }
        if let Some((why, since)) = &app.trouble {
            let why = why.lines().next().unwrap_or_default();
            let text =
                format!("no answer for {}, shown is the last one: {why}", age(app.now_ms.saturating_sub(*since)));
            notes.push(Line::styled(text, self.tone(Color::Red)));
        }
        let filter = match (app.typing, app.filter.as_str()) {
            (true, filter) => format!("filter: {filter}_"),
            (false, "") => String::new(),
            (false, filter) => format!("only {filter}  "),
        };
        let keys = if app.typing { "  Enter keeps it, Esc shows all" } else { "q quit  ? keys  / filter  s sort: " };
        let order = if app.typing { "" } else { app.order() };
        notes.push(Line::raw(format!("{filter}{keys}{order}")));
        if !self.abilities.unicode {
            for note in &mut notes {
                let text: String = note.spans.iter().map(|s| s.content.as_ref()).collect();
                *note = Line::styled(ascii(&text), note.style);
            }
        }
        notes
    }
}

fn usage(u: &Usage, narrow: bool) -> String {
    let mut text = format!("{} {} of {}", u.class, gpus(u.held_milli), gpus(u.nominal_milli));
    if u.borrowed_milli > 0 && !narrow {
        text += &format!(" ({} borrowed)", gpus(u.borrowed_milli));
    }
    if u.pending_milli > 0 {
        text += &format!(", {} pending", gpus(u.pending_milli));
    }
    text
}

/// `A` for what is in use, `a` for what is promised only; `?` beyond the alphabet.
fn letter(at: usize, used: bool) -> char {
    let small = u8::try_from(at).ok().filter(|at| *at < 26).map_or('?', |at| char::from(b'a' + at));
    if used { small.to_ascii_uppercase() } else { small }
}

fn percent(part: u64, whole: u64) -> u64 {
    u64::try_from(u128::from(part) * 100 / u128::from(whole.max(1))).unwrap_or(u64::MAX)
}

fn cut(text: &str, width: usize) -> String {
    text.chars().take(width).collect()
}
