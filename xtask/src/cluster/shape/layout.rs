//! Every name, address and path of a cluster, from its state directory alone. Two clusters on one
//! machine differ in that directory, so they differ in all of these.

use anyhow::{Result, ensure};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// Addresses of Services. The same in every cluster: nothing outside its namespaces sees them.
pub const SERVICE_CIDR: &str = "10.96.0.0/16";
/// The `kubernetes` Service.
pub const API_SERVICE_IP: &str = "10.96.0.1";
/// The `kube-dns` Service.
pub const DNS_SERVICE_IP: &str = "10.96.0.10";
/// Loopback ports of one cluster: the API server's, then those of its forwarders.
pub const PORTS: u16 = 20;
/// Enough for a demo; the node's number is the last octet of its address.
pub const MAX_NODES: usize = 60;

/// A cluster's names and places.
#[derive(Clone, Debug)]
pub struct Layout {
    /// The state directory.
    pub state: PathBuf,
    /// Eight hexadecimal digits of its hash.
    pub id: String,
    seed: [u8; 4],
}

impl Layout {
    /// `state_dir`, or the one that belongs to the checkout.
    pub fn new(state_dir: Option<&Path>, checkout: &Path) -> Result<Self> {
        let state = match state_dir {
            Some(dir) => std::path::absolute(dir)?,
            None => PathBuf::from(format!("/var/tmp/stowage-{}", hex(&hash(checkout)))),
        };
        // A unix socket's path ends at 107 bytes, and containerd's is 40 bytes below this one.
        ensure!(
            state.as_os_str().len() <= 60,
            "the state directory {} is too long: unix sockets below it would exceed 107 bytes (choose one of at most 60)",
            state.display()
        );
        // Each node hides these behind its own.
        for hidden in ["/run", "/var/run", "/var/lib", "/etc", "/proc", "/sys"] {
            ensure!(
                !state.starts_with(hidden),
                "the state directory cannot lie in {hidden}: the nodes have a private one"
            );
        }
        let seed = hash(&state);
        Ok(Self { id: hex(&seed), seed, state })
    }

    /// The first of [`PORTS`] loopback ports: below the range from which the kernel takes its own.
    pub fn first_port(&self) -> u16 {
        12_000 + u16::from_be_bytes([self.seed[0], self.seed[1]]) % 1_000 * PORTS
    }

    /// The control plane, in the network of the nodes.
    pub fn control_ip(&self) -> String {
        self.node_net(1)
    }

    /// The node's own address; nodes count from 1.
    pub fn node_ip(&self, node: usize) -> String {
        self.node_net(10 + node)
    }

    fn node_net(&self, host: usize) -> String {
        format!("10.{}.0.{host}", 16 + self.seed[2] % 64)
    }

    /// The node's range of pod addresses.
    pub fn pod_cidr(&self, node: usize) -> String {
        format!("10.{}.{}.0/24", self.pod_octet(), 10 + node)
    }

    /// The range of all pods.
    pub fn pods_cidr(&self) -> String {
        format!("10.{}.0.0/16", self.pod_octet())
    }

    fn pod_octet(&self) -> u8 {
        128 + self.seed[3] % 100
    }

    /// The node's group in every cgroup hierarchy.
    pub fn cgroup(&self, node: &str) -> String {
        format!("stowage-{}-{node}", self.id)
    }

    /// Where a node keeps everything of its own.
    pub fn node_dir(&self, node: &str) -> PathBuf {
        self.state.join(node)
    }
    /// containerd's socket of a node; it can be used from outside the node's namespaces.
    pub fn containerd_socket(&self, node: &str) -> PathBuf {
        self.node_dir(node).join("run/containerd.sock")
    }
    /// Keys and certificates.
    pub fn pki(&self) -> PathBuf {
        self.state.join("pki")
    }
    /// One file per process.
    pub fn logs(&self) -> PathBuf {
        self.state.join("log")
    }
    /// The log of one process.
    pub fn log(&self, name: &str) -> PathBuf {
        self.logs().join(format!("{name}.log"))
    }
    /// One record per process that we started.
    pub fn procs(&self) -> PathBuf {
        self.state.join("procs")
    }
    /// A link to the network namespace of `cp` or of a node.
    pub fn netns(&self, name: &str) -> PathBuf {
        self.state.join("netns").join(name)
    }
    /// What clients on this machine use.
    pub fn kubeconfig(&self) -> PathBuf {
        self.state.join("kubeconfig")
    }
}

/// `node1`, `node2`, …
pub fn node_name(node: usize) -> String {
    format!("node{node}")
}

fn hash(path: &Path) -> [u8; 4] {
    let digest = Sha256::digest(path.as_os_str().as_encoded_bytes());
    [digest[0], digest[1], digest[2], digest[3]]
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(state: &str) -> Layout {
        Layout::new(Some(Path::new(state)), Path::new("/src")).unwrap()
    }

    #[test]
    fn one_directory_always_gives_the_same_cluster() {
        assert_eq!(of("/var/tmp/a").first_port(), of("/var/tmp/a").first_port());
        let checkout = || Layout::new(None, Path::new("/src/stowage")).unwrap();
        assert_eq!(checkout().state, checkout().state);
    }
    #[test]
    fn two_directories_give_two_clusters() {
        let (a, b) = (of("/var/tmp/a"), of("/var/tmp/b"));
        assert_ne!(a.id, b.id);
        assert_ne!(a.first_port(), b.first_port());
        assert_ne!(a.cgroup("node1"), b.cgroup("node1"));
    }
    #[test]
    fn ports_stay_below_the_kernels_own_range() {
        for n in 0..2_000 {
            let port = of(&format!("/var/tmp/{n}")).first_port();
            assert!((12_000..32_768 - PORTS).contains(&port), "{port}");
        }
    }
    #[test]
    fn every_pod_range_lies_in_the_range_of_all_pods() {
        let l = of("/var/tmp/a");
        let all = l.pods_cidr().replace(".0.0/16", ".");
        assert!((1..=MAX_NODES).all(|n| l.pod_cidr(n).starts_with(&all)));
    }
    #[test]
    fn a_long_or_hidden_state_directory_is_refused() {
        for (dir, why) in [("/run/x".to_string(), "/run"), (format!("/tmp/{}", "x".repeat(60)), "too long")] {
            let error = Layout::new(Some(Path::new(&dir)), Path::new("/src")).unwrap_err();
            assert!(error.to_string().contains(why), "{error}");
        }
    }
}
