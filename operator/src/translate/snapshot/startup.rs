//! Why an engine does not start: one line for the deployment's condition, from the pod's containers.

use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodStatus};
use stowage_crds::conditions::reasons;
use stowage_crds::names::{ENGINE_CONTAINER, EXIT_MODEL_REFUSED, WAIT_CONTAINER};

/// Longest line that goes into a condition.
const MAX_LINE: usize = 400;

/// How the start of a pod goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Startup {
    /// No problem is known.
    Fine,
    /// `reason` is one of the conditions' reasons.
    Trouble { reason: &'static str, message: String, restarts: i32, model_refused: bool },
}

/// Reads the engine's container status, and that of the model's image volume with it.
pub fn startup(pod: &Pod) -> Startup {
    match container(pod, |status| &status.init_container_statuses, WAIT_CONTAINER).map(of_container) {
        Some(trouble @ Startup::Trouble { .. }) => trouble,
        _ => container(pod, |status| &status.container_statuses, ENGINE_CONTAINER).map_or(Startup::Fine, of_container),
    }
}

fn of_container(status: &ContainerStatus) -> Startup {
    let waiting = status.state.as_ref().and_then(|state| state.waiting.as_ref());
    let reason = waiting.and_then(|waiting| waiting.reason.as_deref()).unwrap_or_default();
    let words = waiting.and_then(|waiting| waiting.message.as_deref()).unwrap_or_default();
    match reason {
        "ImagePullBackOff"
        | "ErrImagePull"
        | "InvalidImageName"
        | "ErrImageNeverPull"
        | "RegistryUnavailable"
        | "ImageInspectError"
        | "ImageVolumeMountFailed" => {
            // The kubelet reports the same in two alternating forms; the cause stands at the end of both.
            let cause = words.rsplit_once("ErrImagePull: ").map_or(words, |(_, cause)| cause);
            let message = format!("cannot start: an image cannot be pulled: {cause}");
            trouble(reasons::IMAGE_PULL_FAILED, message, status)
        }
        "CreateContainerConfigError" | "CreateContainerError" | "RunContainerError" => {
            trouble(reasons::CRASH_LOOP, format!("cannot start: {reason}: {words}"), status)
        }
        _ => ended(status, reason == "CrashLoopBackOff"),
    }
}

fn container<'a>(
    pod: &'a Pod,
    list: impl Fn(&'a PodStatus) -> &'a Option<Vec<ContainerStatus>>,
    name: &str,
) -> Option<&'a ContainerStatus> {
    list(pod.status.as_ref()?).as_ref()?.iter().find(|status| status.name == name)
}

/// An engine that runs is judged by its probes; one that ended, by its last message.
fn ended(status: &ContainerStatus, backing_off: bool) -> Startup {
    let state = status.state.as_ref();
    if state.is_some_and(|state| state.running.is_some()) && status.ready {
        return Startup::Fine;
    }
    let now = state.and_then(|state| state.terminated.as_ref());
    let last = status.last_state.as_ref().and_then(|state| state.terminated.as_ref());
    let Some(end) = now.or(last).filter(|end| end.exit_code != 0) else { return Startup::Fine };
    let words = last_line(end.message.as_deref().unwrap_or_default());
    let cause = end.reason.as_deref().filter(|reason| *reason != "Error");
    let why = match (words.is_empty(), cause) {
        (false, None) => words,
        (false, Some(cause)) => format!("{cause}: {words}"),
        (true, cause) => format!("{} {}", cause.unwrap_or("exit code"), end.exit_code),
    };
    let again = backing_off || status.restart_count > 1;
    let reason = match end.exit_code {
        EXIT_MODEL_REFUSED => reasons::MODEL_REFUSED,
        _ if again => reasons::CRASH_LOOP,
        // Once is an accident: it is being started again already.
        _ => reasons::STARTING,
    };
    // A count that grows would make every restart a new status; its magnitude says enough.
    let times = if again { "ended again and again" } else { "ended" };
    trouble(reason, format!("{times}: {why}"), status)
}

fn trouble(reason: &'static str, message: String, status: &ContainerStatus) -> Startup {
    let message = last_line(&message);
    Startup::Trouble {
        reason,
        message,
        restarts: status.restart_count,
        model_refused: reason == reasons::MODEL_REFUSED,
    }
}

/// The last line that is not empty, shortened and without control characters: engines print their reason last.
fn last_line(text: &str) -> String {
    let line = text.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
    let mut shown = line.chars().filter(|c| !c.is_control());
    let mut short: String = shown.by_ref().take(MAX_LINE).collect();
    if shown.next().is_some() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(container: &str, expect: Option<(&str, &str)>) {
        let pod: Pod = serde_yaml::from_str(&format!("status: {{containerStatuses: [{container}]}}")).unwrap();
        let found = match startup(&pod) {
            Startup::Fine => None,
            Startup::Trouble { reason, message, .. } => Some((reason, message)),
        };
        assert_eq!(found.as_ref().map(|(reason, message)| (*reason, message.as_str())), expect);
    }

    const BASE: &str = "name: engine, image: i, imageID: i, restartCount: 3";

    #[test]
    fn refused_model_is_reported_in_the_last_line_of_the_engine() {
        check(
            &format!(
                "{{{BASE}, ready: false, state: {{waiting: {{reason: CrashLoopBackOff, message: back-off}}}}, lastState: {{terminated: {{exitCode: 78, reason: Error, message: \"loading\\nmodel.gguf: tensor blk.7 ends at byte 98: it is truncated\\n\"}}}}}}"
            ),
            Some((
                reasons::MODEL_REFUSED,
                "ended again and again: model.gguf: tensor blk.7 ends at byte 98: it is truncated",
            )),
        );
    }

    #[test]
    fn an_engine_that_runs_out_of_memory_or_dies_silently_is_a_crash_loop() {
        check(
            &format!(
                "{{{BASE}, ready: false, state: {{waiting: {{reason: CrashLoopBackOff}}}}, lastState: {{terminated: {{exitCode: 137, reason: OOMKilled}}}}}}"
            ),
            Some((reasons::CRASH_LOOP, "ended again and again: OOMKilled 137")),
        );
    }

    #[test]
    fn container_that_waits_for_the_model_is_looked_at_first() {
        let check = |wait: &str, expect: Option<&str>| {
            let engine = "{name: engine, image: i, imageID: i, restartCount: 0, ready: false, state: {waiting: {reason: PodInitializing}}}";
            let pod = format!("status: {{initContainerStatuses: [{wait}], containerStatuses: [{engine}]}}");
            let reason = match startup(&serde_yaml::from_str(&pod).unwrap()) {
                Startup::Fine => None,
                Startup::Trouble { reason, .. } => Some(reason),
            };
            assert_eq!(reason, expect, "{wait}");
        };
        let base = "name: wait-model, image: i, imageID: i, restartCount: 0, ready: false";
        check(&format!("{{{base}, state: {{running: {{}}}}}}"), None);
        check(&format!("{{{base}, state: {{terminated: {{exitCode: 0, reason: Completed}}}}}}"), None);
        let pull = "state: {waiting: {reason: ErrImagePull, message: not found}}";
        check(&format!("{{{base}, {pull}}}"), Some(reasons::IMAGE_PULL_FAILED));
    }

    #[test]
    fn an_image_that_cannot_be_pulled_is_named() {
        check(
            &format!(
                "{{{BASE}, ready: false, state: {{waiting: {{reason: ImagePullBackOff, message: 'Back-off pulling image \"models/x\": ErrImagePull: not found'}}}}}}"
            ),
            Some((reasons::IMAGE_PULL_FAILED, "cannot start: an image cannot be pulled: not found")),
        );
    }

    #[test]
    fn a_ready_engine_is_fine_whatever_it_went_through() {
        check(
            &format!(
                "{{{BASE}, ready: true, state: {{running: {{}}}}, lastState: {{terminated: {{exitCode: 1, reason: Error}}}}}}"
            ),
            None,
        );
        check(&format!("{{{BASE}, ready: false, state: {{waiting: {{reason: ContainerCreating}}}}}}"), None);
    }
}
