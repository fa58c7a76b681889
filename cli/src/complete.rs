//! Completions. `completion SHELL` prints a script for the plugin called by its own name; `kubectl stowage` is completed
//! by kubectl, which asks a program `kubectl_complete-stowage` in its own protocol: one candidate per line with its
//! description behind a tab, and a last line that says whether files may be offered as well.

use std::fmt::Write as _;

use clap::{Arg, Command};
use clap_complete::Shell as ClapShell;

/// What kubectl calls; it must be on the PATH beside the plugin.
const KUBECTL_SCRIPT: &str = "#!/bin/sh\nexec kubectl-stowage __complete -- \"$@\"\n";

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum Shell {
    Bash,
    Zsh,
    Fish,
    /// The program `kubectl_complete-stowage`, for `kubectl stowage` in any shell.
    Kubectl,
}

/// The script for a shell.
pub(crate) fn script(shell: Shell, mut command: Command) -> String {
    let shell = match shell {
        Shell::Bash => ClapShell::Bash,
        Shell::Zsh => ClapShell::Zsh,
        Shell::Fish => ClapShell::Fish,
        Shell::Kubectl => return KUBECTL_SCRIPT.to_owned(),
    };
    let mut out = Vec::new();
    clap_complete::generate(shell, &mut command, "kubectl-stowage", &mut out);
    String::from_utf8_lossy(&out).into_owned()
}

/// What may stand at the end of a command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Offer {
    /// Words and their descriptions.
    Words(Vec<(String, String)>),
    /// Names of InferenceDeployments in the namespace that the line names, or the context's.
    Deployments(Option<String>),
    /// Names of files.
    Files,
}

/// What fits the last of `words`, which may be empty; the others are complete.
pub(crate) fn offer(root: &Command, words: &[String]) -> Offer {
    let (last, before) = words.split_last().map_or(("", words), |(last, before)| (last.as_str(), before));
    let (mut command, mut value_of, mut positionals, mut namespace) = (root, None, 0, None);
    for word in before {
        if let Some(option) = value_of.take() {
            if is(option, "namespace") {
                namespace = Some(word.clone());
            }
        } else if word.starts_with('-') {
            value_of = option(root, command, word).filter(|o| takes_value(o) && !word.contains('='));
        } else if let Some(next) = command.find_subcommand(word) {
            command = next;
        } else {
            positionals += 1;
        }
    }
    if let Some(option) = value_of {
        return values(option, last);
    }
    if last.starts_with('-') {
        let flags = options(root, command).filter(|a| !a.is_hide_set()).filter_map(|arg| {
            Some((format!("--{}", arg.get_long()?), arg.get_help().map(ToString::to_string).unwrap_or_default()))
        });
        return Offer::Words(starting(flags, last));
    }
    if command.has_subcommands() {
        let commands = command.get_subcommands().filter(|c| !c.is_hide_set());
        let described =
            |c: &Command| (c.get_name().to_owned(), c.get_about().map(ToString::to_string).unwrap_or_default());
        return Offer::Words(starting(commands.map(described), last));
    }
    match command.get_positionals().nth(positionals) {
        Some(arg) if is(arg, "name") => Offer::Deployments(namespace),
        Some(arg) => values(arg, last),
        None => Offer::Words(Vec::new()),
    }
}

/// In kubectl's protocol.
pub(crate) fn protocol(offer: &Offer, names: &[String], prefix: &str) -> String {
    const FILES: u32 = 0;
    const NO_FILES: u32 = 4;
    let mut out = String::new();
    let mut line = |word: &str, what: &str| {
        let what = what.lines().next().unwrap_or_default();
        let _ = if what.is_empty() { writeln!(out, "{word}") } else { writeln!(out, "{word}\t{what}") };
    };
    let directive = match offer {
        Offer::Words(words) => {
            words.iter().for_each(|(word, what)| line(word, what));
            NO_FILES
        }
        Offer::Deployments(_) => {
            names.iter().filter(|n| n.starts_with(prefix)).for_each(|name| line(name, ""));
            NO_FILES
        }
        Offer::Files => FILES,
    };
    let _ = writeln!(out, ":{directive}");
    out
}

fn options<'a>(root: &'a Command, command: &'a Command) -> impl Iterator<Item = &'a Arg> {
    let own = command.get_opts().chain(command.get_arguments().filter(|a| !a.is_positional() && !takes_value(a)));
    own.chain(root.get_arguments().filter(|a| a.is_global_set()))
}

fn option<'a>(root: &'a Command, command: &'a Command, word: &str) -> Option<&'a Arg> {
    let name = word.split('=').next().unwrap_or(word);
    options(root, command).find(|arg| match name.strip_prefix("--") {
        Some(long) => arg.get_long() == Some(long),
        // The value of a short option may follow at once (`-nteam-a`).
        None => name.len() == 2 && arg.get_short() == name.chars().nth(1),
    })
}

fn is(arg: &Arg, id: &str) -> bool {
    arg.get_id().as_str() == id
}

fn takes_value(arg: &Arg) -> bool {
    arg.get_action().takes_values()
}

fn values(arg: &Arg, prefix: &str) -> Offer {
    if is(arg, "filename") || is(arg, "kubeconfig") || is(arg, "source") || is(arg, "trace") || is(arg, "html") {
        return Offer::Files;
    }
    let words: Vec<(String, String)> = match arg.get_id().as_str() {
        "output" => ["json", "yaml", "wide"].map(|f| (f.to_owned(), String::new())).to_vec(),
        _ => {
            let possible = arg.get_possible_values();
            let described = |v: &clap::builder::PossibleValue| {
                (v.get_name().to_owned(), v.get_help().map(ToString::to_string).unwrap_or_default())
            };
            possible.iter().map(described).collect()
        }
    };
    Offer::Words(starting(words.into_iter(), prefix))
}

fn starting(words: impl Iterator<Item = (String, String)>, prefix: &str) -> Vec<(String, String)> {
    // A global option is one of each command as well.
    let mut seen = std::collections::BTreeSet::new();
    words.filter(|(word, _)| word.starts_with(prefix) && seen.insert(word.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn of(line: &str) -> Offer {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        let mut command = crate::Cli::command();
        command.build();
        offer(&command, &words)
    }

    fn words(line: &str) -> Vec<String> {
        match of(line) {
            Offer::Words(words) => words.into_iter().map(|(word, _)| word).collect(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn end_of_a_line_is_completed_by_what_may_stand_there() {
        assert_eq!(words("expl"), ["explain"]);
        assert_eq!(words("plan --del"), ["--delete"]);
        assert_eq!(words("plan --name"), ["--namespace"]);
        assert_eq!(words("status -o "), ["json", "yaml", "wide"]);
        assert_eq!(words("status --output y"), ["yaml"]);
        assert_eq!(words("model p"), ["pack"]);
        assert_eq!(words("completion "), ["bash", "zsh", "fish", "kubectl"]);
        assert_eq!(words("explain chat "), [""; 0]);
        assert_eq!(of("explain "), Offer::Deployments(None));
        assert_eq!(of("explain -n team-a ch"), Offer::Deployments(Some("team-a".into())));
        assert_eq!(of("--namespace team-b status "), Offer::Deployments(Some("team-b".into())));
        assert_eq!(of("plan -f "), Offer::Files);
        for option in ["--trace", "-f", "--html"] {
            assert_eq!(of(&format!("simulate {option} ")), Offer::Files, "{option}");
        }
        assert!(!words("").contains(&"__complete".to_owned()));
    }

    #[test]
    fn kubectl_reads_candidates_and_whether_files_may_be_offered() {
        let names = ["chat".to_owned(), "code".to_owned()];
        assert_eq!(protocol(&Offer::Deployments(None), &names, "ch"), "chat\n:4\n");
        assert_eq!(protocol(&Offer::Files, &[], ""), ":0\n");
        let words = vec![("plan".to_owned(), "What would\nmore".to_owned())];
        assert_eq!(protocol(&Offer::Words(words), &[], ""), "plan\tWhat would\n:4\n");
    }

    #[test]
    fn each_shell_has_a_script() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish, Shell::Kubectl] {
            assert!(script(shell, crate::Cli::command()).contains("kubectl-stowage"), "{shell:?}");
        }
    }
}
