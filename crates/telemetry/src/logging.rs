//! Log lines on stderr: JSON where nobody watches, text on a terminal.

use std::io::IsTerminal;

use tracing_subscriber::{EnvFilter, layer::SubscriberExt, util::SubscriberInitExt};

/// Levels: `info`, `debug,kube=warn` … The first of these that is set; an InferenceRuntime may set only the second.
const LEVEL_ENV: [&str; 2] = ["STOWAGE_LOG", "RUST_LOG"];
/// `json` or `text`; anything else means: text on a terminal, JSON otherwise.
const FORMAT_ENV: &str = "STOWAGE_LOG_FORMAT";

/// Starts logging for this process and says which component and version runs.
///
/// A second call changes nothing, so tests may call it freely. An unreadable level is
/// reported and replaced by `info`: a typo in a log level must not keep a process from starting.
pub fn init_tracing(component: &'static str) {
    let wanted = level(|name| std::env::var(name).ok());
    let (filter, complaint) = match EnvFilter::try_new(&wanted) {
        Ok(filter) => (filter, None),
        Err(err) => (EnvFilter::new("info"), Some(err)),
    };
    let registry = tracing_subscriber::registry().with(filter);
    let started = if as_json(std::env::var(FORMAT_ENV).ok().as_deref()) {
        let layer = tracing_subscriber::fmt::layer().json().flatten_event(true);
        registry.with(layer.with_writer(std::io::stderr)).try_init()
    } else {
        let layer = tracing_subscriber::fmt::layer().with_ansi(std::io::stderr().is_terminal());
        registry.with(layer.with_writer(std::io::stderr)).try_init()
    };
    if started.is_err() {
        return;
    }
    if let Some(err) = complaint {
        tracing::warn!(%err, value = wanted, "STOWAGE_LOG or RUST_LOG is not a log filter, using `info`");
    }
    tracing::info!(component, version = env!("CARGO_PKG_VERSION"), "starting");
}

fn level(read: impl Fn(&str) -> Option<String>) -> String {
    LEVEL_ENV.into_iter().find_map(read).unwrap_or_else(|| "info".to_owned())
}

fn as_json(format: Option<&str>) -> bool {
    match format {
        Some("json") => true,
        Some("text") => false,
        _ => !std::io::stderr().is_terminal(),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_format_variable_wins_over_the_terminal() {
        assert!(super::as_json(Some("json")));
        assert!(!super::as_json(Some("text")));
    }

    #[test]
    fn our_own_variable_wins_over_the_common_one() {
        let level = |set: &[(&str, &str)]| {
            super::level(|name| set.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned()))
        };
        assert_eq!(level(&[]), "info");
        assert_eq!(level(&[("RUST_LOG", "debug")]), "debug");
        assert_eq!(level(&[("RUST_LOG", "debug"), ("STOWAGE_LOG", "warn")]), "warn");
    }
}
