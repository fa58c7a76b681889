//! The parts of Grafana's classic dashboard JSON that we use. Fields that Grafana fills in itself are left out.

use serde::Serialize;

/// The schema of Grafana 11; older and newer ones migrate it.
const SCHEMA_VERSION: u32 = 39;
/// Columns of Grafana's grid.
const COLUMNS: u32 = 24;

/// One dashboard.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "Grafana's own names")]
pub struct Dashboard {
    pub uid: String,
    pub title: String,
    pub description: String,
    pub tags: Vec<String>,
    pub editable: bool,
    pub graph_tooltip: u32,
    pub refresh: String,
    pub schema_version: u32,
    pub time: Range,
    pub timezone: String,
    pub annotations: Annotations,
    pub templating: Templating,
    pub panels: Vec<Panel>,
}

#[derive(Debug, Clone, Serialize)]
pub struct Range {
    pub from: String,
    pub to: String,
}

#[derive(Debug, Clone, Serialize)]
pub struct Annotations {
    pub list: Vec<Annotation>,
}

/// Marks in time.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Annotation {
    pub name: String,
    pub datasource: Source,
    pub enable: bool,
    pub expr: String,
    pub icon_color: String,
    pub step: String,
    pub tag_keys: String,
    pub title_format: String,
    pub text_format: String,
}

#[derive(Debug, Clone, Serialize)]
pub struct Templating {
    pub list: Vec<Variable>,
}

/// What is chosen at the top of a dashboard.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Variable {
    pub name: String,
    pub label: String,
    #[serde(rename = "type")]
    pub kind: String,
    pub query: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub datasource: Option<Source>,
    pub include_all: bool,
    pub multi: bool,
    /// What "all" means; a regular expression.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub all_value: Option<String>,
    /// 1: on load, 2: when the time range changes.
    pub refresh: u32,
    pub sort: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Source {
    #[serde(rename = "type")]
    pub kind: String,
    pub uid: String,
}

/// One panel.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Panel {
    pub id: u32,
    #[serde(rename = "type")]
    pub kind: PanelKind,
    pub title: String,
    pub description: String,
    pub datasource: Source,
    pub grid_pos: Grid,
    pub targets: Vec<Target>,
    pub field_config: FieldConfig,
    pub options: Options,
}

/// How a panel draws.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PanelKind {
    /// One figure.
    Stat,
    /// Lines over time.
    Timeseries,
    /// A bar for each series.
    Bargauge,
    /// Bands over time.
    StateTimeline,
    /// Rows.
    Table,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Grid {
    pub x: u32,
    pub y: u32,
    pub w: u32,
    pub h: u32,
}

/// One query.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Target {
    pub ref_id: String,
    pub expr: String,
    pub legend_format: String,
    /// Now, and not over time.
    pub instant: bool,
    pub range: bool,
    pub format: String,
}

#[derive(Debug, Clone, Serialize)]
pub struct FieldConfig {
    pub defaults: Defaults,
    pub overrides: Vec<String>,
}

#[derive(Debug, Clone, Serialize)]
pub struct Defaults {
    pub unit: String,
    pub min: Option<u32>,
    pub max: Option<u32>,
    pub decimals: Option<u32>,
    pub custom: Custom,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Custom {
    /// Per cent.
    pub fill_opacity: u32,
    pub line_width: u32,
    pub stacking: Stacking,
}

#[derive(Debug, Clone, Serialize)]
pub struct Stacking {
    pub mode: String,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Options {
    pub legend: Legend,
    pub tooltip: Tooltip,
    pub reduce_options: Reduce,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Legend {
    pub display_mode: String,
    pub placement: String,
    pub show_legend: bool,
}

#[derive(Debug, Clone, Serialize)]
pub struct Tooltip {
    pub mode: String,
}

#[derive(Debug, Clone, Serialize)]
pub struct Reduce {
    pub calcs: Vec<String>,
}

impl Source {
    /// The one that is chosen at the top.
    pub fn chosen() -> Self {
        Self { kind: "prometheus".into(), uid: "$datasource".into() }
    }
}

impl Variable {
    /// Which Prometheus.
    pub fn datasource() -> Self {
        Self {
            name: "datasource".into(),
            label: "Data source".into(),
            kind: "datasource".into(),
            query: "prometheus".into(),
            datasource: None,
            include_all: false,
            multi: false,
            all_value: None,
            refresh: 1,
            sort: 0,
        }
    }

    /// The values that a label has in a series.
    pub fn label(name: &str, label: &str, series: &str) -> Self {
        Self {
            name: name.into(),
            label: label.into(),
            kind: "query".into(),
            query: format!("label_values({series}, {name})"),
            datasource: Some(Source::chosen()),
            include_all: true,
            multi: true,
            all_value: Some(".*".into()),
            refresh: 2,
            sort: 1,
        }
    }
}

impl Dashboard {
    /// An empty one. The uid is also the name of its file.
    pub fn new(uid: &str, title: &str, description: &str) -> Self {
        Self {
            uid: uid.into(),
            title: format!("Stowage / {title}"),
            description: description.into(),
            tags: vec!["stowage".into()],
            editable: false,
            graph_tooltip: 1,
            refresh: "30s".into(),
            schema_version: SCHEMA_VERSION,
            time: Range { from: "now-1h".into(), to: "now".into() },
            timezone: "browser".into(),
            annotations: Annotations { list: Vec::new() },
            templating: Templating { list: vec![Variable::datasource()] },
            panels: Vec::new(),
        }
    }

    /// With one more variable.
    #[must_use]
    pub fn variable(mut self, name: &str, label: &str, series: &str) -> Self {
        self.templating.list.push(Variable::label(name, label, series));
        self
    }

    /// Puts a row of panels below the others; they share the width equally.
    #[must_use]
    pub fn row(mut self, height: u32, panels: Vec<Panel>) -> Self {
        let top = self.panels.iter().map(|panel| panel.grid_pos.y + panel.grid_pos.h).max().unwrap_or(0);
        let width = COLUMNS / u32::try_from(panels.len()).unwrap_or(COLUMNS).max(1);
        for (x, mut panel) in (0..).zip(panels) {
            panel.id = u32::try_from(self.panels.len()).unwrap_or(0) + 1;
            panel.grid_pos = Grid { x: x * width, y: top, w: width, h: height };
            self.panels.push(panel);
        }
        self
    }
}

impl Panel {
    /// A panel of this kind without a query.
    pub fn new(kind: PanelKind, title: &str, unit: &str, description: &str) -> Self {
        let single = matches!(kind, PanelKind::Stat | PanelKind::Bargauge);
        Self {
            id: 0,
            kind,
            title: title.into(),
            description: description.into(),
            datasource: Source::chosen(),
            grid_pos: Grid { x: 0, y: 0, w: 0, h: 0 },
            targets: Vec::new(),
            field_config: FieldConfig {
                defaults: Defaults {
                    unit: unit.into(),
                    min: (unit != "currencyUSD" || !single).then_some(0),
                    max: (unit == "percentunit").then_some(1),
                    decimals: None,
                    custom: Custom {
                        fill_opacity: if kind == PanelKind::StateTimeline { 70 } else { 10 },
                        line_width: 1,
                        stacking: Stacking { mode: "none".into() },
                    },
                },
                overrides: Vec::new(),
            },
            options: Options {
                legend: Legend { display_mode: "list".into(), placement: "bottom".into(), show_legend: true },
                tooltip: Tooltip { mode: "multi".into() },
                reduce_options: Reduce { calcs: vec!["lastNotNull".into()] },
            },
        }
    }

    /// With one more query.
    #[must_use]
    pub fn query(mut self, legend: &str, expr: impl Into<String>) -> Self {
        let letter = char::from(b'A' + u8::try_from(self.targets.len()).unwrap_or(25).min(25));
        let table = self.kind == PanelKind::Table;
        self.targets.push(Target {
            ref_id: letter.to_string(),
            expr: expr.into(),
            legend_format: legend.into(),
            instant: table,
            range: !table,
            format: if table { "table" } else { "time_series" }.into(),
        });
        self
    }

    /// Areas on top of each other.
    #[must_use]
    pub fn stacked(mut self) -> Self {
        self.field_config.defaults.custom.stacking.mode = "normal".into();
        self.field_config.defaults.custom.fill_opacity = 40;
        self
    }

    /// Without a largest value: shares of more than one thing may exceed 1.
    #[must_use]
    pub fn unbounded(mut self) -> Self {
        self.field_config.defaults.max = None;
        self
    }
}
