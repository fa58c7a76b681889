//! What the chart installs, from its committed rendering: every right is on a list that people read.
//!
//! `UPDATE_GOLDEN=1 cargo test -p stowage-crds chart` writes both golden files; it needs Helm, found as
//! `$STOWAGE_HELM` or on the PATH. Without Helm the committed rendering is judged as it is.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

use crate::fixtures::{documents, judge, repository};

fn golden(name: &str) -> PathBuf {
    repository().join("charts/golden").join(name)
}

fn updating() -> bool {
    std::env::var_os("UPDATE_GOLDEN").is_some()
}

/// Compares with the golden file, or writes it.
fn expect(name: &str, found: &str) {
    if updating() {
        std::fs::write(golden(name), found).unwrap();
    }
    let wanted = std::fs::read_to_string(golden(name)).unwrap_or_default();
    assert!(
        wanted == found,
        "charts/golden/{name} differs; UPDATE_GOLDEN=1 cargo test -p stowage-crds chart, and read the diff"
    );
}

/// The chart as Helm renders it, or what Helm has against it; `None` where there is no Helm.
fn rendered(set: &[&str]) -> Option<Result<String, String>> {
    let helm = std::env::var_os("STOWAGE_HELM").unwrap_or_else(|| "helm".into());
    let chart = repository().join("charts/stowage");
    let values = ["--set", "image.tag=dev", "--set", "nodeAgent.simulated.enabled=true"];
    let set = set.iter().flat_map(|value| ["--set", value]);
    let output = Command::new(helm).args(["template", "stowage"]).arg(chart).args(values).args(set).output().ok()?;
    let (out, error) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8_lossy(&output.stderr));
    Some(if output.status.success() { Ok(out) } else { Err(error.into_owned()) })
}

fn objects() -> Vec<Value> {
    documents(&golden("stowage.yaml"))
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn words(value: &Value) -> String {
    let words: Vec<&str> = value.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    words.join(",")
}

#[test]
fn the_committed_chart_rendering_is_current() {
    match rendered(&[]) {
        Some(found) => expect("stowage.yaml", &found.unwrap()),
        None => println!("no Helm here: the committed rendering was not compared"),
    }
}

#[test]
fn tracing_changes_the_gateways_environment_and_egress_and_nothing_else() {
    const ENDPOINT: &str = "tracing.endpoint=http://otel.monitoring:4318";
    const TO: &str = "tracing.to[0].podSelector.matchLabels.app=otel";
    let Some(off) = rendered(&[]) else { return println!("no Helm here: nothing was rendered") };
    let (off, lines) = (off.unwrap(), |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>());
    let refused = rendered(&[ENDPOINT]).unwrap().unwrap_err();
    assert!(refused.contains("tracing.endpoint needs tracing.to"), "{refused}");
    for bad in ["tracing.endpoint=otel:4318", "tracing.ratio=1.5", "tracing.protocol=grpc"] {
        let refused = rendered(&[bad, TO]).unwrap().unwrap_err();
        assert!(refused.contains("tracing"), "{bad}: {refused}");
    }
    let (off, on) = (lines(&off), lines(&rendered(&[ENDPOINT, TO, "tracing.ratio=0.25"]).unwrap().unwrap()));
    let added: Vec<_> = on.iter().filter(|line| !off.contains(line)).map(|line| line.trim()).collect();
    let wanted = [
        "# A rule without peers would admit everything. Engines get none: gateways measure their part.",
        "matchLabels:",
        "app: otel",
        "ports:",
        "- {port: 4318, protocol: TCP}",
        r#"- {name: OTEL_EXPORTER_OTLP_ENDPOINT, value: "http://otel.monitoring:4318"}"#,
        r#"- {name: OTEL_TRACES_SAMPLER_ARG, value: "0.25"}"#,
    ];
    assert_eq!(added, wanted);
    assert_eq!(on.len(), off.len() + 9, "and two lines that are there elsewhere too");
}

#[test]
fn every_right_in_the_chart_is_on_the_list() {
    let mut lines = Vec::new();
    for object in objects() {
        let name = text(&object, "/metadata/name");
        let at = text(&object, "/metadata/namespace");
        let at = if at.is_empty() { "cluster" } else { at };
        match text(&object, "/kind") {
            kind @ ("Role" | "ClusterRole") => {
                for rule in object["rules"].as_array().unwrap() {
                    let only = words(&rule["resourceNames"]);
                    let only = if only.is_empty() { only } else { format!(" named {only}") };
                    let groups = words(&rule["apiGroups"]);
                    let groups = if groups.is_empty() { "core".to_owned() } else { groups };
                    lines.push(format!(
                        "{kind} {name} ({at}): {groups} {}{only}: {}",
                        words(&rule["resources"]),
                        words(&rule["verbs"])
                    ));
                }
            }
            kind @ ("RoleBinding" | "ClusterRoleBinding") => {
                let subject = &object["subjects"][0];
                assert_eq!(object["subjects"].as_array().unwrap().len(), 1, "{name}");
                let who = format!("{}/{}", text(subject, "/namespace"), text(subject, "/name"));
                lines.push(format!("{kind} {name} ({at}): {} → {who}", text(&object, "/roleRef/name")));
            }
            _ => {}
        }
    }
    lines.sort();
    expect("rbac.txt", &(lines.join("\n") + "\n"));
}

#[test]
fn no_right_in_the_chart_is_a_wildcard_and_gateways_alone_read_secrets() {
    let roles = objects().into_iter().filter(|object| text(object, "/kind").ends_with("Role"));
    let mut holders = BTreeSet::new();
    for role in roles {
        for rule in role["rules"].as_array().unwrap() {
            for field in ["apiGroups", "resources", "verbs"] {
                assert!(!words(&rule[field]).contains('*'), "{role}");
            }
            assert!(rule["nonResourceURLs"].is_null(), "{role}");
            let verbs = words(&rule["verbs"]);
            for verb in ["escalate", "bind", "impersonate"] {
                assert!(!verbs.split(',').any(|found| found == verb), "{role}");
            }
            if words(&rule["resources"]).split(',').any(|resource| resource == "secrets") {
                holders.insert(format!(
                    "{} {} {}: {verbs}",
                    text(&role, "/kind"),
                    text(&role, "/metadata/name"),
                    text(&role, "/metadata/namespace")
                ));
            }
        }
    }
    let expected =
        ["Role stowage-gateway stowage-system: get,list,watch", "Role stowage-operator stowage-system: create"];
    assert_eq!(holders.into_iter().collect::<Vec<_>>(), expected);
}

#[test]
fn everything_but_the_agent_is_restricted() {
    let mut seen = 0;
    for object in objects() {
        let pod = match text(&object, "/kind") {
            "Deployment" => &object["spec"]["template"]["spec"],
            "Pod" => &object["spec"],
            "DaemonSet" => {
                assert_eq!(text(&object, "/metadata/namespace"), "stowage-node");
                assert!(object.pointer("/spec/template/spec/hostNetwork").is_none());
                continue;
            }
            _ => continue,
        };
        seen += 1;
        assert_eq!(pod["securityContext"]["runAsNonRoot"], true, "{object}");
        assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault", "{object}");
        for field in ["hostPID", "hostIPC", "hostNetwork"] {
            assert!(pod[field].is_null(), "{object}");
        }
        let volumes = pod["volumes"].as_array().into_iter().flatten();
        assert!(volumes.clone().all(|volume| volume["hostPath"].is_null()), "{object}");
        for container in pod["containers"].as_array().unwrap() {
            let security = &container["securityContext"];
            assert_eq!(security["allowPrivilegeEscalation"], false, "{object}");
            assert_eq!(security["readOnlyRootFilesystem"], true, "{object}");
            assert_eq!(words(&security["capabilities"]["drop"]), "ALL", "{object}");
            assert!(container["resources"]["requests"]["cpu"].is_string(), "{object}");
        }
    }
    assert_eq!(seen, 3, "operator, gateway and the test pod");
}

#[test]
fn objects_of_ours_in_the_chart_are_accepted() {
    let judged: Vec<_> = objects().iter().filter_map(judge).collect();
    assert!(judged.len() >= 4 && judged.iter().all(Result::is_ok), "{judged:#?}");
}
