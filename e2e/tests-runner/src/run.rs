//! Runs the tests in the order of `schedule`, prints a line for each, and counts.

use std::time::{Duration, Instant};

use anyhow::Context;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::task::JoinSet;

use crate::schedule::{self, Needs, Room};
use crate::tests::Test;
use crate::tools::parts;
use crate::tools::world::{Env, World};

/// Tests that ran, by outcome; what could not be cleaned up counts as failed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Count {
    pub passed: usize,
    pub failed: usize,
}

/// Tests whose removal is under way.
type Leaving = JoinSet<anyhow::Result<()>>;

/// A test that has ended.
struct Ended {
    needs: Needs,
    node: Option<String>,
    /// What is to be removed yet.
    world: Option<World>,
    passed: bool,
}

/// Runs all of them, `beside` at a time.
pub async fn all(env: &Env, mut waiting: Vec<Test>, beside: usize) -> Count {
    let (mut count, mut leaving, mut running) = (Count::default(), Leaving::new(), Vec::new());
    let mut free = env.reserved.clone();
    let room = Room { tests: beside, nodes: free.len() };
    let mut tests = FuturesUnordered::new();
    loop {
        let needs: Vec<Needs> = waiting.iter().map(|t| t.needs).collect();
        if let Some(position) = schedule::next(&needs, &running, room) {
            let test = waiting.remove(position);
            if test.needs == Needs::Cluster {
                count.failed += left(&mut leaving).await;
            }
            let node = match test.needs {
                Needs::Node | Needs::Cluster => free.pop(),
                Needs::Nothing | Needs::Agents => None,
            };
            running.push(test.needs);
            tests.push(one(World::new(env.clone(), test.name, node.clone()), test, node));
            continue;
        }
        let Some(ended) = tests.next().await else { break };
        if let Some(position) = running.iter().position(|needs| *needs == ended.needs) {
            running.remove(position);
        }
        free.extend(ended.node);
        count.passed += usize::from(ended.passed);
        count.failed += usize::from(!ended.passed);
        if let Some(world) = ended.world {
            leaving.spawn(async move { remove(&world).await });
        }
    }
    count.failed += left(&mut leaving).await;
    count
}

/// Waits until nothing of earlier tests is left; how many could not be removed.
async fn left(leaving: &mut Leaving) -> usize {
    let mut failed = 0;
    while let Some(removed) = leaving.join_next().await {
        if let Err(why) = removed.map_err(anyhow::Error::from).flatten() {
            failed += 1;
            println!("FAIL {why:#}");
        }
    }
    failed
}

async fn remove(world: &World) -> anyhow::Result<()> {
    world.remove().await.with_context(|| format!("clean up after {}", world.test))
}

/// One test, from its first action to its line.
async fn one(world: World, test: Test, node: Option<String>) -> Ended {
    let started = Instant::now();
    let mut result = body(&world, &test).await;
    // Replicas drain for some seconds. The next test need not wait for that, unless it is to have the same node.
    let world = if test.needs == Needs::Node {
        let removed = remove(&world).await;
        result = result.and(removed);
        None
    } else {
        Some(world)
    };
    match &result {
        Ok(()) => println!("ok {} {:.1}", test.name, started.elapsed().as_secs_f64()),
        Err(why) => println!("FAIL {}: {why:#}", test.name),
    }
    Ended { needs: test.needs, node, world, passed: result.is_ok() }
}

async fn body(world: &World, test: &Test) -> anyhow::Result<()> {
    let result = match tokio::time::timeout(Duration::from_secs(test.limit_seconds), (test.body)(world.clone())).await {
        Ok(result) => result,
        Err(_) => Err(anyhow::anyhow!("did not end within {} s", test.limit_seconds)),
    };
    if result.is_err() {
        world.print_evidence().await;
    }
    if world.left_without_operators() {
        parts::operators(world, 2).await.context("bring the cluster's operators back")?;
    }
    result
}
