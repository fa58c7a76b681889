//! `model inspect` and `model pack`: from a model of one's own to a deployment of it.
//!
//! Both read headers with the engine's readers, so what they say is what the engine will find. Neither needs a cluster.

mod inspect;
mod pack;
mod source;

use std::path::Path;

use clap::Subcommand;
use stowage_contracts::estimate::SEQUENCES;

use crate::out::{Format, Paint};
use crate::{Answer, Failure};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// What a model is and which memory it needs, from its headers alone.
    Inspect {
        /// A GGUF file or a directory with safetensors; its http(s) address (of a directory with `/` at the end);
        /// `hf://OWNER/NAME[@REVISION][/FILE.gguf]`; `s3://BUCKET/KEY.gguf` or `s3://BUCKET/PREFIX/`. HF_TOKEN, HF_ENDPOINT
        /// and the AWS_ variables are read from the environment.
        source: String,
        /// Context lengths to estimate, in tokens.
        #[arg(long, value_delimiter = ',')]
        context: Vec<usize>,
        /// Sequences of the whole context that the KV cache is to hold.
        #[arg(long, default_value_t = SEQUENCES, value_parser = clap::value_parser!(u32).range(1..=4096))]
        sequences: u32,
    },
    /// Write an image of a model, and print a deployment that serves it.
    Pack(pack::Args),
}

pub async fn run(command: &Command, output: Option<&str>, paint: Paint) -> Result<Answer, Failure> {
    match command {
        Command::Inspect { source, context, sequences } => {
            let found =
                source::facts(source, |name| std::env::var(name).ok().filter(|value| !value.is_empty())).await?;
            let facts = &found.facts;
            if let Ok(needs) = &facts.engine {
                context.iter().try_for_each(|context| within(*context, needs.context_len()))?;
            }
            let yes = facts.engine.is_ok();
            let format = Format::asked(output)?;
            let asked = inspect::Asked { contexts: context, sequences: *sequences as usize };
            Ok(Answer { text: inspect::render(source, &found, asked, format, paint), yes })
        }
        Command::Pack(args) => pack::run(args, output.map(Path::new)),
    }
}

/// Refuses a context that the model was not made for.
fn within(context: usize, own: usize) -> Result<(), Failure> {
    if (1..=own).contains(&context) {
        return Ok(());
    }
    Err(Failure::Usage(format!("--context {context}: the model was made for 1 to {own} tokens")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn context_beyond_the_model_is_refused_with_its_own() {
        for (context, fits) in [(1, true), (2048, true), (0, false), (2049, false)] {
            let refused = match within(context, 2048) {
                Ok(()) => None,
                Err(Failure::Usage(text)) => Some(text),
                Err(other) => panic!("{context}: {other:?}"),
            };
            assert_eq!(refused.is_none(), fits, "{context}");
            assert!(refused.is_none_or(|text| text.contains("1 to 2048 tokens")), "{context}");
        }
    }
}
