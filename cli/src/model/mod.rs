//! `model inspect` and `model pack`: from a model of one's own to a deployment of it.
//!
//! Both read headers with the engine's readers, so what they say is what the engine will find. Neither needs a cluster.

mod inspect;
mod pack;
mod source;

use std::error::Error;
use std::path::Path;

use clap::Subcommand;

use crate::out::{Format, Paint};
use crate::{Answer, Failure};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// What a model is and which memory it needs, from its headers alone.
    Inspect {
        /// A GGUF file, a directory with safetensors, or the http(s) address of a GGUF file.
        source: String,
        /// Context lengths to estimate, in tokens.
        #[arg(long, value_delimiter = ',')]
        context: Vec<usize>,
    },
    /// Write an image of a model, and print a deployment that serves it.
    Pack(pack::Args),
}

pub async fn run(command: &Command, output: Option<&str>, paint: Paint) -> Result<Answer, Failure> {
    match command {
        Command::Inspect { source, context } => {
            let facts = source::facts(source).await?;
            let yes = facts.engine.is_ok();
            let format = Format::asked(output)?;
            Ok(Answer { text: inspect::render(source, &facts, context, format, paint), yes })
        }
        Command::Pack(args) => pack::run(args, output.map(Path::new)),
    }
}

/// An error with its causes, on one line.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
