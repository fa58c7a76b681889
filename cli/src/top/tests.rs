//! Frames as text: states in, goldens out.

use stowage_planner::overview::Overview;

use super::draw::Abilities;
use super::state::{App, Key, Tab, Then};
use super::{frame, once};
use crate::testing::{golden, yaml};

const UTF8: Abilities = Abilities { colours: true, unicode: true };
const PLAIN: Abilities = Abilities { colours: false, unicode: false };

const OVERVIEW: &str = "
atMs: 1772366400000
gpus:
- {node: node1, index: 0, uuid: GPU-3f2a1b2c-0000-1, product: NVIDIA H100 80GB HBM3, class: h100-80g, health: Healthy, simulated: true,
   memoryBytes: 85899345920, usedBytes: 12884901888, usedSmPercent: 31, ageMs: 900, slices: [
   {tenant: team-a, owner: team-a/chat, memoryBytes: 21474836480, smPercent: 25},
   {tenant: team-b, owner: team-b/code, memoryBytes: 42949672960, smPercent: 50}]}
- {node: node1, index: 1, uuid: GPU-91bd1b2c-0000-2, product: NVIDIA H100 80GB HBM3, class: h100-80g, health: Unhealthy, reason: Xid 79, memoryBytes: 85899345920}
- {node: node2, index: 0, uuid: GPU-c04e1b2c-0000-3, product: NVIDIA H100 80GB HBM3, class: h100-80g, health: Healthy, closed: node is cordoned,
   memoryBytes: 85899345920, slices: [{tenant: '', owner: default/foreign, memoryBytes: 268435456, smPercent: 1}]}
deployments:
- {namespace: team-a, name: chat, tenant: team-a, state: OnTarget, well: true, wanted: 2, ready: 2, most: 4, pricePerHourMicros: 900000, currency: USD,
   arrivalsMilli: 41200, requests: {running: 118, queued: 0, held: 0}, predictedUs: [212000, 9100], message: 2 of 2 replicas Ready.}
- {namespace: team-b, name: code, tenant: team-b, state: WaitingForGPU, well: false, wanted: 3, ready: 1, message: No node fits.}
tenants:
- {name: team-a, usage: [{class: h100-80g, nominalMilli: 4000, heldMilli: 250, borrowedMilli: 0, pendingMilli: 0}]}
- {name: team-b, waiting: 1, usage: [{class: h100-80g, nominalMilli: 400, heldMilli: 500, borrowedMilli: 100, pendingMilli: 1000}]}
";

fn app() -> App {
    let mut app = App::default();
    app.fetched(Ok(yaml::<Overview>(OVERVIEW)), 1_772_366_401_000);
    app
}

fn press(app: &mut App, keys: &str) -> Then {
    let mut then = Then::Nothing;
    for key in keys.chars() {
        then = app.press(match key {
            '\n' => Key::Enter,
            '\t' => Key::NextTab,
            '^' => Key::Escape,
            c => Key::Char(c),
        });
    }
    then
}

#[test]
fn each_list_is_drawn_wide_and_in_forty_columns() {
    let mut text = String::new();
    for (width, abilities) in [(120, UTF8), (120, PLAIN), (40, UTF8), (40, PLAIN)] {
        for tab in [Tab::Gpus, Tab::Deployments, Tab::Tenants] {
            let mut app = app();
            app.tab = tab;
            text += &format!("--- {width} columns, {abilities:?}, {tab:?}\n{}", frame(&app, width, 14, abilities));
        }
    }
    golden("top.txt", &text);
    let plain = text.split("--- ").filter(|part| part.contains("unicode: false"));
    assert!(plain.collect::<String>().is_ascii());
}

#[test]
fn whole_state_is_printed_once_without_keys() {
    golden("top_once.txt", &once(&app(), 100, Abilities { colours: false, unicode: true }));
}

#[test]
fn cluster_that_goes_away_is_named_and_forgotten_when_it_is_back() {
    let mut app = app();
    app.fetched(Err("asking the operator: connection refused\nmore".into()), 1_772_366_410_000);
    app.fetched(Err("asking the operator: connection refused".into()), 1_772_366_425_000);
    let text = frame(&app, 100, 14, UTF8);
    assert!(
        text.contains("no answer for 15 s, shown is the last one: asking the operator: connection refused"),
        "{text}"
    );
    assert!(text.contains("GPU-3f2a"), "{text}");
    app.fetched(Ok(yaml(OVERVIEW)), 1_772_366_427_000);
    assert!(!frame(&app, 100, 14, UTF8).contains("no answer"));
}

#[test]
fn keys_turn_filter_sort_open_and_quit() {
    let mut app = app();
    assert_eq!(press(&mut app, "2"), Then::Nothing);
    assert_eq!((app.tab, app.selected), (Tab::Deployments, 0));
    assert_eq!(press(&mut app, "j\n"), Then::Explain("team-b".into(), "code".into()));
    app.explained("team-b/code".into(), "code wants 3 replicas\nmore".into());
    assert!(frame(&app, 60, 10, UTF8).contains("code wants 3 replicas"));
    assert_eq!(press(&mut app, "q"), Then::Nothing, "the page closes first");
    // While a filter is typed, letters are letters.
    press(&mut app, "/chq");
    assert_eq!((app.filter.as_str(), app.deployments().len()), ("chq", 0));
    assert!(frame(&app, 60, 10, UTF8).contains("no row contains the filter"));
    press(&mut app, "^/chat\n");
    assert_eq!(app.deployments()[0].name, "chat");
    assert_eq!(press(&mut app, "^"), Then::Nothing);
    assert_eq!(app.deployments().len(), 2);
    press(&mut app, "s");
    assert_eq!((app.order(), app.deployments()[0].name.as_str()), ("state", "code"));
    press(&mut app, "\t\t\n");
    assert!(app.page.as_ref().is_some_and(|page| page.1.contains("team-a/chat")), "{:?}", app.page);
    press(&mut app, "^");
    assert_eq!(press(&mut app, "^"), Then::Quit);
    assert_eq!(app.press(Key::Interrupt), Then::Quit);
}

#[test]
fn selected_row_stays_in_sight_and_within_the_list() {
    let mut app = app();
    let gpu = app.overview.gpus[0].clone();
    app.overview.gpus =
        (0..40).map(|n| stowage_planner::overview::Gpu { index: n, node: format!("n{n}"), ..gpu.clone() }).collect();
    app.press(Key::End);
    let text = frame(&app, 100, 10, UTF8);
    assert!(text.contains("\n>n39 "), "{text}");
    // The list shrinks under the selection.
    app.fetched(Ok(yaml(OVERVIEW)), 1_772_366_427_000);
    assert_eq!(app.selected, 2);
    app.fetched(Ok(Overview::default()), 1_772_366_427_000);
    assert!(frame(&app, 100, 10, UTF8).contains("nothing to show"));
}

#[test]
fn any_size_of_terminal_is_drawn() {
    for width in [1, 2, 7, 20, 71, 72, 73, 300] {
        for height in [1, 2, 3, 5, 60] {
            for tab in [Tab::Gpus, Tab::Deployments, Tab::Tenants] {
                let mut app = app();
                app.tab = tab;
                frame(&app, width, height, UTF8);
                app.page = Some(("t".into(), "x".repeat(500), 3));
                frame(&app, width, height, PLAIN);
            }
        }
    }
}
