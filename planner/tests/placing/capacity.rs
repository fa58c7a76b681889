//! For which replicas the cluster is asked for another node, and when for none.

use stowage_planner::check::check;
use stowage_planner::plan;
use stowage_planner::report::Outcome;
use stowage_planner::snapshot::*;

/// Two replicas wait for a whole GPU each, and have for five minutes.
const BASE: &str = "
    class h soft
    node n1 gpu=h*1
    tenant a ns=a h=8
    deployment a/first want=1 ask=h*1
    replica a/first 0 n1 0 ready
    deployment a/more want=2 ask=h*1
    waiting a/more 0 for=300000
";

/// Slot and place of each ask, as `deployment#index node gpu`.
fn asks(text: &str, most: u32) -> Vec<String> {
    let s = crate::common::parse(text);
    let policy = Policy { max_capacity_pods: most, ..Policy::default() };
    let (made, report) = plan(&s, &policy, crate::common::NOW);
    assert_eq!(check(&s, &made), [], "{text}");
    let mut all = Vec::new();
    for d in &report.deployments {
        assert!(d.capacity.is_empty() || d.outcome == Outcome::WaitingForGPU, "{text}");
        for ask in &d.capacity {
            let Placement { node, gpus, .. } = &ask.like;
            let known = s.nodes.iter().find(|n| &n.name == node).unwrap();
            assert!(gpus.iter().all(|g| known.gpus.iter().any(|k| k.uuid == g.uuid)), "{ask:?}");
            all.push(format!("{}#{} {node} {}", d.deployment, ask.index, gpus.len()));
        }
    }
    all
}

fn with(old: &str, new: &str) -> String {
    assert!(BASE.contains(old), "{old}");
    BASE.replace(old, new)
}

#[test]
fn node_is_asked_for_where_one_more_would_help_and_nothing_else_does() {
    let both: &[&str] = &["a/more#0 n1 1", "a/more#1 n1 1"];
    let leaving = with("n1 0 ready", "n1 0 draining").replace("first want=1", "first want=0");
    for (why, text, expect) in [
        ("as it is", BASE.to_owned(), both),
        ("quota allows one", with("tenant a ns=a h=8", "tenant a ns=a h=2"), &both[..1]),
        ("quota allows none", with("tenant a ns=a h=8", "tenant a ns=a h=1"), &[]),
        ("the wait has just begun", with("for=300000", "for=9999"), &[]),
        ("long enough to the millisecond", with("for=300000", "for=10000"), both),
        ("no wait is known", with("    waiting a/more 0 for=300000\n", ""), &[]),
        ("larger than any GPU", with("a/more want=2 ask=h*1", "a/more want=2 ask=h*1,999Gi,10"), &[]),
        ("more GPUs than a node has", with("a/more want=2 ask=h*1", "a/more want=2 ask=h*2"), &[]),
        ("no class of that name", with("a/more want=2 ask=h*1", "a/more want=2 ask=z*1"), &[]),
        ("time alone makes room for one", leaving.clone(), &[]),
        ("and the other has waited", leaving.replace("a/more 0 for", "a/more 1 for"), &both[1..]),
        ("a node is silent", with("node n1 gpu=h*1", "node n1 gpu=h*1\n    node n2 gpu=h*1 stale=100000"), both),
        (
            "a node is silent, and not for long",
            with("node n1 gpu=h*1", "node n1 gpu=h*1\n    node n2 gpu=h*1 stale=100000")
                .replace("for=300000", "for=299999"),
            &[],
        ),
        (
            "only the node of that name will do",
            with("node n1 gpu=h*1", "node n1 gpu=h*1 label=kubernetes.io/hostname:n1")
                .replace("more want=2 ask=h*1", "more want=2 ask=h*1 select=kubernetes.io/hostname:n1"),
            &[],
        ),
        ("a node has room", with("node n1 gpu=h*1", "node n1 gpu=h*1\n    node n2 gpu=h*2"), &[]),
    ] {
        assert_eq!(asks(&text, 8), expect, "{why}");
    }
}

#[test]
fn as_many_are_asked_for_as_may_be_the_most_important_first_and_none_by_default() {
    let more = "
    deployment a/later want=1 ask=h*1 prio=10
    waiting a/later 0 for=20000
    deployment a/longest want=1 ask=h*1
    waiting a/longest 0 for=400000
";
    let text = format!("{BASE}{more}");
    assert_eq!(asks(&text, 1), ["a/later#0 n1 1"]);
    assert_eq!(asks(&text, 2), ["a/later#0 n1 1", "a/longest#0 n1 1"]);
    assert_eq!(asks(&text, 9).len(), 4);
    assert_eq!(asks(&text, 0), [""; 0]);
    assert_eq!(Policy::default().max_capacity_pods, 0);
}

#[test]
fn replicas_that_fit_on_one_new_node_are_asked_for_together() {
    let text = with("node n1 gpu=h*1", "node n1 gpu=h*2\n    foreign n1 1 80Gi 100");
    assert_eq!(asks(&text, 8), ["a/more#0 n1 1", "a/more#1 n1 1"]);
}

#[test]
fn node_that_is_asked_for_is_like_one_that_could_take_the_replica() {
    let nodes = "node n0 gpu=h*1 label=pool:other\n    node n1 gpu=h*1 label=pool:models\n    node n2 gpu=h*2 label=pool:models";
    let text =
        with("node n1 gpu=h*1", nodes).replace("a/more want=2 ask=h*1", "a/more want=2 ask=h*2 select=pool:models");
    let full = text.replace("    deployment a/first", "    foreign n2 0 1Gi 1\n    deployment a/first");
    assert_eq!(asks(&full, 8), ["a/more#0 n2 2", "a/more#1 n2 2"]);
}

#[test]
fn what_no_node_helps_and_what_one_tenant_asks_hold_up_no_other() {
    let many = "
    tenant b ns=b h=8
    deployment a/hopeless want=9 ask=h*3
    waiting a/hopeless 0 for=900000
    deployment b/one want=1 ask=h*1
    waiting b/one 0 for=20000
";
    assert_eq!(asks(&format!("{BASE}{many}"), 1), ["b/one#0 n1 1"]);
    assert_eq!(asks(&format!("{BASE}{many}"), 2), ["a/more#0 n1 1", "b/one#0 n1 1"]);
}
