//! `bottleneck`: which stage limits a deployment, what was measured, and the one change that would help most. The
//! operator found it and wrote it into the object's status; nothing else is read.

use std::fmt::Write as _;

use serde::Serialize;
use stowage_crds::InferenceDeployment;
use stowage_crds::deployment_status::{Bottleneck, ServedLoad, Stage};

use crate::Answer;
use crate::cluster::{Cluster, ClusterError};
use crate::out::{self, Format, Paint, Tone};

/// What `-o json` prints.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown {
    deployment: String,
    load: Option<ServedLoad>,
    bottleneck: Option<Bottleneck>,
}

pub(crate) async fn run(
    cluster: &Cluster,
    namespace: &str,
    name: &str,
    format: Option<Format>,
    paint: Paint,
) -> Result<Answer, ClusterError> {
    let kind = format!("InferenceDeployment {namespace}");
    let object: InferenceDeployment = cluster.get(cluster.within(namespace), &kind, name).await?;
    let status = object.status.unwrap_or_default();
    let shown = Shown { deployment: format!("{namespace}/{name}"), load: status.load, bottleneck: status.bottleneck };
    let yes = shown.bottleneck.as_ref().is_none_or(|found| found.stage == Stage::None);
    let text = match out::machine(format, &shown) {
        Some(text) => text,
        None => render(&shown, paint),
    };
    Ok(Answer { text, yes })
}

fn render(shown: &Shown, paint: Paint) -> String {
    let Shown { deployment, load: _, bottleneck } = shown;
    let Some(found) = bottleneck else {
        return format!(
            "{deployment}: nothing can be said; it takes 20 requests a minute for half a minute, and engines that \
             report what a step costs\n"
        );
    };
    let mut out = format!("{}  {}\n", paint.paint(Tone::Strong, deployment), verdict(found, paint));
    let mut lines = vec![("evidence", found.evidence.replace("; ", "\n           "))];
    lines.extend(found.suggestion.as_ref().map(|text| ("suggestion", text.replace("; ", "\n           "))));
    for (label, text) in lines {
        let _ = writeln!(out, "{label:<10} {text}");
    }
    out
}

/// `Queue limits: 71 % of request time`.
pub(crate) fn verdict(found: &Bottleneck, paint: Paint) -> String {
    match (found.stage, found.share_percent) {
        (Stage::None, _) => paint.paint(Tone::Good, "no stage limits: the objectives are kept"),
        (stage, Some(share)) => paint.paint(Tone::Warn, &format!("{stage:?} limits: {share} % of request time")),
        (stage, None) => paint.paint(Tone::Warn, &format!("{stage:?} limits")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(stage: Stage, share_percent: Option<u32>, suggestion: Option<&str>) -> Shown {
        let bottleneck = Bottleneck {
            stage,
            share_percent,
            evidence: "queue 71 %, decode 29 % of request time; 11 requests/s on 2 Ready replicas".into(),
            suggestion: suggestion.map(str::to_owned),
        };
        Shown { deployment: "team-a/chat".into(), load: None, bottleneck: Some(bottleneck) }
    }

    #[test]
    fn stage_evidence_and_suggestion_have_lines_of_their_own() {
        let limited =
            shown(Stage::Queue, Some(71), Some("replicas: 3 instead of 2; predicted time to first token 1 ms"));
        assert_eq!(
            render(&limited, Paint::OFF),
            "team-a/chat  Queue limits: 71 % of request time\n\
             evidence   queue 71 %, decode 29 % of request time\n           11 requests/s on 2 Ready replicas\n\
             suggestion replicas: 3 instead of 2\n           predicted time to first token 1 ms\n"
        );
        let sound = render(&shown(Stage::None, None, None), Paint::OFF);
        assert!(sound.starts_with("team-a/chat  no stage limits: the objectives are kept\nevidence "), "{sound}");
    }

    #[test]
    fn without_a_verdict_it_says_what_one_takes() {
        let none = Shown { deployment: "team-a/chat".into(), load: None, bottleneck: None };
        assert!(render(&none, Paint::OFF).starts_with("team-a/chat: nothing can be said; it takes 20 requests"));
    }
}
