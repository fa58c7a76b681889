//! Which nodes hold weights ahead of need.

use std::collections::BTreeSet;

use crate::common::parse;
use stowage_planner::preload_nodes;
use stowage_planner::snapshot::{Snapshot, Taint, TaintEffect};

/// Eight nodes with H100, one with L4.
fn fleet() -> Snapshot {
    let nodes: String = (1..=8).map(|n| format!("node n{n} gpu=h100*8 size=80Gi\n")).collect();
    parse(&format!(
        "class h100 soft\nclass l4 soft\n{nodes}node small gpu=l4*1 size=24Gi\ntenant a ns=a h100=64\n
        deployment a/chat want=0 ask=h100*1,2Gi,10\ndeployment a/code want=0 ask=h100*1,2Gi,10"
    ))
}

fn chosen(s: &Snapshot, deployment: usize, count: usize) -> Vec<String> {
    preload_nodes(s, &s.deployments[deployment], count).iter().map(|node| node.name.clone()).collect()
}

#[test]
fn more_nodes_are_the_same_ones_and_some_more() {
    let s = fleet();
    let all = chosen(&s, 0, 100);
    assert_eq!(all.len(), 8, "{all:?}");
    assert!(!all.contains(&"small".to_owned()));
    (0..=8).for_each(|count| assert_eq!(chosen(&s, 0, count), all[..count]));
}

#[test]
fn models_are_spread_over_nodes() {
    let mut s = fleet();
    let firsts: BTreeSet<String> = (0..40)
        .map(|n| {
            s.deployments[0].id.name = format!("m{n}");
            chosen(&s, 0, 1).remove(0)
        })
        .collect();
    assert!(firsts.len() >= 6, "{firsts:?}");
}

#[test]
fn nodes_that_have_it_come_first_and_nodes_that_could_not_take_a_replica_never() {
    let mut s = fleet();
    let order = chosen(&s, 0, 8);
    let at = |s: &Snapshot, name: &str| s.nodes.iter().position(|node| node.name == name).unwrap();
    let (last, first) = (at(&s, &order[7]), at(&s, &order[0]));
    s.deployments[0].model_key = stowage_planner::snapshot::ModelKey::image("m");
    let key = s.deployments[0].model_key.clone();
    s.nodes[last].cached_models.push(key);
    assert_eq!(chosen(&s, 0, 2), [order[7].clone(), order[0].clone()]);
    let taint = Taint { key: "k".into(), value: String::new(), effect: TaintEffect::NoSchedule };
    s.nodes[first].taints.push(taint);
    assert_eq!(chosen(&s, 0, 2), [order[7].clone(), order[1].clone()]);
    s.nodes[last].cordoned = true;
    assert_eq!(chosen(&s, 0, 8), order[1..7]);
}
