//! What it takes to make a change that would help: a command, and the right to run it.
//!
//! The planner names changes, without regard to who may make them. A command is shown as one's own next step only to an account that
//! the API server lets do it; everybody else reads whom to ask.

use serde::Serialize;
use stowage_crds::names::GROUP;
use stowage_planner::render::{bytes, gpus, price};
use stowage_planner::report::Change;
use stowage_planner::snapshot::DeploymentId;

/// One request to the API server, as RBAC names it. An empty namespace: of the whole cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Right {
    pub verb: &'static str,
    pub group: &'static str,
    pub resource: &'static str,
    pub subresource: &'static str,
    pub namespace: String,
    pub name: String,
}

/// How a change is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Remedy {
    /// Without it the step is another person's.
    pub needs: Right,
    pub step: String,
}

/// A step as one account reads it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Advice {
    /// Whether the account may take the step.
    pub own: bool,
    pub step: String,
}

impl Remedy {
    pub fn advice(self, own: bool) -> Advice {
        Advice { own, step: self.step }
    }
}

/// `None`: only time helps.
pub(crate) fn remedy(change: &Change, deployment: &DeploymentId) -> Option<Remedy> {
    let DeploymentId { namespace, name } = deployment;
    let edit = |what: String| {
        let needs = right("patch", GROUP, "inferencedeployments", namespace, name);
        Remedy { needs, step: format!("kubectl -n {namespace} edit infd {name} and {what}") }
    };
    let quota = |tenant: &str, what: String| {
        let needs = right("patch", GROUP, "tenantquotas", "", tenant);
        Remedy { needs, step: format!("kubectl edit tq {tenant} and {what}") }
    };
    let node = |node: &str, step: String| Remedy { needs: right("patch", "", "nodes", "", node), step };
    Some(match change {
        Change::WaitUntil { .. } => return None,
        Change::AddTenantQuota { namespace, .. } => Remedy {
            needs: right("create", GROUP, "tenantquotas", "", ""),
            step: format!(
                "create a TenantQuota that lists {namespace}, or kubectl edit tq NAME and add it to spec.namespaces"
            ),
        },
        Change::RaiseNominal { tenant, class, to_milli } => {
            quota(&tenant.0, format!("set nominalQuota of {class} to \"{}\"", gpus(*to_milli)))
        }
        Change::RaiseBorrowingLimit { tenant, class, to_milli } => {
            quota(&tenant.0, format!("set borrowingLimit of {class} to \"{}\"", gpus(*to_milli)))
        }
        Change::RaiseSpendLimit { tenant, to_micros } => {
            quota(&tenant.0, format!("set spend.perHour to \"{}\"", price(*to_micros)))
        }
        Change::ScaleIn { deployment: other, to, .. } => Remedy {
            needs: Right {
                subresource: "scale",
                ..right("patch", GROUP, "inferencedeployments", &other.namespace, &other.name)
            },
            step: format!("kubectl -n {} scale infd/{} --replicas={to}", other.namespace, other.name),
        },
        Change::LowerMaxReplicas { deployment: DeploymentId { namespace, name }, to, .. } => Remedy {
            needs: right("patch", GROUP, "inferencedeployments", namespace, name),
            step: format!("kubectl -n {namespace} edit infd {name} and set scaling.maxReplicas to {to}"),
        },
        Change::RemoveClaim { claim } => {
            let (namespace, name) = claim.split_once('/').unwrap_or(("", claim));
            Remedy {
                needs: right("delete", "resource.k8s.io", "resourceclaims", namespace, name),
                step: format!("kubectl -n {namespace} delete resourceclaim {name}"),
            }
        }
        Change::NodeFresh { node: on } => node(
            on,
            format!("kubectl -n stowage-node get pods -o wide shows the agent of {on}; its log has the reason"),
        ),
        Change::NodeReady { node: on } => node(on, format!("kubectl describe node {on} shows why it is not Ready")),
        Change::Uncordon { node: on } => node(on, format!("kubectl uncordon {on}")),
        Change::GpuHealthy { node: on, gpu } => {
            node(on, format!("reset or replace {gpu}; kubectl get gpunode {on} -o yaml has the reason"))
        }
        Change::Tolerate { key, .. } => edit(format!("add a toleration of {key} to spec.podTemplate.tolerations")),
        Change::LowerMemory { to_bytes } => {
            edit(format!("lower memory of its variant to {} or less", bytes(*to_bytes)))
        }
        Change::LowerCompute { to_percent } => edit(format!("lower compute of its variant to {to_percent} or less")),
        Change::SmallerProfile { profile } => edit(format!("set migProfile of its variant to {profile}")),
        Change::AllowSoftSharing { class } => Remedy {
            needs: right("patch", GROUP, "gpuclasses", "", class),
            step: format!(
                "kubectl patch gpuclass {class} --type=merge -p '{{\"spec\":{{\"allowSoftSharing\":true}}}}'"
            ),
        },
        Change::AddNode { like, count } => Remedy {
            needs: right("create", "", "nodes", "", ""),
            step: format!("add {count} more like {like} to the cluster"),
        },
    })
}

fn right(verb: &'static str, group: &'static str, resource: &'static str, namespace: &str, name: &str) -> Right {
    Right { verb, group, resource, subresource: "", namespace: namespace.to_owned(), name: name.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stowage_planner::snapshot::TenantId;

    fn check(change: Change, verb_and_resource: &str, step: &str) {
        let found = remedy(&change, &DeploymentId::new("team-a", "chat")).unwrap();
        let Right { verb, resource, subresource, namespace, name, .. } = &found.needs;
        assert_eq!(format!("{verb} {resource}{subresource} {namespace}/{name}"), verb_and_resource, "{change:?}");
        assert_eq!(found.step, step);
    }

    #[test]
    fn each_change_names_its_command_and_the_right_that_it_takes() {
        check(Change::Uncordon { node: "node1".into() }, "patch nodes /node1", "kubectl uncordon node1");
        check(
            Change::RaiseNominal { tenant: TenantId("a".into()), class: "h100".into(), to_milli: 1500 },
            "patch tenantquotas /a",
            "kubectl edit tq a and set nominalQuota of h100 to \"1.5\"",
        );
        check(
            Change::RaiseSpendLimit { tenant: TenantId("a".into()), to_micros: 12_490_001 },
            "patch tenantquotas /a",
            "kubectl edit tq a and set spend.perHour to \"12.50\"",
        );
        check(
            Change::ScaleIn { deployment: DeploymentId::new("team-b", "code"), owner: None, by: 1, to: 2 },
            "patch inferencedeploymentsscale team-b/code",
            "kubectl -n team-b scale infd/code --replicas=2",
        );
        check(
            Change::LowerMaxReplicas { deployment: DeploymentId::new("team-b", "code"), owner: None, by: 1, to: 2 },
            "patch inferencedeployments team-b/code",
            "kubectl -n team-b edit infd code and set scaling.maxReplicas to 2",
        );
        check(
            Change::LowerMemory { to_bytes: 2 << 30 },
            "patch inferencedeployments team-a/chat",
            "kubectl -n team-a edit infd chat and lower memory of its variant to 2 GiB or less",
        );
        check(
            Change::RemoveClaim { claim: "x/held".into() },
            "delete resourceclaims x/held",
            "kubectl -n x delete resourceclaim held",
        );
    }

    #[test]
    fn time_alone_takes_no_step() {
        assert_eq!(remedy(&Change::WaitUntil { at: 1 }, &DeploymentId::new("a", "b")), None);
    }
}
