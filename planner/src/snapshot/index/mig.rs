//! GPUs in MIG mode as numbers: which memory slices are taken, and which devices could still be cut.

use std::sync::Arc;

use crate::snapshot::index::Index;
use crate::snapshot::{Gpu, MigProfile, Promise};

/// Memory slices and distinct profiles up to which each has a bit of its own.
pub(crate) const BITS: u32 = 63;

/// The devices that a GPU can be cut into.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    kinds: Vec<Kind>,
}

#[derive(Debug, PartialEq, Eq)]
struct Kind {
    name: String,
    /// Of the profile, among all of the index.
    number: u32,
    /// First memory slices, each with a bit for every slice that a device there takes.
    places: Vec<(u32, u64)>,
}

/// A GPU in MIG mode.
#[derive(Clone, Debug)]
pub(crate) struct MigRow {
    pub layout: Arc<Layout>,
    /// Number of the layout, for comparison.
    pub number: usize,
    /// A bit for each memory slice that is promised.
    pub taken: u64,
}

impl PartialEq for MigRow {
    fn eq(&self, other: &Self) -> bool {
        (self.number, self.taken) == (other.number, other.taken)
    }
}

impl Eq for MigRow {}

impl Layout {
    /// Of these profiles, each with its number. Places beyond the last bit are left out: no GPU has so many.
    pub fn new<'a>(profiles: impl Iterator<Item = (u32, &'a MigProfile)>) -> Self {
        let kind = |(number, p): (u32, &MigProfile)| {
            let mut places: Vec<(u32, u64)> = p.starts.iter().filter_map(|s| Some((*s, mask(*s, p.slices)?))).collect();
            places.sort_unstable();
            places.dedup();
            Kind { name: p.name.clone(), number, places }
        };
        Layout { kinds: profiles.map(kind).collect() }
    }

    fn kind(&self, profile: &str) -> Option<&Kind> {
        self.kinds.iter().find(|k| k.name == profile)
    }

    /// Names of the profiles.
    pub fn profiles(&self) -> impl Iterator<Item = &String> {
        self.kinds.iter().map(|k| &k.name)
    }

    /// Whether such a device can be cut from an empty GPU.
    pub fn offers(&self, profile: &str) -> bool {
        self.kind(profile).is_some_and(|k| !k.places.is_empty())
    }

    /// Where such a device could begin, and what it would take.
    pub fn places(&self, profile: &str, taken: u64) -> impl Iterator<Item = (u32, u64)> {
        let places = self.kind(profile).map(|k| k.places.as_slice()).unwrap_or_default();
        places.iter().copied().filter(move |(_, mask)| mask & taken == 0)
    }

    /// A bit for each profile of which one more device could be cut.
    pub fn fits(&self, taken: u64) -> u64 {
        let fits = self.kinds.iter().filter(|k| k.places.iter().any(|(_, mask)| mask & taken == 0));
        fits.fold(0, |bits, k| bits | 1 << k.number.min(BITS))
    }

    /// Memory slices of all devices that could be cut, each for itself: how much can still become of the GPU.
    pub fn ways(&self, taken: u64) -> u32 {
        let free = self.kinds.iter().flat_map(|k| &k.places).filter(|(_, mask)| mask & taken == 0);
        free.map(|(_, mask)| mask.count_ones()).sum()
    }

    /// Memory slices that some device can have.
    fn slices(&self) -> u64 {
        self.kinds.iter().flat_map(|k| &k.places).fold(0, |all, (_, mask)| all | mask)
    }
}

impl Index {
    /// A GPU in MIG mode of which nothing is taken.
    pub(super) fn layout(&mut self, profiles: &Vec<MigProfile>) -> MigRow {
        if !self.layouts.contains_key(profiles) {
            let numbers: Vec<u32> = profiles.iter().map(|p| self.profiles.number(&p.name) as u32).collect();
            let layout = Arc::new(Layout::new(numbers.into_iter().zip(profiles)));
            self.layouts.insert(profiles.clone(), (self.layouts.len(), layout));
        }
        let (number, layout) = &self.layouts[profiles];
        MigRow { layout: layout.clone(), number: *number, taken: 0 }
    }

    /// Number of a MIG profile; `None`: no GPU has such a device.
    pub fn profile(&self, name: &str) -> Option<u32> {
        self.profiles.numbers.get(name).map(|n| *n as u32)
    }
}

impl MigRow {
    /// Memory slices that are not promised.
    pub fn free_slices(&self) -> u32 {
        (self.layout.slices() & !self.taken).count_ones()
    }
}

/// The profile of this name that the GPU can be cut into.
pub(crate) fn profile<'a>(gpu: &'a Gpu, name: &str) -> Option<&'a MigProfile> {
    gpu.mig.iter().flatten().find(|p| p.name == name)
}

/// What a promise takes of a GPU in MIG mode: all of it, if it is no device that the GPU has now.
pub(super) fn taken_by(gpu: &Gpu, promise: &Promise) -> u64 {
    let device = promise.mig.as_ref().and_then(|d| mask(d.start, profile(gpu, &d.profile)?.slices));
    device.unwrap_or(u64::MAX)
}

/// Bits of the memory slices from `start` on; `None`: beyond the last bit, or none.
fn mask(start: u32, slices: u32) -> Option<u64> {
    let end = start.checked_add(slices).filter(|end| slices > 0 && *end <= BITS)?;
    Some((1u64 << end) - (1u64 << start))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout() -> Layout {
        let profile = |name: &str, slices, starts: &[u32]| MigProfile {
            name: name.to_owned(),
            memory_bytes: 1,
            sm_percent: 1,
            slices,
            starts: starts.to_vec(),
        };
        let profiles =
            [profile("1g", 1, &[0, 1, 2, 3, 4, 5, 6]), profile("2g", 2, &[0, 2, 4]), profile("3g", 4, &[0, 4])];
        Layout::new((0..).zip(&profiles))
    }

    #[test]
    fn device_fits_where_its_memory_slices_are_free() {
        let starts = |profile, taken| layout().places(profile, taken).map(|(at, _)| at).collect::<Vec<_>>();
        assert_eq!(starts("3g", 0), [0, 4]);
        assert_eq!(starts("3g", 0b1000), [4]);
        assert_eq!(starts("2g", 0b0001_0001), [2]);
        assert_eq!(starts("2g", 0b0001_0101), [0u32; 0]);
        assert_eq!(starts("7g", 0), [0u32; 0]);
        assert_eq!(layout().fits(0b0001_0001), 0b011);
    }

    #[test]
    fn cut_beside_another_leaves_more_ways_than_one_in_the_middle() {
        assert!(layout().ways(0b0000_0011) > layout().ways(0b0000_0101));
    }

    #[test]
    fn absurd_placement_is_none() {
        assert_eq!(mask(u32::MAX, 1), None);
        assert_eq!(mask(0, 0), None);
        assert_eq!(mask(0, 64), None);
        assert_eq!(mask(62, 1), Some(1 << 62));
    }
}
