//! `top`: a live page of GPUs, deployments and tenants. This file is the terminal's part: it reads keys, fetches every two
//! seconds, and puts what [`draw`](draw::draw) makes of the [state](state::App) on the screen. Without a terminal, or with
//! `--once`, it prints one frame.

mod draw;
mod state;
#[cfg(test)]
mod tests;

use std::io::IsTerminal;
use std::time::Duration;

use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::{DefaultTerminal, Terminal};
use tokio::sync::mpsc;

use crate::cluster::{Cluster, ClusterError};
use crate::out::{self, Format, Paint};
use crate::{Answer, Failure, explain, overview};
use draw::{Abilities, draw};
use state::{App, Key, Then};

/// Between the end of one fetch and the next.
const PERIOD: Duration = Duration::from_secs(2);
/// Decisions that the explanation shows.
const SINCE_MS: u64 = 3_600_000;

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// Print one frame and end.
    #[arg(long)]
    once: bool,
}

pub(crate) async fn run(
    cluster: &Cluster,
    args: &Args,
    namespace: &str,
    format: Option<Format>,
    paint: Paint,
) -> Result<Answer, Failure> {
    if args.once || format.is_some() || !std::io::stdout().is_terminal() {
        let overview = overview::fetch(cluster, namespace, now_ms()).await?;
        let text = match out::machine(format, &overview) {
            Some(text) => text,
            None => {
                let mut app = App::default();
                app.fetched(Ok(overview), now_ms());
                once(&app, out::width(), Abilities { colours: false, unicode: out::unicode() })
            }
        };
        return Ok(Answer { text, yes: true });
    }
    // The first answer decides whether there is anything to look at; later ones may fail.
    let first = overview::fetch(cluster, namespace, now_ms()).await?;
    let abilities = Abilities { colours: paint.is_on(), unicode: out::unicode() };
    let terminal = ratatui::try_init().map_err(|e| Failure::Usage(format!("cannot use this terminal: {e}")))?;
    let ended = live(terminal, cluster, namespace, first, abilities).await;
    ratatui::restore();
    ended.map_err(|e| Failure::Usage(format!("the terminal failed: {e}")))?;
    Ok(Answer { text: String::new(), yes: true })
}

async fn live(
    mut terminal: DefaultTerminal,
    cluster: &Cluster,
    namespace: &str,
    first: stowage_planner::overview::Overview,
    abilities: Abilities,
) -> std::io::Result<()> {
    let mut app = App::default();
    app.fetched(Ok(first), now_ms());
    let mut keys = read_keys();
    let mut fetch = Box::pin(fetch_later(cluster, namespace));
    let mut explaining: Option<(String, String)> = None;
    loop {
        terminal.draw(|frame| draw(frame, &app, abilities))?;
        tokio::select! {
            event = keys.recv() => match event {
                None => return Ok(()),
                Some(None) => {} // another size
                Some(Some(key)) => match app.press(key) {
                    Then::Nothing => {}
                    Then::Quit => return Ok(()),
                    Then::Explain(namespace, name) => explaining = Some((namespace, name)),
                },
            },
            answer = &mut fetch => {
                app.fetched(answer.map_err(|e| e.to_string()), now_ms());
                fetch = Box::pin(fetch_later(cluster, namespace));
            }
            text = explained(cluster, explaining.as_ref()), if explaining.is_some() => {
                if let Some((namespace, name)) = explaining.take() {
                    app.explained(format!("{namespace}/{name}"), text);
                }
            }
            // Ages grow while nothing else happens.
            () = tokio::time::sleep(Duration::from_secs(1)) => app.now_ms = now_ms(),
        }
    }
}

async fn fetch_later(cluster: &Cluster, namespace: &str) -> Result<stowage_planner::overview::Overview, ClusterError> {
    tokio::time::sleep(PERIOD).await;
    overview::fetch(cluster, namespace, now_ms()).await
}

async fn explained(cluster: &Cluster, of: Option<&(String, String)>) -> String {
    let Some((namespace, name)) = of else { return String::new() };
    match explain::run(cluster, namespace, name, SINCE_MS, None, Paint::OFF).await {
        Ok(answer) => answer.text,
        Err(e) => e.to_string(),
    }
}

/// Keys, and `None` for a change of the terminal's size. A thread, because reading a terminal blocks; it ends with the process.
fn read_keys() -> mpsc::Receiver<Option<Key>> {
    let (send, receive) = mpsc::channel(64);
    std::thread::spawn(move || {
        while let Ok(event) = event::read() {
            let said = match event {
                Event::Key(key) if key.kind != KeyEventKind::Release => match meaning(key.code, key.modifiers) {
                    Some(key) => Some(key),
                    None => continue,
                },
                Event::Resize(..) => None,
                _ => continue,
            };
            if send.blocking_send(said).is_err() {
                return;
            }
        }
    });
    receive
}

fn meaning(code: KeyCode, with: KeyModifiers) -> Option<Key> {
    Some(match code {
        KeyCode::Char('c' | 'd') if with.contains(KeyModifiers::CONTROL) => Key::Interrupt,
        KeyCode::Char(c) => Key::Char(c),
        KeyCode::Up => Key::Up,
        KeyCode::Down => Key::Down,
        KeyCode::PageUp => Key::PageUp,
        KeyCode::PageDown => Key::PageDown,
        KeyCode::Home => Key::Home,
        KeyCode::End => Key::End,
        KeyCode::Tab => Key::NextTab,
        KeyCode::Enter => Key::Enter,
        KeyCode::Esc => Key::Escape,
        KeyCode::Backspace => Key::Backspace,
        _ => return None,
    })
}

/// The three lists below each other, each as long as it is.
fn once(app: &App, width: u16, abilities: Abilities) -> String {
    let mut out = String::new();
    for tab in [state::Tab::Gpus, state::Tab::Deployments, state::Tab::Tenants] {
        let mut app = app.clone();
        app.tab = tab;
        let rows = match tab {
            state::Tab::Gpus => app.gpus().len(),
            state::Tab::Deployments => app.deployments().len() + 1,
            state::Tab::Tenants => app.tenants().len(),
        };
        // Head, tabs, legend, notes; more would be cut by the terminal's own limit.
        let height = u16::try_from(rows.saturating_add(8 + app.overview.missing.len())).unwrap_or(u16::MAX);
        let text = frame(&app, width, height.min(u16::MAX / width.max(1)), abilities);
        // Keys are of no use in a pipe.
        out += text.rsplit_once("q quit").map_or(text.as_str(), |(before, _)| before).trim_end();
        out.push_str("\n\n");
    }
    out.trim_end().to_owned() + "\n"
}

/// One frame as text, without blanks at the ends of lines and without empty lines before the notes.
fn frame(app: &App, width: u16, height: u16, abilities: Abilities) -> String {
    let Ok(mut terminal) = Terminal::new(TestBackend::new(width, height));
    let Ok(_) = terminal.draw(|frame| draw(frame, app, abilities));
    let buffer = terminal.backend().buffer();
    let line = |y: u16| {
        let cells = (0..buffer.area.width).map(|x| buffer[(x, y)].symbol());
        cells.collect::<String>().trim_end().to_owned()
    };
    let lines: Vec<String> = (0..buffer.area.height).map(line).filter(|line| !line.is_empty()).collect();
    lines.join("\n") + "\n"
}

fn now_ms() -> u64 {
    u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or(0)
}
