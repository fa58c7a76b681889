//! Over which domains replicas are spread.

use crate::common;
use stowage_planner::plan;
use stowage_planner::plan::Action;
use stowage_planner::snapshot::Policy;

/// Replicas on x1 and x2, of six that may differ by two.
fn on(nodes: &str, select: &str) -> (usize, usize) {
    let mut s = common::parse(&format!(
        "class h soft\nnode x1 gpu=h*8 label=pool:x\nnode x2 gpu=h*8 label=pool:x\n{nodes}\ntenant a ns=a h=64\n\
         deployment a/chat want=6 ask=h*1,2Gi,10 spread=host:2 {select}"
    ));
    for node in &mut s.nodes {
        let name = node.name.clone();
        node.labels.insert("host".to_owned(), name);
    }
    let (plan, _) = plan(&s, &Policy::default(), common::NOW);
    let count = |name: &str| {
        let there = |a: &&Action| matches!(a, Action::Create { placement, .. } if placement.node == name);
        plan.actions.iter().filter(there).count()
    };
    (count("x1"), count("x2"))
}

#[test]
fn domains_that_selector_or_taints_exclude_do_not_count() {
    let alone = on("", "select=pool:x");
    assert_eq!(alone, (4, 2), "packed as far as the skew allows");
    assert_eq!(on("node y1 gpu=h*8 label=pool:y", "select=pool:x"), alone);
    assert_eq!(on("node y1 gpu=h*8 label=pool:x taint=k", "select=pool:x"), alone);
}
