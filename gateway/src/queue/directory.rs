//! The current world joined with the pools that serve it.
//!
//! A request takes one [`View`] and keeps it, so it sees one consistent state. [`Directory::apply`]
//! swaps in the next: pools live on across worlds (what waits in them keeps waiting), new replicas get a
//! monitor, and pools of deleted deployments turn their waiters away.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};

use crate::metrics::Metrics;
use crate::queue::client::EngineClient;
use crate::queue::monitor;
use crate::queue::pool::{Pool, PoolSettings};
use crate::world::facts::Facts;
use crate::world::snapshot::{Deployment, DeploymentKey, World};

/// What requests look things up in.
pub struct Directory {
    current: RwLock<Arc<View>>,
    /// Serialises `apply`.
    applying: Mutex<Vec<String>>,
    /// Pools of deployments that are not served any more. One lives while a request of it runs.
    closed: Mutex<Vec<Weak<Pool>>>,
    settings: PoolSettings,
    client: EngineClient,
    metrics: Arc<Metrics>,
}

/// One consistent state.
#[derive(Debug, Default)]
pub struct View {
    pub world: World,
    pools: HashMap<DeploymentKey, Arc<Pool>>,
}

impl Directory {
    pub fn new(settings: PoolSettings, client: EngineClient, metrics: Arc<Metrics>) -> Arc<Self> {
        let current = RwLock::new(Arc::new(View::default()));
        Arc::new(Self { current, applying: Mutex::default(), closed: Mutex::default(), settings, client, metrics })
    }

    pub fn view(&self) -> Arc<View> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes over what was observed. Must run inside the tokio runtime, where monitors live.
    pub fn apply(&self, facts: &Facts) {
        let mut known = self.applying.lock().unwrap_or_else(PoisonError::into_inner);
        let world = World::build(facts);
        for complaint in world.complaints.iter().filter(|complaint| !known.contains(complaint)) {
            tracing::warn!("{complaint}");
        }
        known.clone_from(&world.complaints);
        let before = self.view();
        let mut pools = HashMap::with_capacity(world.deployments.len());
        for deployment in &world.deployments {
            let old = before.pools.get(&deployment.key).cloned();
            let pool = old.unwrap_or_else(|| Pool::new(deployment.clone(), self.settings));
            for replica in pool.update(deployment.clone()) {
                tracing::info!(deployment = %pool.key, pod = replica.pod, address = %replica.address, "replica");
                monitor::start(&pool, &replica, self.client.clone());
            }
            pools.insert(deployment.key.clone(), pool);
        }
        for (_, pool) in before.pools.iter().filter(|(key, _)| !pools.contains_key(*key)) {
            pool.close();
            // Before the new view is there: what runs is counted at any moment.
            let mut closed = self.closed.lock().unwrap_or_else(PoisonError::into_inner);
            closed.retain(|pool| pool.strong_count() > 0);
            closed.push(Arc::downgrade(pool));
        }
        self.metrics.keep(world.deployments.iter().map(|d| (&*d.key.namespace, &*d.key.name, &*d.model)));
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(View { world, pools });
        self.metrics.world_changes.inc();
    }

    /// Sequences in flight on each pod that is out of routing for good, by its UID: those of deployments that are
    /// not served any more too. A request keeps its pool alive, so none is missed.
    pub fn draining(&self) -> BTreeMap<String, u32> {
        let view = self.view();
        let mut counts: BTreeMap<String, u32> = view.world.draining.iter().map(|uid| (uid.clone(), 0)).collect();
        if counts.is_empty() {
            return counts;
        }
        view.pools().for_each(|pool| pool.count_in_flight(&mut counts));
        let closed = self.closed.lock().unwrap_or_else(PoisonError::into_inner).clone();
        closed.iter().filter_map(Weak::upgrade).for_each(|pool| pool.count_in_flight(&mut counts));
        counts
    }
}

impl View {
    /// The pool of a deployment of this view.
    pub fn pool(&self, deployment: &Deployment) -> Option<&Arc<Pool>> {
        self.pools.get(&deployment.key)
    }

    pub fn pools(&self) -> impl Iterator<Item = &Arc<Pool>> {
        self.pools.values()
    }
}
