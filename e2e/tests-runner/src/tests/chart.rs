//! The chart as a platform engineer uses it: test, upgrade, uninstall, install again, with real Helm.

use std::time::Duration;

use anyhow::{Context, ensure};

use crate::tools::cluster::{text, wait_for};
use crate::tools::load::Load;
use crate::tools::world::{NODES, SYSTEM, Wish, World};

async fn helm(w: &World, args: &[&str]) -> anyhow::Result<String> {
    let (code, out, err) = w.env.program("helm", args).await?;
    ensure!(code == 0, "helm {} failed: {err}", args.join(" "));
    Ok(out)
}

/// Requests go on while the control plane and the gateways are replaced one by one.
pub async fn helm_test_passes_and_an_upgrade_interrupts_no_request(w: World) -> anyhow::Result<()> {
    helm(&w, &["test", "stowage", "--timeout", "90s"]).await?;
    let tenant = w.tenant("a").await?;
    w.deploy_ready(&tenant, "chat", &Wish::default()).await?;
    w.answers(&tenant, "chat").await?;
    let load = Load::start(&tenant.caller, "chat", 2, 8);
    let chart = w.env.root.join("charts/stowage").display().to_string();
    let stamp = format!("image.revision=upgrade-{}", std::process::id());
    let upgrade = helm(
        &w,
        &["upgrade", "stowage", &chart, "--reuse-values", "--set-string", &stamp, "--wait", "--timeout", "180s"],
    )
    .await;
    let outcome = load.finish().await;
    upgrade?;
    ensure!(outcome.succeeded > 0, "no request was answered during the upgrade");
    // kube-proxy on the entry node may send one connection to a gateway that has just closed its port.
    ensure!(
        outcome.failures.is_empty(),
        "{} of {} failed: {:?}",
        outcome.failures.len(),
        outcome.succeeded,
        outcome.failures.first()
    );
    w.deploy_ready(&tenant, "after", &Wish::default()).await
}

pub async fn helm_uninstall_leaves_nothing_and_install_works_again(w: World) -> anyhow::Result<()> {
    let values = w.unique("values.json");
    let file = std::env::temp_dir().join(values);
    std::fs::write(&file, helm(&w, &["get", "values", "stowage", "-o", "json"]).await?).context("keep the values")?;
    helm(&w, &["uninstall", "stowage", "--wait", "--timeout", "120s"]).await?;
    wait_for("every pod of ours to be gone", Duration::from_secs(60), || async {
        let left = w.cluster().list("Pod", SYSTEM, "").await?.len() + w.cluster().list("Pod", NODES, "").await?.len();
        Ok(if left == 0 { Ok(()) } else { Err(format!("{left} pods")) })
    })
    .await?;
    for kind in ["Service", "Secret", "ServiceAccount", "Lease", "NetworkPolicy"] {
        for namespace in [SYSTEM, NODES] {
            let left = w.cluster().list(kind, namespace, "app.kubernetes.io/part-of=stowage").await?;
            ensure!(left.is_empty(), "{kind} {} is left", text(&left[0], "/metadata/name"));
        }
    }
    for kind in ["DeviceClass", "ClusterRoleBinding"] {
        let left = w.cluster().list(kind, "", "app.kubernetes.io/part-of=stowage").await?;
        ensure!(left.is_empty(), "{kind} {} is left", text(&left[0], "/metadata/name"));
    }
    let crds = w.cluster().list("InferenceDeployment", "", "").await;
    ensure!(crds.is_ok(), "the CRDs went with the control plane: users' objects would be lost");
    let chart = w.env.root.join("charts/stowage").display().to_string();
    let file = file.display().to_string();
    helm(&w, &["install", "stowage", &chart, "-f", &file, "--wait", "--timeout", "180s"]).await?;
    std::fs::remove_file(&file).ok(); // a leftover in the temporary folder does no harm
    let tenant = w.tenant("a").await?;
    w.deploy_ready(&tenant, "chat", &Wish::default()).await
}
