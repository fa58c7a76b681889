//! Which claim a process on a GPU belongs to: the claim of the pod in whose control group it runs.
//! Nothing that the process itself writes is believed.

use crate::device::process::Processes;
use crate::dra::checkpoint::Checkpoint;
use crate::usage::view::Attribution;

/// Looks into `/proc`. Needs the host's pid namespace.
#[derive(Debug, Clone, Default)]
pub struct KernelAttribution {
    pub processes: Processes,
}

impl Attribution for KernelAttribution {
    fn claim_of(&self, pid: u32, checkpoint: &Checkpoint) -> Option<String> {
        let pod = self.processes.pod_of(pid)?;
        checkpoint.of_pod(&pod).map(str::to_owned)
    }
}
