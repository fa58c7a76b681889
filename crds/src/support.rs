//! What the schema has and this release does not honour: one table per kind.
//!
//! Everything else in a spec is honoured. From these tables follow the CEL rules in the CRDs ([`crate::crd`] adds
//! them), the refusals of [`crate::validate`], and the page `docs/spec/v1alpha1/not-supported-yet.md`. No other
//! part may read or recommend a field that stands here; a field is honoured by removing its row.

use crate::gpu_class::SharingMode;
use crate::inference_deployment::{PERCENTILE, RolloutStrategy, ServiceClass, Sharing, Tier};
use crate::rules::Reason;
use crate::{GpuClassSpec, InferenceBatchSpec, InferenceDeploymentSpec, InferenceRuntimeSpec, TenantQuotaSpec};

/// Fields, or values of a field, that a spec of type `S` may not have yet.
pub struct Unsupported<S: 'static> {
    /// Path of the object that the rule stands beside, for example `spec.scaling`; `[]` is any item of a list.
    pub at: &'static str,
    /// The fields, below [`Unsupported::at`]; empty: the value itself.
    pub fields: &'static [&'static str],
    /// What is honoured of them.
    pub honoured: Honoured,
    /// Whether a spec has one of them.
    pub given: fn(&S) -> bool,
    /// What is missing and what to write instead, without the field's path.
    pub message: &'static str,
}

/// What of a field is honoured.
#[derive(Clone, Copy, Debug)]
pub enum Honoured {
    /// Nothing: the field must be absent.
    Nothing,
    /// Nothing, but an empty list is the same as an absent one.
    EmptyList,
    /// These values, as CEL literals; an absent field too.
    Only(&'static [&'static str]),
    /// What this CEL expression accepts, in words for the documentation.
    Where {
        /// Must be true.
        expression: &'static str,
        /// The same for people.
        words: &'static str,
    },
}

/// InferenceDeployment.
pub const DEPLOYMENT: &[Unsupported<InferenceDeploymentSpec>] = &[
    Unsupported {
        at: "spec.model",
        fields: &["adapters"],
        honoured: Honoured::EmptyList,
        given: |spec| !spec.model.adapters.is_empty(),
        message: "LoRA adapters are not served; remove model.adapters",
    },
    Unsupported {
        at: "spec.runtime.options",
        fields: &["speculative"],
        honoured: Honoured::Nothing,
        given: |spec| spec.runtime.options.as_ref().is_some_and(|options| options.speculative.is_some()),
        message: "there is no speculative decoding; remove options.speculative",
    },
    Unsupported {
        at: "spec",
        fields: &["serviceClass"],
        honoured: Honoured::Only(&["'Interactive'"]),
        given: |spec| spec.service_class != ServiceClass::Interactive,
        message: "NearRealTime and Batch have no queue of their own; write serviceClass: Interactive",
    },
    Unsupported {
        at: "spec.objectives",
        fields: &["percentile"],
        honoured: Honoured::Only(&["95"]),
        given: |spec| spec.objectives.as_ref().and_then(|o| o.percentile).is_some_and(|share| share != PERCENTILE),
        message: "the scaling rule has one percentile, 95; remove objectives.percentile",
    },
    Unsupported {
        at: "spec.objectives",
        fields: &["completion"],
        honoured: Honoured::Nothing,
        given: |spec| spec.objectives.as_ref().is_some_and(|objectives| objectives.completion.is_some()),
        message: "NearRealTime and its completion have no queue of their own; write objectives.ttft and objectives.itl",
    },
    Unsupported {
        at: "spec.variants[]",
        fields: &["migProfile"],
        honoured: Honoured::Nothing,
        given: |spec| spec.variants.iter().any(|variant| variant.mig_profile.is_some()),
        message: "MIG devices are not created; write memory and compute instead of migProfile",
    },
    Unsupported {
        at: "spec.isolation",
        fields: &["sharing"],
        honoured: Honoured::Only(&["'Auto'", "'EngineBudget'"]),
        given: |spec| !matches!(spec.isolation.sharing, Sharing::Auto | Sharing::EngineBudget),
        message: "MIG, MPS and TimeSlice are not set up on nodes; write sharing: Auto or EngineBudget",
    },
    Unsupported {
        at: "spec.scaling.idle",
        fields: &["tier"],
        honoured: Honoured::Only(&["'Cached'"]),
        given: |spec| spec.scaling.idle.as_ref().is_some_and(|idle| idle.tier.is_some_and(|tier| tier != Tier::Cached)),
        message: "an idle replica ends, and its weights stay on the node; write tier: Cached",
    },
    Unsupported {
        at: "spec.rollout",
        fields: &["strategy"],
        honoured: Honoured::Only(&["'Auto'"]),
        given: |spec| spec.rollout.as_ref().is_some_and(|rollout| rollout.strategy != RolloutStrategy::Auto),
        message: "canaries are not rolled out; write rollout.strategy: Auto",
    },
    Unsupported {
        at: "spec.rollout",
        fields: &["canary"],
        honoured: Honoured::Nothing,
        given: |spec| spec.rollout.as_ref().is_some_and(|rollout| rollout.canary.is_some()),
        message: "canaries are not rolled out; remove rollout.canary",
    },
    Unsupported {
        at: "spec",
        fields: &["disaggregation"],
        honoured: Honoured::Nothing,
        given: |spec| spec.disaggregation.is_some(),
        message: "prefill and decode run in one replica; remove spec.disaggregation",
    },
    Unsupported {
        at: "spec.nodes",
        fields: &["count"],
        honoured: Honoured::Only(&["1"]),
        given: |spec| spec.nodes.as_ref().is_some_and(|nodes| nodes.count != 1),
        message: "a replica runs on one node; write nodes.count: 1",
    },
];

/// GpuClass.
pub const CLASS: &[Unsupported<GpuClassSpec>] = &[Unsupported {
    at: "spec.allowedSharing[]",
    fields: &[],
    honoured: Honoured::Only(&["'EngineBudget'"]),
    given: |spec| spec.allowed_sharing.iter().any(|mode| *mode != SharingMode::EngineBudget),
    message: "MIG, MPS and TimeSlice are not set up on nodes; write allowedSharing: [EngineBudget]",
}];

/// TenantQuota.
pub const QUOTA: &[Unsupported<TenantQuotaSpec>] = &[
    Unsupported {
        at: "spec",
        fields: &["tokens"],
        honoured: Honoured::Nothing,
        given: |spec| spec.tokens.is_some(),
        message: "tokens are not limited per tenant; remove spec.tokens",
    },
    Unsupported {
        at: "spec.credentials",
        fields: &["jwt"],
        honoured: Honoured::Nothing,
        given: |spec| spec.credentials.as_ref().is_some_and(|credentials| credentials.jwt.is_some()),
        message: "OIDC tokens are not accepted; remove credentials.jwt and write credentials.apiKeys",
    },
    Unsupported {
        at: "spec.credentials",
        fields: &["serviceAccounts"],
        honoured: Honoured::Only(&["false"]),
        given: |spec| spec.credentials.as_ref().is_some_and(|credentials| credentials.service_accounts == Some(true)),
        message: "ServiceAccount tokens are not accepted; remove credentials.serviceAccounts and write credentials.apiKeys",
    },
];

/// The adapters that exist.
pub const ADAPTERS: &str = "this release has the adapters stowage, vllm and sglang; write one of them";

/// InferenceRuntime.
pub const RUNTIME: &[Unsupported<InferenceRuntimeSpec>] = &[Unsupported {
    at: "spec",
    fields: &["adapter"],
    honoured: Honoured::Only(&["'stowage'", "'vllm'", "'sglang'"]),
    given: |spec| !spec.adapter.supported(),
    message: ADAPTERS,
}];

/// InferenceBatch: no object is accepted.
pub const BATCH: &[Unsupported<InferenceBatchSpec>] = &[Unsupported {
    at: "spec",
    fields: &[],
    honoured: Honoured::Where { expression: "!has(self.model)", words: "nothing" },
    given: |_| true,
    message: "batches are not processed; send the requests to /v1/chat/completions of the gateway",
}];

/// A row without the type of its spec.
#[derive(Clone, Debug)]
pub struct Row {
    /// Kind of the object.
    pub kind: &'static str,
    /// See [`Unsupported::at`].
    pub at: &'static str,
    /// See [`Unsupported::fields`].
    pub fields: &'static [&'static str],
    /// See [`Unsupported::honoured`].
    pub honoured: Honoured,
    /// See [`Unsupported::message`].
    pub message: &'static str,
}

/// All tables, in the order in which the kinds are documented.
pub fn rows() -> Vec<Row> {
    let mut rows = erased("InferenceDeployment", DEPLOYMENT);
    rows.extend(erased("GpuClass", CLASS));
    rows.extend(erased("TenantQuota", QUOTA));
    rows.extend(erased("InferenceRuntime", RUNTIME));
    rows.extend(erased("InferenceBatch", BATCH));
    rows
}

fn erased<S>(kind: &'static str, table: &'static [Unsupported<S>]) -> Vec<Row> {
    let row = |Unsupported { at, fields, honoured, given: _, message }: &'static Unsupported<S>| Row {
        kind,
        at,
        fields,
        honoured: *honoured,
        message,
    };
    table.iter().map(row).collect()
}

impl<S> Unsupported<S> {
    /// Path of what is refused; of several fields that of the object that has them.
    pub fn path(&self) -> String {
        path(self.at, self.fields)
    }
}

impl Row {
    /// Path of what is refused; of several fields that of the object that has them.
    pub fn path(&self) -> String {
        path(self.at, self.fields)
    }

    /// The field of the rule, where it is one field: `.scaling.mode`.
    pub fn field_path(&self) -> Option<String> {
        match self.fields {
            [field] => Some(format!(".{field}")),
            _ => None,
        }
    }

    /// The rule that the API server checks, beside the object at [`Row::at`].
    pub fn expression(&self) -> String {
        let each = |test: fn(&str) -> String| -> String {
            self.fields.iter().map(|field| test(field)).collect::<Vec<_>>().join(" && ")
        };
        match self.honoured {
            Honoured::Nothing => each(|field| format!("!has(self.{field})")),
            Honoured::EmptyList => each(|field| format!("(!has(self.{field}) || size(self.{field}) == 0)")),
            Honoured::Where { expression, words: _ } => expression.to_owned(),
            Honoured::Only(values) => {
                let one_of =
                    |value: &str| values.iter().map(|wanted| format!("{value} == {wanted}")).collect::<Vec<_>>();
                match self.fields {
                    [] => one_of("self").join(" || "),
                    fields => {
                        let field = format!("self.{}", fields.join("."));
                        format!("!has({field}) || {}", one_of(&field).join(" || "))
                    }
                }
            }
        }
    }

    /// The message as the API server reports it.
    pub fn text(&self) -> String {
        format!("{}: {}", Reason::NotSupportedYet.as_str(), self.message)
    }

    /// Whether a leaf of the schema (`[]` an item, `*` any key) is never honoured.
    pub fn refuses_leaf(&self, kind: &str, leaf: &str) -> bool {
        let covers = |path: &str| {
            leaf == path || leaf.starts_with(&format!("{path}.")) || leaf.starts_with(&format!("{path}[]"))
        };
        let whole = match self.honoured {
            Honoured::Nothing | Honoured::EmptyList => true,
            Honoured::Only(_) => false,
            Honoured::Where { expression: _, words } => words == "nothing",
        };
        let paths = || self.fields.iter().map(|field| format!("{}.{field}", self.at));
        self.kind == kind
            && whole
            && if self.fields.is_empty() { covers(self.at) } else { paths().any(|path| covers(&path)) }
    }
}

fn path(at: &str, fields: &[&str]) -> String {
    match fields {
        [field] => format!("{at}.{field}"),
        _ => at.to_owned(),
    }
}

/// `docs/spec/v1alpha1/not-supported-yet.md`.
pub fn page() -> String {
    let mut page = String::from(PAGE_HEAD);
    for row in rows() {
        let fields: Vec<String> = match row.fields {
            [] => vec![format!("`{}`", row.at)],
            fields => fields.iter().map(|field| format!("`{}.{field}`", row.at)).collect(),
        };
        let honoured = match row.honoured {
            Honoured::Nothing | Honoured::EmptyList => "nothing".to_owned(),
            Honoured::Only(values) => {
                values.iter().map(|value| format!("`{}`", value.trim_matches('\''))).collect::<Vec<_>>().join(", ")
            }
            Honoured::Where { expression: _, words } => words.to_owned(),
        };
        page.push_str(&format!("| {} | {} | {honoured} | {} |\n", row.kind, fields.join(", "), row.message));
    }
    page
}

const PAGE_HEAD: &str = "\
# What this release does not honour

Generated by `cargo xtask codegen` from `crds/src/support.rs`; do not edit. The API server refuses these fields and values with the message in the
last column, after `NotSupportedYet: `. Every other field of a spec is honoured.

| kind | field | honoured | message |
|---|---|---|---|
";
