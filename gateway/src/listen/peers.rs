//! The clients' connections: how many one address may have, and which must go when there are too many.
//!
//! A connection is a *guest* until one of its requests has shown a valid key. Guests are few, because anybody
//! can be one: when there are too many, the oldest goes, since it has had the longest time to show a key and a
//! client that works shows it at once. So an attacker with many addresses displaces its own connections first.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// Answers after which a guest's connection takes no more requests: each can stay behind unread.
const MAX_ANSWERED: u32 = 16;

/// Requests in flight with which a guest's connection ends at once when one of them is refused: each can keep
/// some 6 KiB of an answer that is not read.
const MAX_REFUSED_IN_FLIGHT: u32 = 4;

/// Bounds for connections.
#[derive(Debug, Clone, Copy)]
pub struct PeerLimits {
    /// Connections of one address (IPv6: of one /64 network).
    pub max_per_address: usize,
    /// Connections that have not shown a valid key.
    pub max_guests: usize,
}

/// All connections.
#[derive(Debug)]
pub struct Peers {
    limits: PeerLimits,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    by_address: HashMap<IpAddr, usize>,
    guests: usize,
    /// The oldest first; those that are no guests any more are left out when they are met.
    oldest: VecDeque<Weak<Peer>>,
}

/// One connection.
#[derive(Debug)]
pub struct Peer {
    peers: Arc<Peers>,
    address: IpAddr,
    owner: [u8; 16],
    began: Instant,
    guest: AtomicBool,
    answered: AtomicU32,
    in_flight: AtomicU32,
    /// A request has begun since it was last asked.
    request_began: AtomicBool,
    /// Milliseconds after `began` at which the last request ended.
    idle_since: AtomicU64,
    displaced: Notify,
    finish: Notify,
}

/// One request in flight on a connection.
#[derive(Debug)]
pub struct InFlight(Arc<Peer>);

impl Peers {
    pub fn new(limits: PeerLimits) -> Arc<Self> {
        Arc::new(Self { limits, state: Mutex::default() })
    }

    /// A new connection; `None` when its address has as many as it may.
    pub fn admit(self: &Arc<Self>, address: IpAddr) -> Option<Arc<Peer>> {
        let address = network(address);
        let mut state = self.lock();
        let of_address = state.by_address.entry(address).or_default();
        if *of_address >= self.limits.max_per_address {
            return None;
        }
        *of_address += 1;
        let peer = Arc::new(Peer {
            peers: self.clone(),
            address,
            owner: match address {
                IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
                IpAddr::V6(v6) => v6.octets(),
            },
            began: Instant::now(),
            guest: AtomicBool::new(true),
            answered: AtomicU32::new(0),
            in_flight: AtomicU32::new(0),
            request_began: AtomicBool::new(false),
            idle_since: AtomicU64::new(0),
            displaced: Notify::new(),
            finish: Notify::new(),
        });
        state.guests += 1;
        state.oldest.push_back(Arc::downgrade(&peer));
        let displaced = (state.guests > self.limits.max_guests).then(|| state.oldest_guest()).flatten();
        state.tidy();
        drop(state);
        if let Some(displaced) = displaced {
            displaced.displaced.notify_one();
        }
        Some(peer)
    }

    /// Connections that have not shown a valid key.
    pub fn guests(&self) -> usize {
        self.lock().guests
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Takes the oldest guest out of the queue; it still counts until its connection has ended.
    fn oldest_guest(&mut self) -> Option<Arc<Peer>> {
        while let Some(peer) = self.oldest.pop_front() {
            if let Some(peer) = peer.upgrade().filter(|peer| peer.is_guest()) {
                return Some(peer);
            }
        }
        None
    }

    /// Keeps the queue no longer than twice the number of guests.
    fn tidy(&mut self) {
        if self.oldest.len() > 2 * self.guests + 64 {
            self.oldest.retain(|peer| peer.upgrade().is_some_and(|peer| peer.is_guest()));
        }
    }
}

impl Peer {
    /// A name for what all connections of the address may hold together.
    pub fn owner(&self) -> &[u8] {
        &self.owner
    }

    /// A request begins.
    pub fn begin(self: &Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        self.request_began.store(true, Ordering::Relaxed);
        InFlight(self.clone())
    }

    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Whether a request has begun since the last call.
    pub fn take_request_began(&self) -> bool {
        self.request_began.swap(false, Ordering::Relaxed)
    }

    /// A request has shown a valid key.
    pub fn on_known(&self) {
        if self.guest.swap(false, Ordering::Relaxed) {
            self.peers.lock().guests -= 1;
        }
    }

    /// A request without a valid key has its answer.
    pub fn on_answered_guest(&self) {
        if !self.is_guest() {
            return;
        }
        if self.in_flight() > MAX_REFUSED_IN_FLIGHT {
            self.displaced.notify_one();
        }
        if self.answered.fetch_add(1, Ordering::Relaxed) + 1 == MAX_ANSWERED {
            self.finish.notify_one();
        }
    }

    /// Resolves when the connection has to end at once: there are too many guests, or it holds too much.
    pub async fn displaced(&self) {
        self.displaced.notified().await;
    }

    /// Resolves when the connection may take no more requests.
    pub async fn finished(&self) {
        self.finish.notified().await;
    }

    /// How long no request has been in flight.
    pub fn idle(&self) -> Duration {
        if self.in_flight() > 0 {
            return Duration::ZERO;
        }
        let since = Duration::from_millis(self.idle_since.load(Ordering::Relaxed));
        self.began.elapsed().saturating_sub(since)
    }

    fn is_guest(&self) -> bool {
        self.guest.load(Ordering::Relaxed)
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.idle_since.store(self.0.began.elapsed().as_millis() as u64, Ordering::Relaxed);
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let mut state = self.peers.lock();
        if *self.guest.get_mut() {
            state.guests -= 1;
        }
        if let Some(of_address) = state.by_address.get_mut(&self.address) {
            *of_address -= 1;
            if *of_address == 0 {
                state.by_address.remove(&self.address);
            }
        }
    }
}

/// What counts as one address: a host with IPv6 has a whole /64 network to itself.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() & !u128::from(u64::MAX)).into()),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    fn peers(max_per_address: usize, max_guests: usize) -> Arc<Peers> {
        Peers::new(PeerLimits { max_per_address, max_guests })
    }

    fn address(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    fn is_displaced(peer: &Peer) -> bool {
        peer.displaced().now_or_never().is_some()
    }

    fn is_finished(peer: &Peer) -> bool {
        peer.finished().now_or_never().is_some()
    }

    #[test]
    fn address_has_no_more_connections_than_it_may() {
        let peers = peers(2, 100);
        let held = [peers.admit(address(1)), peers.admit(address(1))];
        assert!(held.iter().all(Option::is_some));
        assert!(peers.admit(address(1)).is_none());
        assert!(peers.admit(address(2)).is_some(), "another address");
        drop(held);
        assert!(peers.admit(address(1)).is_some());
        assert_eq!(peers.lock().by_address.len(), 0, "nothing is kept of addresses without connections");
    }

    #[test]
    fn ipv6_addresses_of_one_network_are_one_address() {
        let peers = peers(1, 100);
        let _held = peers.admit("2001:db8::1".parse().unwrap());
        assert!(peers.admit("2001:db8::2".parse().unwrap()).is_none());
        assert!(peers.admit("2001:db8:0:1::1".parse().unwrap()).is_some());
        let _mapped = peers.admit("::ffff:10.0.0.1".parse().unwrap());
        assert!(peers.admit(address(1)).is_none());
    }

    #[test]
    fn oldest_guest_goes_when_there_are_too_many() {
        let peers = peers(100, 2);
        let held: Vec<_> = (0..3).map(|n| peers.admit(address(n)).unwrap()).collect();
        assert_eq!(held.iter().map(|peer| is_displaced(peer)).collect::<Vec<_>>(), [true, false, false]);
        assert_eq!(peers.guests(), 3, "it counts until its connection has ended");
    }

    #[test]
    fn connection_with_a_valid_key_stays() {
        let peers = peers(100, 2);
        let known = peers.admit(address(0)).unwrap();
        known.on_known();
        known.on_known();
        let guests: Vec<_> = (1..4).map(|n| peers.admit(address(n)).unwrap()).collect();
        assert!(!is_displaced(&known));
        assert!(is_displaced(&guests[0]));
        (0..100).for_each(|_| known.on_answered_guest());
        assert!(!is_finished(&known));
        drop((known, guests));
        assert_eq!(peers.guests(), 0);
    }

    #[test]
    fn guest_with_many_answers_takes_no_more_requests() {
        let peers = peers(100, 100);
        let guest = peers.admit(address(1)).unwrap();
        (1..MAX_ANSWERED).for_each(|_| guest.on_answered_guest());
        assert!(!is_finished(&guest));
        guest.on_answered_guest();
        assert!(is_finished(&guest));
    }

    #[test]
    fn guest_with_many_refused_requests_in_flight_ends_at_once() {
        let peers = peers(100, 100);
        let guest = peers.admit(address(1)).unwrap();
        let few: Vec<_> = (0..MAX_REFUSED_IN_FLIGHT).map(|_| guest.begin()).collect();
        guest.on_answered_guest();
        assert!(!is_displaced(&guest));
        let _more = guest.begin();
        guest.on_answered_guest();
        assert!(is_displaced(&guest));
        drop(few);
        let known = peers.admit(address(1)).unwrap();
        known.on_known();
        let _many: Vec<_> = (0..100).map(|_| known.begin()).collect();
        known.on_answered_guest();
        assert!(!is_displaced(&known), "a connection with a valid key stays");
    }

    #[test]
    fn queue_of_guests_does_not_grow_with_connections_that_ended() {
        let peers = peers(100, 100);
        (0..1000).for_each(|_| drop(peers.admit(address(1))));
        assert!(peers.lock().oldest.len() < 100);
    }
}
