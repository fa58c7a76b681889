//! The clients that people use, unchanged. Their scripts and pinned versions are in e2e/clients.

use anyhow::{Context, ensure};

use crate::tools::world::{Tenant, Wish, World};

/// The program of a script, by its extension.
enum Runner {
    Python,
    /// The one with the packages of `make test-long`.
    PythonLong,
    Node,
}

pub async fn clients_of_python_and_node_are_served_unchanged(w: World) -> anyhow::Result<()> {
    let tenant = w.tenant("a").await?;
    w.deploy_ready(&tenant, "chat", &Wish::default()).await?;
    w.answers(&tenant, "chat").await?;
    for (runner, script) in [
        (Runner::Python, "openai_client.py"),
        (Runner::Python, "litellm_client.py"),
        (Runner::Python, "langchain_client.py"),
        (Runner::Node, "openai_client.mjs"),
        (Runner::Node, "ai_sdk_client.mjs"),
    ] {
        run(&w, &tenant, runner, script).await?;
    }
    Ok(())
}

pub async fn an_evaluation_harness_scores_as_transformers_does(w: World) -> anyhow::Result<()> {
    let tenant = w.tenant("a").await?;
    w.deploy_ready(&tenant, "chat", &Wish::default()).await?;
    w.answers(&tenant, "chat").await?;
    run(&w, &tenant, Runner::PythonLong, "lm_eval_client.py").await
}

/// Runs a script to its end. Each check that fails ends it with a message.
async fn run(w: &World, tenant: &Tenant, runner: Runner, script: &str) -> anyhow::Result<()> {
    let folder = w.env.clients.clone().context("no folder with the clients given (STOWAGE_CLIENTS)")?;
    let program = match runner {
        Runner::Python => w.env.python.clone().context("no Python with the clients given (STOWAGE_PYTHON)")?,
        Runner::PythonLong => {
            w.env.python_long.clone().context("no Python with the larger clients given (STOWAGE_PYTHON_LONG)")?
        }
        Runner::Node => "node".into(),
    };
    let run = tokio::process::Command::new(program)
        .arg(script)
        .current_dir(folder)
        .env("STOWAGE_URL", &tenant.caller.url)
        .env("STOWAGE_KEY", &tenant.caller.key)
        .env("STOWAGE_MODEL", "chat")
        .env("STOWAGE_MODEL_FILE", model_file()?)
        .env("STOWAGE_REFERENCE", w.env.root.join("engine/testdata/smollm2-135m-instruct.json"))
        .output()
        .await
        .with_context(|| format!("run {script}"))?;
    let (output, errors) = (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    let last = output.lines().last().unwrap_or_default();
    ensure!(run.status.success() && last.ends_with("checks passed"), "{script} failed: {output}{errors}");
    println!("  {script}: {last}");
    Ok(())
}

/// Where `cargo xtask model` puts the model that the deployments of these tests serve.
fn model_file() -> anyhow::Result<std::path::PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(std::path::PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| std::path::PathBuf::from(home).join(".cache"));
    let cache = cache.or_else(home).context("neither XDG_CACHE_HOME nor HOME is set")?;
    Ok(cache.join("stowage/models/SmolLM2-135M-Instruct.Q4_1.gguf"))
}
