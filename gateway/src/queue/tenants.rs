//! What each tenant uses through this gateway; outlives changes of the world.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Instant;

use crate::queue::limits::{Limited, TenantUse, Wanted};
use crate::world::snapshot::Tenant;

/// All tenants that have sent something.
#[derive(Debug, Default)]
pub struct Tenants(RwLock<HashMap<Arc<str>, TenantHandle>>);

/// One tenant's use.
#[derive(Debug, Clone)]
pub struct TenantHandle(Arc<Mutex<TenantUse>>);

impl Tenants {
    pub fn get(&self, name: &Arc<str>) -> TenantHandle {
        if let Some(found) = self.0.read().unwrap_or_else(PoisonError::into_inner).get(name) {
            return found.clone();
        }
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let fresh = || TenantHandle(Arc::new(Mutex::new(TenantUse::new(Instant::now()))));
        all.entry(name.clone()).or_insert_with(fresh).clone()
    }

    /// Requests refused for a tenant's limits, by tenant.
    pub fn throttled(&self) -> Vec<(Arc<str>, u64)> {
        let all = self.0.read().unwrap_or_else(PoisonError::into_inner);
        all.iter().map(|(name, handle)| (name.clone(), handle.with(|tenant| tenant.throttled))).collect()
    }
}

impl TenantHandle {
    /// Takes a request within the tenant's limits.
    pub fn admit(&self, tenant: &Tenant, wanted: Wanted, gateways: u32) -> Result<(), Limited> {
        self.with(|used| used.admit(&tenant.limits, wanted, gateways, Instant::now()))
    }

    pub fn settle(&self, reserved: Wanted, used: f64) {
        self.with(|tenant| tenant.settle(reserved, used));
    }

    fn with<T>(&self, change: impl FnOnce(&mut TenantUse) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
