//! `memory: Auto`: what has to be asked before a deployment can be placed, and what follows from the answer. Pure.

use std::collections::BTreeMap;

use stowage_contracts::estimate::{Estimate, EstimateRequest, SEQUENCES};
use stowage_contracts::hub::HubModel;
use stowage_contracts::model::ClaimModel;
use stowage_contracts::names::MEMORY_STEP_BYTES;
use stowage_crds::conditions::reasons;
use stowage_crds::deployment_status::MemoryEstimate;
use stowage_crds::inference_deployment::Variant;
use stowage_crds::inference_runtime::AdapterName;
use stowage_crds::quantity::{bytes_quantity, parse_bytes};
use stowage_crds::validate::{
    AcceptedAccelerator, AcceptedDeployment, AcceptedHub, AcceptedRuntime, AcceptedS3, AcceptedSource,
};

use super::Refusal;
use crate::observe::view::StoredDeployment;

/// Answers of node agents, by the request's key.
pub type Answers = BTreeMap<String, Result<Estimate, String>>;

/// The question that a deployment with an estimated variant needs an answer to, of no tenant yet; `None`: it has none,
/// or its source cannot be asked, which validation refuses.
pub fn request(deployment: &AcceptedDeployment) -> Option<EstimateRequest> {
    if !deployment.variants.iter().any(|variant| is_estimated(&variant.accelerator)) {
        return None;
    }
    let model = match &deployment.source {
        AcceptedSource::Http(file) | AcceptedSource::S3(AcceptedS3 { file, secret: None, .. }) => {
            ClaimModel::File(file.clone())
        }
        // The revision as it is written: another answer later must not change what runs.
        AcceptedSource::Hub(AcceptedHub { repo, revision, path, token: None }) => ClaimModel::Hub(HubModel {
            repo: repo.clone(),
            revision: revision.clone(),
            path: path.clone(),
            token: None,
        }),
        AcceptedSource::Hub(_) | AcceptedSource::S3(_) | AcceptedSource::Image(_) | AcceptedSource::Volume(_) => {
            return None;
        }
    };
    let options = &deployment.options;
    Some(EstimateRequest {
        model,
        max_model_len: options.max_model_len,
        kv_cache_type: options.kv_cache_type.clone(),
        tenant: String::new(),
    })
}

/// Whether the spec has a variant without a size: others need not be read once more.
pub fn may_ask(stored: &StoredDeployment) -> bool {
    let open =
        |variant: &Variant| variant.memory.as_ref().map_or(variant.compute.is_some(), |memory| memory.0 == "Auto");
    !stored.deleting() && stored.spec.as_ref().is_ok_and(|spec| spec.variants.iter().any(open))
}

fn is_estimated(accelerator: &AcceptedAccelerator) -> bool {
    matches!(accelerator, AcceptedAccelerator::Gpu { estimated: true, .. })
}

/// What the status remembers of an answer to this request.
pub fn remembered(stored: &StoredDeployment, request: &EstimateRequest) -> Option<Estimate> {
    let status = stored.status.as_ref()?.memory_estimate.as_ref().filter(|found| found.key == request.key())?;
    let bytes = |quantity| parse_bytes(quantity).ok();
    Some(Estimate {
        weights: bytes(&status.weights)?,
        kv_cache: bytes(&status.kv_cache)?,
        scratch: bytes(&status.scratch)?,
        context_len: status.context_len,
    })
}

/// The estimate as the status has it.
pub fn status(request: &EstimateRequest, estimate: &Estimate) -> MemoryEstimate {
    MemoryEstimate {
        key: request.key(),
        weights: bytes_quantity(estimate.weights),
        kv_cache: bytes_quantity(estimate.kv_cache),
        scratch: bytes_quantity(estimate.scratch),
        context_len: estimate.context_len,
        sequences: SEQUENCES,
        memory: bytes_quantity(slice(estimate)),
    }
}

/// The slice that holds it.
fn slice(estimate: &Estimate) -> u64 {
    estimate.total().div_ceil(MEMORY_STEP_BYTES).saturating_mul(MEMORY_STEP_BYTES)
}

/// The deployment with a size in place of each estimate, and the estimate.
pub fn filled(
    stored: &StoredDeployment,
    deployment: &AcceptedDeployment,
    runtime: &AcceptedRuntime,
    answers: &Answers,
) -> Result<(AcceptedDeployment, Option<MemoryEstimate>), Refusal> {
    let Some(request) = request(deployment) else { return Ok((deployment.clone(), None)) };
    if runtime.adapter != AdapterName::Stowage {
        let message = "spec.variants[].memory: memory: Auto is estimated for the bundled engine alone; write a size, for example memory: 20Gi";
        return Err((reasons::CAPABILITY_MISSING, message.into()));
    }
    let known = remembered(stored, &request).map(Ok).or_else(|| answers.get(&request.key()).cloned());
    let estimate = match known {
        Some(Ok(estimate)) => estimate,
        Some(Err(why)) => {
            let message = format!(
                "spec.variants[].memory: the memory cannot be estimated: {why}. It is asked again every minute; a size, for example memory: 2Gi, needs no estimate"
            );
            return Err((reasons::ESTIMATE_FAILED, message));
        }
        None => {
            return Err((
                reasons::ESTIMATING_MEMORY,
                "a node agent reads the headers of the model's files, to estimate its memory".into(),
            ));
        }
    };
    let mut deployment = deployment.clone();
    for variant in &mut deployment.variants {
        if let AcceptedAccelerator::Gpu { memory_bytes, estimated: true, .. } = &mut variant.accelerator {
            *memory_bytes = Some(slice(&estimate));
        }
    }
    Ok((deployment, Some(status(&request, &estimate))))
}
