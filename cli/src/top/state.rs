//! What `top` shows at a moment: the last overview, and what the person at the keyboard chose. Pure: keys and answers in,
//! state out.

use stowage_contracts::summary::Health;
use stowage_planner::overview::{Deployment, Gpu, Overview, Tenant};

/// One of the three lists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Tab {
    #[default]
    Gpus,
    Deployments,
    Tenants,
}

/// What a key means; which key it is decides the terminal's part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Key {
    Char(char),
    Up,
    Down,
    PageUp,
    PageDown,
    Home,
    End,
    NextTab,
    Enter,
    Escape,
    Backspace,
    Interrupt,
}

/// What the loop is to do after a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    Nothing,
    Quit,
    /// Fetch the explanation of a deployment: namespace and name.
    Explain(String, String),
}

/// Orders of a list; the first is the one it begins with.
const GPU_ORDERS: [&str; 3] = ["node", "most promised", "health"];
const DEPLOYMENT_ORDERS: [&str; 4] = ["name", "state", "load", "cost"];
const TENANT_ORDERS: [&str; 2] = ["name", "most held"];
/// Rows of a page.
const PAGE: usize = 10;

#[derive(Clone, Debug, Default)]
pub(crate) struct App {
    pub overview: Overview,
    pub tab: Tab,
    /// Position in the list as it is shown.
    pub selected: usize,
    order: [usize; 3],
    /// Only rows that contain it are shown.
    pub filter: String,
    /// The filter is being typed.
    pub typing: bool,
    /// Title, text and first line shown of the page over the lists.
    pub page: Option<(String, String, usize)>,
    /// Why there is no newer overview, and since when, milliseconds since the epoch.
    pub trouble: Option<(String, u64)>,
    pub now_ms: u64,
}

impl App {
    /// A fetch ended.
    pub fn fetched(&mut self, answer: Result<Overview, String>, now_ms: u64) {
        self.now_ms = now_ms;
        match answer {
            Ok(overview) => {
                self.overview = overview;
                self.trouble = None;
            }
            Err(why) => {
                let since = self.trouble.as_ref().map_or(now_ms, |(_, since)| *since);
                self.trouble = Some((why, since));
            }
        }
        self.clamp();
    }

    /// The text that was asked for.
    pub fn explained(&mut self, title: String, text: String) {
        if self.page.is_some() {
            self.page = Some((title, text, 0));
        }
    }

    pub fn press(&mut self, key: Key) -> Then {
        if key == Key::Interrupt {
            return Then::Quit;
        }
        if self.typing {
            self.typed(key);
            return Then::Nothing;
        }
        if let Some((_, text, first)) = &mut self.page {
            let last = text.lines().count().saturating_sub(1);
            match key {
                Key::Up | Key::Char('k') => *first = first.saturating_sub(1),
                Key::Down | Key::Char('j') => *first = (*first + 1).min(last),
                Key::PageUp => *first = first.saturating_sub(PAGE),
                Key::PageDown | Key::Char(' ') => *first = (*first + PAGE).min(last),
                Key::Char('q') | Key::Escape | Key::Enter => self.page = None,
                _ => {}
            }
            return Then::Nothing;
        }
        self.pressed_in_list(key)
    }

    fn pressed_in_list(&mut self, key: Key) -> Then {
        match key {
            Key::Char('q') => return Then::Quit,
            Key::Escape if self.filter.is_empty() => return Then::Quit,
            Key::Escape => self.filter.clear(),
            Key::Char('/') => self.typing = true,
            Key::Char('1') => self.turn_to(Tab::Gpus),
            Key::Char('2') => self.turn_to(Tab::Deployments),
            Key::Char('3') => self.turn_to(Tab::Tenants),
            Key::NextTab => self.turn_to(match self.tab {
                Tab::Gpus => Tab::Deployments,
                Tab::Deployments => Tab::Tenants,
                Tab::Tenants => Tab::Gpus,
            }),
            Key::Char('s') => {
                let orders = self.orders().len();
                let order = &mut self.order[self.tab as usize];
                *order = (*order + 1) % orders;
            }
            Key::Char('?') => self.page = Some(("keys".to_owned(), HELP.to_owned(), 0)),
            Key::Char('e') | Key::Enter => return self.open(),
            Key::Up | Key::Char('k') => self.selected = self.selected.saturating_sub(1),
            Key::Down | Key::Char('j') => self.selected += 1,
            Key::PageUp => self.selected = self.selected.saturating_sub(PAGE),
            Key::PageDown => self.selected += PAGE,
            Key::Home => self.selected = 0,
            Key::End => self.selected = usize::MAX,
            _ => {}
        }
        self.clamp();
        Then::Nothing
    }

    fn typed(&mut self, key: Key) {
        match key {
            Key::Char(c) if !c.is_control() => self.filter.push(c),
            Key::Backspace => drop(self.filter.pop()),
            Key::Enter => self.typing = false,
            Key::Escape => {
                self.typing = false;
                self.filter.clear();
            }
            _ => {}
        }
        self.clamp();
    }

    /// Opens what is selected.
    fn open(&mut self) -> Then {
        let waits = "asking the operator".to_owned();
        match self.tab {
            Tab::Deployments => {
                let Some(d) = self.deployments().get(self.selected).copied().cloned() else { return Then::Nothing };
                self.page = Some((format!("{}/{}", d.namespace, d.name), waits, 0));
                Then::Explain(d.namespace, d.name)
            }
            Tab::Gpus => {
                let page = self.gpus().get(self.selected).map(|g| (format!("{} {}", g.node, g.uuid), slices(g), 0));
                self.page = page;
                Then::Nothing
            }
            Tab::Tenants => {
                let page = self.tenants().get(self.selected).map(|t| (t.name.clone(), self.held_by(&t.name), 0));
                self.page = page;
                Then::Nothing
            }
        }
    }

    fn turn_to(&mut self, tab: Tab) {
        (self.tab, self.selected) = (tab, 0);
    }

    fn clamp(&mut self) {
        let rows = match self.tab {
            Tab::Gpus => self.gpus().len(),
            Tab::Deployments => self.deployments().len(),
            Tab::Tenants => self.tenants().len(),
        };
        self.selected = self.selected.min(rows.saturating_sub(1));
    }

    fn orders(&self) -> &'static [&'static str] {
        match self.tab {
            Tab::Gpus => &GPU_ORDERS,
            Tab::Deployments => &DEPLOYMENT_ORDERS,
            Tab::Tenants => &TENANT_ORDERS,
        }
    }

    /// By what the list is sorted.
    pub fn order(&self) -> &'static str {
        self.orders().get(self.order[self.tab as usize]).copied().unwrap_or_default()
    }

    fn matches(&self, words: &[&str]) -> bool {
        let filter = self.filter.to_lowercase();
        filter.is_empty() || words.iter().any(|word| word.to_lowercase().contains(&filter))
    }

    /// As they are shown. Equal ones keep the order by name.
    pub fn gpus(&self) -> Vec<&Gpu> {
        let shown = |g: &&Gpu| {
            let owners = g.slices.iter().flat_map(|s| [s.tenant.as_str(), s.owner.as_str()]);
            let words: Vec<&str> = [g.node.as_str(), &g.uuid, &g.class, &g.product].into_iter().chain(owners).collect();
            self.matches(&words)
        };
        let mut found: Vec<&Gpu> = self.overview.gpus.iter().filter(shown).collect();
        match self.order_of(Tab::Gpus) {
            1 => found
                .sort_by_key(|g| std::cmp::Reverse(g.promised_bytes().saturating_mul(1000) / g.memory_bytes.max(1))),
            2 => found.sort_by_key(|g| (std::cmp::Reverse(g.health), g.closed.is_empty())),
            _ => {}
        }
        found
    }

    pub fn deployments(&self) -> Vec<&Deployment> {
        let shown = |d: &&Deployment| self.matches(&[&d.namespace, &d.name, &d.tenant, &d.state]);
        let mut found: Vec<&Deployment> = self.overview.deployments.iter().filter(shown).collect();
        match self.order_of(Tab::Deployments) {
            1 => found.sort_by_key(|d| (d.well, d.state.clone())),
            2 => found.sort_by_key(|d| std::cmp::Reverse(d.arrivals_milli)),
            3 => found.sort_by_key(|d| std::cmp::Reverse(d.price_per_hour_micros)),
            _ => {}
        }
        found
    }

    pub fn tenants(&self) -> Vec<&Tenant> {
        let mut found: Vec<&Tenant> = self.overview.tenants.iter().filter(|t| self.matches(&[&t.name])).collect();
        if self.order_of(Tab::Tenants) == 1 {
            found.sort_by_key(|t| std::cmp::Reverse(t.usage.iter().map(|u| u.held_milli).sum::<u64>()));
        }
        found
    }

    fn order_of(&self, tab: Tab) -> usize {
        self.order[tab as usize]
    }

    fn held_by(&self, tenant: &str) -> String {
        let mut lines = Vec::new();
        for g in &self.overview.gpus {
            for s in g.slices.iter().filter(|s| s.tenant == tenant) {
                lines.push(format!("{}  {} {}", slice(s), g.node, stowage_planner::render::short_uuid(&g.uuid)));
            }
        }
        if lines.is_empty() { "holds no slice of a GPU".to_owned() } else { lines.join("\n") }
    }
}

const HELP: &str = "\
1 2 3 Tab   GPUs, deployments, tenants
up down     select; also j k, PgUp PgDn, Home End
Enter e     what is selected: slices of a GPU, the explanation of a deployment, slices of a tenant
s           sort by the next column
/           show only rows that contain a text; Esc shows all again
q Esc       back, and at last quit";

fn slice(s: &stowage_planner::overview::Slice) -> String {
    let tenant = if s.tenant.is_empty() { "no tenant" } else { &s.tenant };
    format!(
        "{:<32} {:<16} {:>10} {:>4} % SM",
        s.owner,
        tenant,
        stowage_planner::render::bytes(s.memory_bytes),
        s.sm_percent
    )
}

fn slices(g: &Gpu) -> String {
    let health =
        if g.health == Health::Healthy { "Healthy".to_owned() } else { format!("{:?} {}", g.health, g.reason) };
    let mut lines = vec![format!("{} {} {}  {health}", g.product, g.class, g.closed).trim_end().to_owned()];
    lines.extend(g.slices.iter().map(slice));
    if g.slices.is_empty() {
        lines.push("nothing is promised on it".to_owned());
    }
    lines.join("\n")
}
