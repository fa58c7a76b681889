//! The page of `kubectl stowage dashboard`: what its server answers, and the page in a browser (`e2e/clients`).

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use crate::tools::http::Caller;
use crate::tools::process::signal;
use crate::tools::proxy::{Fault, Proxy};
use crate::tools::world::{Env, Tenant, Wish, World};

/// A running `kubectl stowage dashboard`; it ends with this value.
struct Dashboard {
    address: String,
    command: Child,
}

impl Dashboard {
    /// With the rights of this test, or through a proxy of them.
    async fn start(tenant: &Tenant, proxy: Option<&Proxy>) -> anyhow::Result<Self> {
        let mut command = Command::new(Env::built("kubectl-stowage")?);
        command.args(["dashboard", "-n", &tenant.name]).stdout(Stdio::piped()).kill_on_drop(true);
        if let Some(proxy) = proxy {
            command.env("KUBECONFIG", proxy.kubeconfig(&std::env::temp_dir())?);
        }
        let mut command = command.spawn().context("start the dashboard")?;
        let mut lines = BufReader::new(command.stdout.take().context("no output")?).lines();
        let line = next(&mut lines, Duration::from_secs(20)).await?.context("it ended without an address")?;
        Ok(Self { address: line.trim().to_owned(), command })
    }

    /// As ^C does.
    async fn stop(&mut self) -> anyhow::Result<()> {
        let pid = self.command.id().context("it has ended already")?;
        signal(i32::try_from(pid)?, "INT")?;
        let ended = tokio::time::timeout(Duration::from_secs(20), self.command.wait()).await;
        let status = ended.context("it goes on after an interrupt while a page is open")??;
        ensure!(status.success(), "it ended with {status}");
        Ok(())
    }
}

async fn next<R: AsyncRead + Unpin>(
    lines: &mut Lines<BufReader<R>>,
    limit: Duration,
) -> anyhow::Result<Option<String>> {
    Ok(tokio::time::timeout(limit, lines.next_line()).await.context("no line is printed")??)
}

/// It serves its page and the live state to a caller with the right address.
pub async fn dashboard_serves_the_live_state_on_loopback(w: World) -> anyhow::Result<()> {
    let tenant = w.tenant("a").await?;
    w.deploy_ready(&tenant, "on-the-page", &Wish::default()).await?;
    let dashboard = Dashboard::start(&tenant, None).await?;
    let page = Caller::new(&dashboard.address, "")?;
    let front = page.get("/").await?;
    ensure!(front.status == 200 && front.body.to_string().contains("<html"), "{} {}", front.status, front.body);
    let state = page.get("/overview.json").await?;
    let shown = state.body["deployments"]
        .as_array()
        .is_some_and(|all| all.iter().any(|d| d.to_string().contains("on-the-page")));
    ensure!(state.status == 200 && shown, "{} {}", state.status, state.body);
    let decisions = page.get("/decisions.json").await?;
    ensure!(decisions.status == 200 && decisions.body["decisions"].is_array(), "{decisions:?}");
    let (host, token) = dashboard.address.trim_end_matches('/').rsplit_once('/').context("no token in the address")?;
    let guessed = Caller::new(&format!("{host}/{}", "0".repeat(token.len())), "")?.get("/overview.json").await?;
    ensure!(guessed.status == 404, "a wrong token answers {}", guessed.status);
    Ok(())
}

/// In Chromium: what the page shows, by keyboard, at three widths, in light and dark, with a change in the cluster, with an API
/// server that stops answering for a while, and after the command's end.
pub async fn dashboard_page_works_in_a_browser(w: World) -> anyhow::Result<()> {
    const NAME: &str = "on-the-page";
    let tenant = w.tenant("a").await?;
    w.deploy_ready(&tenant, NAME, &Wish::default()).await?;
    let proxy = Proxy::start(w.cluster().client().clone(), Fault::None).await?;
    let mut dashboard = Dashboard::start(&tenant, Some(&proxy)).await?;
    let folder = w.env.clients.clone().context("no folder with the clients given (STOWAGE_CLIENTS)")?;
    let mut browser = Command::new("node")
        .args(["dashboard_page.mjs", &dashboard.address])
        .current_dir(folder)
        .env("STOWAGE_DEPLOYMENT", format!("{}/{NAME}", tenant.name))
        .env("STOWAGE_MANIFEST", Wish::default().object(&tenant.name, "what-if").to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("start the browser's script")?;
    let mut lines = BufReader::new(browser.stdout.take().context("no output")?).lines();
    let last = steps(&w, &tenant, NAME, &proxy, &mut dashboard, &mut lines).await;
    let output = browser.wait_with_output().await.context("wait for the browser's script")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    let last = last.with_context(|| format!("the script printed {errors}"))?;
    ensure!(output.status.success() && last.ends_with("checks passed"), "{last} {errors}");
    w.note(&last);
    Ok(())
}

/// What the script asks for, until it ends; its last line.
async fn steps(
    w: &World,
    tenant: &Tenant,
    name: &str,
    proxy: &Proxy,
    dashboard: &mut Dashboard,
    lines: &mut Lines<BufReader<ChildStdout>>,
) -> anyhow::Result<String> {
    let mut last = String::new();
    while let Some(line) = next(lines, Duration::from_secs(200)).await? {
        match line.as_str() {
            "next: scale" => w.deploy(tenant, name, &Wish::default().replicas(2)).await?,
            "next: hang" => proxy.set(Fault::Slow(Duration::from_secs(300))),
            "next: answer" => proxy.set(Fault::None),
            "next: stop" => dashboard.stop().await?,
            _ => {}
        }
        last = line;
    }
    Ok(last)
}
