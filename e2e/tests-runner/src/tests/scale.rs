//! Many at once: one tenant's crowd is not another's delay.

use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::json;

use crate::cluster::condition;
use crate::world::{Tenant, Wish, World};

const CROWD: usize = 200;
/// What the crowd may add to another tenant's time.
const DELAY: Duration = Duration::from_secs(2);

/// The crowd's quota covers two replicas: this is about decisions and writes, not about 200 engines on one machine.
pub async fn two_hundred_deployments_of_one_tenant_do_not_delay_another(w: World) -> anyhow::Result<()> {
    let other = w.tenant("other").await?;
    let crowd = w.tenant_with("crowd", json!({"gpus": [{"class": "h100-80g", "nominalQuota": "110m"}]})).await?;
    let alone = placed_in(&w, &other, "alone").await?;
    let all = (0..CROWD).map(|i| {
        let (w, crowd) = (w.clone(), crowd.clone());
        async move { w.deploy(&crowd, &format!("one-{i}"), &Wish::default().slice("4Gi", 5)).await }
    });
    // At once with the crowd, not after it.
    let (crowded, beside) = futures::join!(futures::future::try_join_all(all), placed_in(&w, &other, "beside"));
    crowded?;
    let beside = beside?;
    println!("  apply → placed: {:.2} s alone, {:.2} s beside {CROWD}", alone.as_secs_f64(), beside.as_secs_f64());
    ensure!(
        beside <= alone + DELAY,
        "{:.1} s beside {CROWD} deployments of another tenant, {:.1} s alone",
        beside.as_secs_f64(),
        alone.as_secs_f64()
    );
    // Each of the crowd was told why it waits.
    crate::cluster::wait_for("every deployment of the crowd to be told", Duration::from_secs(90), || async {
        let all = w.cluster().list("InferenceDeployment", &crowd.name, "").await?;
        let told = all.iter().filter(|o| condition(o, "QuotaReserved").is_some_and(|c| !c.2.is_empty())).count();
        Ok(if told == CROWD { Ok(()) } else { Err(format!("{told} of {CROWD}")) })
    })
    .await?;
    w.ready(&other, "beside", 1).await
}

/// From the object's existence to the decision that stands in its status. What the API server takes for the object
/// itself is printed and does not count.
async fn placed_in(w: &World, tenant: &Tenant, name: &str) -> anyhow::Result<Duration> {
    let asked = Instant::now();
    w.deploy(tenant, name, &Wish::default()).await?;
    let started = Instant::now();
    println!("  {name}: the API server took {:.2} s", (started - asked).as_secs_f64());
    w.until(tenant, name, "a pod of its own", Duration::from_secs(60), |o| {
        o.pointer("/status/placements").and_then(|p| p.as_array()).is_some_and(|p| !p.is_empty())
    })
    .await?;
    Ok(started.elapsed())
}
