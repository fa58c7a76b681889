//! `cargo xtask cluster check`: whether the cluster does what our tests take for granted. Each check
//! is a name and a function; all share a few pods, in a namespace that is removed at the end.

mod manifests;

use crate::base::wait::{self, Seen};
use crate::base::{paths, sh};
use crate::cluster::commands::load;
use crate::cluster::machine::process;
use crate::cluster::parts::kubectl;
use crate::cluster::shape::layout::{Layout, node_name};
use crate::cluster::shape::state::State;
use crate::cluster::shape::template;
use crate::image;
use anyhow::{Context, Result, bail, ensure};
use std::time::{Duration, Instant};

type Check = fn(&Bed) -> Result<()>;

const CHECKS: &[(&str, Check)] = &[
    ("logs_can_be_read", |b| b.prints(&["logs", "web"], "started")),
    ("exec_runs_in_the_pod", |b| b.prints(&["exec", "client", "--", "hostname"], "client")),
    ("a_pod_reaches_a_pod_on_another_node", |b| b.gets("client", &b.web()?)),
    ("a_pod_reaches_a_service", |b| b.gets("client", &format!("http://{}/", b.service()?))),
    ("a_pod_reaches_a_service_on_its_own_node", |b| b.gets("near", &format!("http://{}/", b.service()?))),
    ("a_pod_reaches_itself_through_its_service", |b| b.gets("web", &format!("http://{}/", b.service()?))),
    ("a_full_name_resolves", |b| b.gets("client", &format!("http://web.{}.svc.cluster.local/", b.namespace))),
    ("a_short_name_resolves", |b| b.gets("near", "http://web/")),
    ("a_pod_reaches_the_api_server", |b| {
        b.prints(&["exec", "client", "--", "sh", "-c", "nc -w 5 10.96.0.1 443 </dev/null && echo open"], "open")
    }),
    ("the_api_server_reaches_a_pod", |b| b.prints(&["get", "--raw", &b.proxied("pods/web:8080")], "hello-from-web")),
    ("the_kubelet_has_metrics", |b| {
        b.prints(&["get", "--raw", "/api/v1/nodes/node1/proxy/metrics/resource"], "container_memory_working_set_bytes")
    }),
    ("a_policy_admits_whom_it_names", policy_admits),
    ("a_policy_keeps_others_out", policy_denies),
    ("a_policy_keeps_a_pod_in", policy_egress),
    ("without_a_policy_all_is_open_again", policy_gone),
    ("an_image_is_a_volume", |b| b.prints(&["exec", "near", "--", "ls", "/model/bin/probe"], "/model/bin/probe")),
    ("an_agent_sees_its_node", agent),
    ("a_node_keeps_its_folders_to_itself", private_folders),
    ("restricted_admits_a_modest_pod_only", restricted),
    ("an_admission_policy_refuses", admission_policy),
];

/// Runs those whose name has `part`; an error when one failed.
pub fn run(layout: &Layout, part: Option<&str>) -> Result<()> {
    let state = State::required(layout)?;
    let bed = Bed { layout, state: &state, namespace: "stowage-check".into() };
    bed.make().context("preparing the checks")?;
    let mut failed = 0;
    for (name, check) in CHECKS.iter().filter(|(n, _)| part.is_none_or(|p| n.contains(p))) {
        let start = Instant::now();
        match check(&bed) {
            Ok(()) => println!("ok {name} {:.1}", start.elapsed().as_secs_f64()),
            Err(e) => {
                failed += 1;
                println!("FAIL {name}: {}", format!("{e:#}").replace('\n', " | "));
            }
        }
    }
    bed.remove()?;
    ensure!(failed == 0, "{failed} checks failed");
    Ok(())
}

/// The pods on which the checks run.
struct Bed<'a> {
    layout: &'a Layout,
    state: &'a State,
    namespace: String,
}

const PATIENCE: Duration = Duration::from_secs(90);

impl Bed<'_> {
    fn make(&self) -> Result<()> {
        self.remove()?; // of a run that was interrupted
        image::run(image::Args::only("probe"))?;
        load::run(self.layout, &[paths::image_archive("probe")])?;
        self.kubectl(&["create", "namespace", &self.namespace])?;
        self.account(&self.namespace)?;
        let values =
            [("namespace", self.namespace.clone()), ("first", node_name(1)), ("last", node_name(self.state.nodes))];
        self.apply(&template::fill(template::CHECK, &values)?)?;
        self.kubectl(&["wait", "--for=condition=Ready", "pod", "--all", "--timeout=90s"])?;
        // kube-proxy follows an EndpointSlice up to a second late.
        let service = format!("http://{}/", self.service()?);
        self.eventually("the Service", || self.gets("client", &service).and_then(|()| self.gets("near", &service)))
    }

    fn remove(&self) -> Result<()> {
        let policy = "validatingadmissionpolicy,validatingadmissionpolicybinding";
        self.kubectl(&["delete", policy, &self.namespace, "--ignore-not-found"])?;
        let (own, restricted) = (self.namespace.as_str(), self.restricted());
        self.kubectl(&["delete", "namespace", own, &restricted, "--ignore-not-found", "--wait", "--timeout=90s"])?;
        Ok(())
    }

    /// Until a namespace has its ServiceAccount, creating pods in it is Forbidden.
    fn account(&self, namespace: &str) -> Result<()> {
        self.eventually("the ServiceAccount", || {
            self.kubectl(&["get", "serviceaccount", "default", "-n", namespace]).map(drop)
        })
    }

    fn restricted(&self) -> String {
        format!("{}-restricted", self.namespace)
    }

    fn kubectl(&self, args: &[&str]) -> Result<String> {
        let namespace = ["--namespace", self.namespace.as_str()];
        let own = if args.contains(&"-n") { &[][..] } else { &namespace[..] };
        kubectl::get(self.layout, self.state, &[own, args].concat())
    }

    fn apply(&self, manifest: &str) -> Result<()> {
        let mut apply = kubectl::command(self.layout, self.state, &["apply", "-n", &self.namespace, "-f", "-"]);
        sh::output_with_input(&mut apply, manifest).map(drop)
    }

    fn prints(&self, args: &[&str], want: &str) -> Result<()> {
        let got = self.kubectl(args)?;
        ensure!(got.contains(want), "no {want:?} in: {}", sh::tail(&got, 5));
        Ok(())
    }

    fn gets(&self, pod: &str, url: &str) -> Result<()> {
        self.prints(&["exec", pod, "--", "probe", "get", url], "hello-from-web")
    }

    /// A time-out, not any failure: a name that does not resolve is another failure.
    fn kept_out(&self, pod: &str, url: &str) -> Result<()> {
        match self.kubectl(&["exec", pod, "--", "probe", "get", url, "2s"]) {
            Ok(_) => bail!("{pod} still reaches {url}"),
            Err(e) if format!("{e:#}").contains("Client.Timeout exceeded") => Ok(()),
            Err(e) => Err(e),
        }
    }

    fn eventually(&self, what: &str, mut holds: impl FnMut() -> Result<()>) -> Result<()> {
        wait::until(what, PATIENCE, || Ok(holds().map_or_else(|e| Seen::NotYet(format!("{e:#}")), Seen::Yes)))
    }

    fn web(&self) -> Result<String> {
        Ok(format!("http://{}:8080/", self.kubectl(&["get", "pod", "web", "-o=jsonpath={.status.podIP}"])?))
    }

    fn service(&self) -> Result<String> {
        self.kubectl(&["get", "service", "web", "-o=jsonpath={.spec.clusterIP}"])
    }

    fn proxied(&self, what: &str) -> String {
        format!("/api/v1/namespaces/{}/{what}/proxy/", self.namespace)
    }
}

fn policy_admits(b: &Bed) -> Result<()> {
    b.apply(manifests::ALLOW_NEAR)?;
    // Once it holds for the other pod, the success of the admitted one proves something.
    let web = b.web()?;
    b.eventually("the policy", || b.kept_out("client", &web))?;
    b.gets("near", &web)?;
    b.gets("near", &format!("http://{}/", b.service()?))
}

fn policy_denies(b: &Bed) -> Result<()> {
    b.apply(manifests::ALLOW_NEAR)?;
    let (web, service) = (b.web()?, format!("http://{}/", b.service()?));
    b.eventually("the policy", || b.kept_out("client", &web))?;
    b.kept_out("client", &service)?;
    // The kubelet's probes are no pod's traffic.
    b.prints(&["get", "pod", "web", "-o=jsonpath={.status.conditions[?(@.type==\"Ready\")].status}"], "True")
}

fn policy_egress(b: &Bed) -> Result<()> {
    b.kubectl(&["delete", "networkpolicy", "--all"])?;
    b.apply(manifests::NO_EGRESS)?;
    let web = b.web()?;
    b.eventually("the policy", || b.kept_out("client", &web))?;
    b.gets("near", &web)
}

fn policy_gone(b: &Bed) -> Result<()> {
    b.kubectl(&["delete", "networkpolicy", "--all"])?;
    let web = b.web()?;
    b.eventually("open ports", || b.gets("client", &web))
}

fn agent(b: &Bed) -> Result<()> {
    b.prints(&["exec", "agent", "--", "ps"], "kubelet")?;
    b.prints(&["exec", "agent", "--", "ls", "/registry", "/plugins", "/cdi", "/own"], "/own:")?;
    let written = "echo 1 >/own/check && cat /own/check && rm /own/check";
    b.prints(&["exec", "agent", "--", "sh", "-c", written], "1")
}

/// What the agent writes lies in its node's part of the state directory, and nowhere else.
fn private_folders(b: &Bed) -> Result<()> {
    b.kubectl(&["exec", "agent", "--", "touch", "/cdi/check", "/own/check"])?;
    let dir = b.layout.node_dir(&node_name(b.state.nodes));
    for (inside, outside) in
        [(dir.join("cdi/check"), "/run/cdi/check"), (dir.join("stowage/check"), "/var/lib/stowage/check")]
    {
        ensure!(inside.exists(), "{} is not there", inside.display());
        ensure!(!std::path::Path::new(outside).exists(), "{outside} is on the machine itself");
    }
    b.kubectl(&["exec", "agent", "--", "rm", "/cdi/check", "/own/check"])?;
    process::must_live(b.layout, &node_name(b.state.nodes))
}

fn restricted(b: &Bed) -> Result<()> {
    let namespace = b.restricted();
    b.kubectl(&["create", "namespace", &namespace])?;
    b.kubectl(&["label", "namespace", &namespace, manifests::RESTRICTED_LABEL])?;
    b.account(&namespace)?;
    let apply = |text: &str| {
        let mut apply = kubectl::command(b.layout, b.state, &["apply", "-n", &namespace, "-f", "-"]);
        sh::output_with_input(&mut apply, text)
    };
    apply(manifests::MODEST_POD)?;
    b.kubectl(&["wait", "-n", &namespace, "--for=condition=Ready", "pod/modest", "--timeout=60s"])?;
    match apply(manifests::ROOT_POD) {
        Ok(_) => bail!("a pod that may run as root was admitted"),
        Err(e) if format!("{e:#}").contains("violates PodSecurity") => Ok(()),
        Err(e) => Err(e),
    }
}

fn admission_policy(b: &Bed) -> Result<()> {
    b.apply(&manifests::admission_policy(&b.namespace))?;
    let create = |name: &str, data: &str| b.kubectl(&["create", "configmap", name, data, "--dry-run=server"]);
    b.eventually("the refusal", || match create("refused", "--from-literal=refuse=1") {
        Ok(_) => bail!("it was admitted"),
        Err(e) if format!("{e:#}").contains("refused-by-the-check") => Ok(()),
        Err(e) => Err(e),
    })?;
    create("admitted", "--from-literal=other=1").map(drop)
}
