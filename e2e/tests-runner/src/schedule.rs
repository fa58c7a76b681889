//! Which tests run beside each other: from what each needs for itself to which one begins next. Tests share the
//! cluster, each in namespaces of its own; what a test changes for all others it must have to itself.

/// What a test must have to itself while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// Nothing: its namespaces are enough.
    Nothing,
    /// A node on which no other test has replicas: its GPUs, its disk, its agent.
    Node,
    /// The agents and ResourceSlices of the other nodes: no second test ends or deletes them.
    Agents,
    /// The cluster: nothing runs beside it, and nothing of earlier tests is left.
    Cluster,
}

/// How much may run at one time.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// Tests beside each other.
    pub tests: usize,
    /// Nodes that are reserved for tests that need one.
    pub nodes: usize,
}

/// The position, in `waiting`, of the test to begin now; `None` when none may begin before another one ends.
/// Tests that need a node or the agents begin early, because they wait for each other; those that need the
/// cluster come last, in their order.
pub fn next(waiting: &[Needs], running: &[Needs], room: Room) -> Option<usize> {
    if running.contains(&Needs::Cluster) {
        return None;
    }
    let held = |needs: Needs| running.iter().filter(|r| **r == needs).count();
    let fits = |needs: Needs| match needs {
        // Without reserved nodes such a test begins, and fails with the reason.
        Needs::Node => held(needs) < room.nodes.max(1),
        Needs::Agents => held(needs) == 0,
        Needs::Nothing => true,
        Needs::Cluster => false,
    };
    let first = |needs: Needs| waiting.iter().position(|w| *w == needs && fits(needs));
    let shared = [Needs::Node, Needs::Agents, Needs::Nothing].into_iter().find_map(first);
    match shared {
        Some(position) => (running.len() < room.tests).then_some(position),
        None if running.is_empty() => waiting.iter().position(|w| *w == Needs::Cluster),
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::Needs::{Agents, Cluster, Node, Nothing};
    use super::*;

    #[track_caller]
    fn check(waiting: &[Needs], running: &[Needs], want: Option<usize>) {
        assert_eq!(next(waiting, running, Room { tests: 3, nodes: 1 }), want);
    }

    #[test]
    fn tests_that_need_nothing_run_beside_each_other_up_to_the_limit() {
        check(&[Nothing], &[Nothing, Nothing], Some(0));
        check(&[Nothing], &[Nothing, Nothing, Nothing], None);
    }
    #[test]
    fn one_test_at_a_time_has_the_node_and_it_begins_first() {
        check(&[Nothing, Node], &[], Some(1));
        check(&[Node, Nothing], &[Node], Some(1));
        check(&[Node], &[Node], None);
    }
    #[test]
    fn one_test_at_a_time_changes_the_agents() {
        check(&[Agents, Nothing], &[Agents], Some(1));
    }
    #[test]
    fn a_test_that_needs_the_cluster_waits_until_all_others_have_ended() {
        check(&[Cluster, Nothing], &[], Some(1));
        check(&[Cluster], &[Nothing], None);
        check(&[Cluster, Cluster], &[], Some(0));
    }
    #[test]
    fn nothing_begins_beside_a_test_that_needs_the_cluster() {
        check(&[Nothing, Node], &[Cluster], None);
    }
    #[test]
    fn without_reserved_nodes_a_test_that_needs_one_begins_all_the_same() {
        assert_eq!(next(&[Node], &[], Room { tests: 3, nodes: 0 }), Some(0));
    }
    #[test]
    fn nothing_begins_when_nothing_waits() {
        check(&[], &[], None);
    }
}
