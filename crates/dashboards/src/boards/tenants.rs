//! Who holds, lends and borrows GPUs, what it costs, and who waits.

use stowage_telemetry::catalog::{agent, gateway, operator};

use crate::grafana::PanelKind::{Stat, Table, Timeseries};
use crate::grafana::{Dashboard, Panel};
use crate::query::{series, sum_rate};

const CHOSEN: &str = r#"tenant=~"$tenant""#;

pub(super) fn board() -> Dashboard {
    let description = "What each tenant is guaranteed, holds, borrows and lends, what it costs, and who waits";
    Dashboard::new("stowage-tenants", "Tenants and cost", description)
        .variable("tenant", "Tenant", operator::TENANT_GPUS.name)
        .row(4, now())
        .row(9, vec![held(), borrowed()])
        .row(8, vec![waiting(), table()])
        .row(8, vec![cost(), by_deployment(), idle()])
        .row(8, vec![tokens(), limited(), unused()])
}

fn cost_per_hour(by: &str) -> String {
    format!("3600 * {}", sum_rate(&operator::COST, CHOSEN, by))
}

fn gpus(state: &str, by: &str) -> String {
    format!("sum by ({by}) ({})", series(&operator::TENANT_GPUS, &format!(r#"{CHOSEN}, state="{state}""#)))
}

fn now() -> Vec<Panel> {
    vec![
        Panel::new(Stat, "GPUs held", "short", "By the larger share of memory and SMs")
            .query("held", format!("sum({})", series(&operator::TENANT_GPUS, &format!(r#"{CHOSEN}, state="held""#)))),
        Panel::new(Stat, "Deployments waiting for quota", "short", "Of the chosen tenants")
            .query("waiting", format!("sum({})", series(&operator::TENANT_WAITING, CHOSEN))),
        Panel::new(Stat, "Cost per hour", "currencyUSD", "Price of the promised GPU shares, per hour")
            .query("cost", cost_per_hour("currency")),
        Panel::new(Stat, "Idle cost per hour", "currencyUSD", "Price of what is promised to no one, per hour")
            .query("idle", format!("3600 * {}", sum_rate(&operator::IDLE_COST, "", "currency"))),
    ]
}

fn held() -> Panel {
    Panel::new(
        Timeseries,
        "GPUs held and guaranteed",
        "short",
        "Per tenant and class; held above guaranteed is borrowed",
    )
    .query("{{tenant}} {{class}} held", gpus("held", "tenant, class"))
    .query("{{tenant}} {{class}} guaranteed", gpus("guaranteed", "tenant, class"))
}

fn borrowed() -> Panel {
    Panel::new(Timeseries, "GPUs borrowed and lent", "short", "Per tenant and class, inside the cohort")
        .query("{{tenant}} {{class}} borrowed", gpus("borrowed", "tenant, class"))
        .query("{{tenant}} {{class}} lent", gpus("lent", "tenant, class"))
}

fn waiting() -> Panel {
    let deployments = format!("sum by (tenant) ({})", series(&operator::TENANT_WAITING, CHOSEN));
    Panel::new(Timeseries, "Waiting for quota", "short", "GPUs asked for and not granted, and deployments held back")
        .query("{{tenant}} {{class}} GPUs", gpus("waiting", "tenant, class"))
        .query("{{tenant}} deployments", deployments)
}

fn table() -> Panel {
    let all = format!("sum by (tenant, class, state) ({})", series(&operator::TENANT_GPUS, CHOSEN));
    Panel::new(Table, "Now", "short", "GPUs per tenant, class and state").query("", all)
}

fn cost() -> Panel {
    Panel::new(
        Timeseries,
        "Cost per hour by tenant",
        "currencyUSD",
        "In the currency of the class; USD is assumed here",
    )
    .stacked()
    .query("{{tenant}} {{currency}}", cost_per_hour("tenant, currency"))
}

fn by_deployment() -> Panel {
    Panel::new(Timeseries, "Cost per hour by deployment", "currencyUSD", "By the prices of the GpuClasses")
        .stacked()
        .query("{{namespace}}/{{deployment}}", cost_per_hour("namespace, deployment"))
}

fn idle() -> Panel {
    let expr = format!("3600 * {}", sum_rate(&operator::IDLE_COST, "", "class, currency"));
    Panel::new(Timeseries, "Idle cost per hour by class", "currencyUSD", "Healthy GPUs and parts that no one holds")
        .query("{{class}} {{currency}}", expr)
}

fn tokens() -> Panel {
    let expr = sum_rate(&gateway::TOKENS, CHOSEN, "tenant, direction");
    Panel::new(Timeseries, "Tokens per second", "short", "By the calling tenant")
        .query("{{tenant}} {{direction}}", expr)
}

fn limited() -> Panel {
    let matchers = format!(r#"{CHOSEN}, outcome="tenant_limited""#);
    let expr = sum_rate(&gateway::REQUESTS, &matchers, "tenant");
    Panel::new(Timeseries, "Requests over the tenant's limits", "reqps", "Refused with 429: rate, concurrency or queue")
        .query("{{tenant}}", expr)
}

fn unused() -> Panel {
    let promised = format!("sum by (tenant) ({})", series(&agent::MEMORY_PROMISED, CHOSEN));
    let used = format!("sum by (tenant) ({})", series(&agent::MEMORY_CLAIMED, CHOSEN));
    Panel::new(Timeseries, "Memory promised and not used", "bytes", "What smaller slices would free")
        .query("{{tenant}}", format!("{promised} - {used}"))
}
