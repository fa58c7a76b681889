//! The rules of Grafana's dashboard-linter (<https://github.com/grafana/dashboard-linter>), and two of ours: every
//! name in a query is in the catalog, and so is every label.
//!
//! Left out of the linter's rules: `template-job-rule`, `template-instance-rule`, `target-job-rule` and
//! `target-instance-rule` ask for matchers of `job` and `instance`; our names are ours alone, and a choice of instance
//! says nothing to who asks for a deployment.

use crate::grafana::{Dashboard, Panel, PanelKind, Source};
use crate::query;

/// What is wrong with a dashboard, one sentence each.
pub fn problems(board: &Dashboard) -> Vec<String> {
    let mut found = of_board(board);
    for panel in &board.panels {
        found.extend(of_panel(panel).into_iter().map(|problem| format!("{}: {}: {problem}", board.uid, panel.title)));
    }
    found
}

fn of_board(board: &Dashboard) -> Vec<String> {
    let mut found = Vec::new();
    let mut rule = |holds: bool, problem: &str| {
        if !holds {
            found.push(format!("{}: {problem}", board.uid));
        }
    };
    let sources: Vec<_> = board.templating.list.iter().filter(|v| v.kind == "datasource").collect();
    rule(sources.len() == 1, "one variable chooses the data source");
    rule(sources.iter().all(|v| v.name == "datasource" && v.label == "Data source"), "it is called Data source");
    rule(!board.editable, "it is not editable");
    rule(!board.refresh.is_empty(), "it refreshes");
    rule(!board.description.is_empty(), "it has a description");
    for variable in board.templating.list.iter().filter(|v| v.kind == "query") {
        rule(variable.refresh == 2, "a variable follows the time range");
        rule(variable.datasource == Some(Source::chosen()), "a variable asks the chosen data source");
        rule(query::unknown_names(&variable.query).is_empty(), "a variable names a metric that does not exist");
        let of = |name: &str| query::names(&variable.query).iter().any(|series| has_label(series, name));
        rule(of(&variable.name), "a variable lists a label that its metric does not have");
    }
    for annotation in &board.annotations.list {
        rule(query::unknown_names(&annotation.expr).is_empty(), "an annotation names a metric that does not exist");
        rule(query::unknown_labels(&annotation.expr).is_empty(), "an annotation names a label that does not exist");
    }
    let mut titles: Vec<_> = board.panels.iter().map(|panel| &panel.title).collect();
    titles.sort();
    titles.dedup();
    rule(titles.len() == board.panels.len(), "titles of panels are unique");
    found
}

fn has_label(series: &str, label: &str) -> bool {
    stowage_telemetry::catalog::of_series(series).is_some_and(|metric| query::has_label(metric, label))
}

fn of_panel(panel: &Panel) -> Vec<String> {
    let mut found = Vec::new();
    let mut rule = |holds: bool, problem: &str| {
        if !holds {
            found.push(problem.to_owned());
        }
    };
    rule(panel.datasource == Source::chosen(), "it uses $datasource");
    rule(!panel.title.is_empty() && !panel.description.is_empty(), "it has a title and a description");
    rule(!panel.field_config.defaults.unit.is_empty(), "it has a unit");
    rule(!panel.targets.is_empty(), "it has a query");
    for target in &panel.targets {
        let expr = &target.expr;
        rule(panel.kind == PanelKind::Table || !target.legend_format.is_empty(), "a query has a legend");
        let ranges = expr.matches('[').count();
        rule(expr.matches(&format!("[{}]", query::INTERVAL)).count() == ranges, "rates are over $__rate_interval");
        rule(expr.matches('(').count() == expr.matches(')').count(), "parentheses match");
        for name in query::unknown_names(expr) {
            rule(false, &format!("no process exports {name}"));
        }
        for label in query::unknown_labels(expr) {
            rule(false, &format!("no metric of the query has the label {label}"));
        }
        for counter in query::bare_counters(expr) {
            rule(false, &format!("the counter {counter} is not in a rate"));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boards;

    #[test]
    fn our_dashboards_follow_every_rule() {
        let found: Vec<_> = boards::all().iter().flat_map(problems).collect();
        assert!(found.is_empty(), "{}", found.join("\n"));
    }

    #[track_caller]
    fn check(change: impl FnOnce(&mut Dashboard), part: &str) {
        let panel = Panel::new(PanelKind::Timeseries, "a", "short", "b").query("x", "stowage_leader");
        let mut board = Dashboard::new("u", "t", "d").row(4, vec![panel]);
        assert_eq!(problems(&board), Vec::<String>::new());
        change(&mut board);
        let found = problems(&board);
        assert!(found.len() == 1 && found[0].contains(part), "{found:?}");
    }

    #[test]
    fn each_rule_finds_what_breaks_it() {
        fn expr(board: &mut Dashboard, expr: &str) {
            board.panels[0].targets[0].expr = expr.into();
        }
        check(|b| b.templating.list.clear(), "data source");
        check(|b| b.editable = true, "editable");
        check(|b| b.refresh.clear(), "refreshes");
        check(|b| b.panels[0].description.clear(), "description");
        check(|b| b.panels[0].field_config.defaults.unit.clear(), "unit");
        check(|b| b.panels[0].datasource.uid = "fixed".into(), "$datasource");
        check(|b| b.panels[0].targets.clear(), "has a query");
        check(|b| expr(b, "stowage_leads"), "no process exports stowage_leads");
        check(|b| expr(b, "sum by (tenant) (stowage_leader)"), "label tenant");
        check(|b| expr(b, "sum(stowage_requests_total)"), "not in a rate");
        check(|b| expr(b, "sum(rate(stowage_requests_total[5m]))"), "$__rate_interval");
        check(|b| expr(b, "sum(stowage_leader"), "parentheses");
        check(|b| b.templating.list.push(crate::grafana::Variable::label("x", "X", "stowage_leader")), "does not have");
    }
}
