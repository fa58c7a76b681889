//! Many at once: one tenant's crowd is not another's delay.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::tools::cluster::{condition, wait_for};
use crate::tools::operator::{Operator, SHORT_LEASE, between};
use crate::tools::parts::{gateways, without_operators};
use crate::tools::process;
use crate::tools::proxy::Fault;
use crate::tools::world::{Tenant, Wish, World};

const CROWD: usize = 200;
/// What the operator may write for the crowd before it places another tenant's deployment, in writes. It has four
/// under way for one tenant at a time; those of the crowd are more than two hundred.
const BEFORE: usize = 50;

/// An operator that begins with all of it before its eyes writes in turn for each tenant. The crowd's quota covers
/// two replicas: this is about decisions and writes, not about 200 engines on one machine.
pub async fn two_hundred_deployments_of_one_tenant_do_not_delay_another(w: World) -> anyhow::Result<()> {
    without_operators(&w, crowd(&w)).await
}

async fn crowd(w: &World) -> anyhow::Result<()> {
    // The name is last in the order of names, which is no reason to be served last.
    let (crowd, other) = (w.tenant_with("crowd", small_quota()).await?, w.tenant("other").await?);
    let all = (0..CROWD).map(|i| {
        let (w, crowd) = (w.clone(), crowd.clone());
        async move { w.deploy(&crowd, &format!("one-{i}"), &Wish::default().slice("4Gi", 5)).await }
    });
    futures::future::try_join_all(all).await?;
    w.deploy(&other, "beside", &Wish::default()).await?;
    let proxy = between(w, Fault::None).await?;
    let operator = Operator::start(w, &proxy, SHORT_LEASE)?;
    wait_for("every deployment of the crowd to have its reason", Duration::from_secs(180), || async {
        let all = w.cluster().list("InferenceDeployment", &crowd.name, "").await?;
        let reasoned = all.iter().filter(|o| condition(o, "QuotaReserved").is_some_and(|c| !c.2.is_empty())).count();
        Ok(if reasoned == CROWD { Ok(()) } else { Err(format!("{reasoned} of {CROWD}")) })
    })
    .await?;
    w.ready(&other, "beside", 1).await?;
    let written = proxy.written();
    operator.kill().await?;
    let of = |tenant: &Tenant| format!("/namespaces/{}/", tenant.name);
    let placed = written.iter().position(|write| write.contains(&of(&other)) && write.contains("/resourceclaims"));
    let placed = placed.context("no ResourceClaim was written for the other tenant")?;
    let (before, all) = (&written[..placed], written.iter().filter(|write| write.contains(&of(&crowd))).count());
    let before = before.iter().filter(|write| write.contains(&of(&crowd))).count();
    w.note(&format!("{before} of {all} writes for the crowd came before the other tenant's claim"));
    ensure!(all >= CROWD, "only {all} writes for the crowd: the test proves nothing");
    ensure!(before <= BEFORE, "{before} of {all} writes for the crowd came before the other tenant's claim");
    Ok(())
}

fn small_quota() -> Value {
    json!({"gpus": [{"class": "h100-80g", "nominalQuota": "110m"}]})
}

const SLOW: usize = 1000;
/// Of these so many send at one time.
const TOGETHER: usize = 10;
/// Alone and beside the slow ones in turn; the middle of the rounds' ratios counts.
const ROUNDS: usize = 5;
const REQUESTS: usize = 100;
/// What slow clients may add to the others' 95th percentile.
const SLOWER: f64 = 1.2;
/// What the gateways may grow by, all together, for a thousand bodies under way.
const GROWN_MIB: f64 = 64.0;

pub async fn a_thousand_slow_clients_do_not_delay_others(w: World) -> anyhow::Result<()> {
    let tenant = w.tenant("a").await?;
    w.deploy_ready(&tenant, "chat", &Wish::default()).await?;
    w.answers(&tenant, "chat").await?;
    let before = resident(&w).await?;
    let (mut ratios, mut grown) = (Vec::new(), 0.0_f64);
    for round in 0..ROUNDS {
        let alone = p95(&tenant, &format!("{round} alone")).await?;
        let slow = Slow::connect(&tenant).await?;
        let beside = p95(&tenant, &format!("{round} beside")).await;
        grown = grown.max(resident(&w).await? - before);
        slow.end();
        ratios.push(beside?.as_secs_f64() / alone.as_secs_f64());
    }
    ratios.sort_by(f64::total_cmp);
    w.note(&format!(
        "p95 beside {SLOW} slow clients over p95 alone: {ratios:.2?}; the gateways grew by {grown:.0} MiB"
    ));
    ensure!(ratios[ROUNDS / 2] <= SLOWER, "the others' p95 is {:.2} times as long", ratios[ROUNDS / 2]);
    ensure!(grown <= GROWN_MIB, "the gateways grew by {grown:.0} MiB");
    Ok(())
}

/// No question is asked twice: the engine would remember its beginning.
async fn p95(tenant: &Tenant, round: &str) -> anyhow::Result<Duration> {
    let mut times = Vec::new();
    for turn in 0..REQUESTS {
        let started = Instant::now();
        let answer = tenant.caller.chat("chat", &format!("{round} {turn}: name a colour."), 8).await?;
        ensure!(answer.status == 200, "{} {}", answer.status, answer.body);
        times.push(started.elapsed());
    }
    times.sort();
    Ok(times[REQUESTS * 95 / 100])
}

async fn resident(w: &World) -> anyhow::Result<f64> {
    gateways(w).await?.into_iter().map(process::resident_mib).sum()
}

/// Clients that send a byte of their body each second, and never all of it.
struct Slow(tokio::task::JoinHandle<()>);

impl Slow {
    async fn connect(tenant: &Tenant) -> anyhow::Result<Self> {
        let address = tenant.caller.url.trim_start_matches("http://").to_owned();
        let head = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-length: 5000\r\n\r\n{{",
            tenant.caller.key
        );
        let mut streams = Vec::new();
        for n in 0..SLOW {
            let mut stream = TcpStream::connect(&address).await.with_context(|| format!("slow client {n}"))?;
            stream.write_all(head.as_bytes()).await.with_context(|| format!("slow client {n}"))?;
            streams.push(stream);
        }
        Ok(Self(tokio::spawn(async move {
            // Spread over the second, as a thousand clients would be.
            let mut tick = tokio::time::interval(Duration::from_secs(1) * TOGETHER as u32 / SLOW as u32);
            let mut next = 0;
            loop {
                tick.tick().await;
                for stream in &mut streams[next..next + TOGETHER] {
                    let _ = stream.write_all(b" ").await; // closed by the gateway: it has waited long enough
                }
                next = (next + TOGETHER) % SLOW;
            }
        })))
    }

    fn end(self) {
        self.0.abort();
    }
}
