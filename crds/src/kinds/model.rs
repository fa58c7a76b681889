//! `spec.model` of an InferenceDeployment: what is served, and where its weights come from.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use crate::rules;

/// What is served.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[x_kube(validation = rules::deployment::PRELOAD_SOURCE.cel())]
#[serde(rename_all = "camelCase")]
pub struct Model {
    /// The model's name as clients send it. Absent: the object's name. Resolved inside the caller's tenant first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    #[x_kube(validation = rules::deployment::MODEL_NAME.cel())]
    pub name: Option<String>,

    /// Where the weights come from: exactly one source.
    pub source: ModelSource,

    /// LoRA adapters served beside the model.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub adapters: Vec<Adapter>,

    /// Who beside the owning tenant may call it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access: Option<Access>,

    /// Nodes that hold the weights before a replica needs them, at zero replicas too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preload: Option<Preload>,
}

/// Where weights are held ahead of need.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Preload {
    /// How many nodes, of those with GPUs that a variant names. Only what a node's cache has free is used.
    #[schemars(range(min = 1, max = 64))]
    pub nodes: u32,
}

/// Where weights come from: exactly one of the fields.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[x_kube(validation = rules::deployment::ONE_SOURCE.cel())]
#[serde(rename_all = "camelCase")]
pub struct ModelSource {
    /// An OCI image, mounted read-only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageSource>,
    /// A repository on the Hugging Face hub, or on the mirror that the platform set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hugging_face: Option<HuggingFaceSource>,
    /// A file or directory behind a URL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpSource>,
    /// An object, or all objects under a prefix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub s3: Option<S3Source>,
    /// A file on a volume of the namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persistent_volume_claim: Option<VolumeSource>,
}

/// Weights in an OCI image.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageSource {
    /// Image reference; end it with `@sha256:…` to pin the content.
    #[schemars(length(min = 1, max = 512))]
    #[x_kube(validation = rules::deployment::IMAGE_REFERENCE.cel())]
    pub reference: String,
    /// File or directory inside the image, for example /model.gguf.
    #[schemars(length(min = 1, max = 256))]
    #[x_kube(validation = rules::deployment::IMAGE_PATH.cel())]
    pub path: String,
}

/// Weights on the Hugging Face hub.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HuggingFaceSource {
    /// `owner/name`.
    #[schemars(length(min = 1, max = 256))]
    #[x_kube(validation = rules::deployment::HUB_REPO.cel())]
    pub repo: String,
    /// Branch, tag or commit; main where it is absent. What it names is resolved once, and status.model has the commit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    #[x_kube(validation = rules::deployment::HUB_REVISION.cel())]
    pub revision: Option<String>,
    /// A GGUF file of the repository, of a split model the first part. Absent: the model in safetensors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    #[x_kube(validation = rules::deployment::HUB_PATH.cel())]
    pub path: Option<String>,
    /// Secret in the same namespace with the access token; its key is `token` where none is named. Node agents alone read it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::deployment::TOKEN_SECRET.cel())]
    pub token_secret_ref: Option<SecretRef>,
}

/// Weights behind a URL.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpSource {
    /// `https://` or `http://` address of one GGUF file; with `/` at its end, of a directory with a model in safetensors and the
    /// list `SHA256SUMS`, as `sha256sum` writes it.
    #[schemars(length(min = 1, max = 2048))]
    #[x_kube(validation = rules::deployment::HTTP_URL.cel())]
    pub url: String,
    /// Lower-case hex digest of the file; of a directory, that of its list.
    #[schemars(length(min = 1, max = 64))]
    #[x_kube(validation = rules::deployment::SHA256.cel())]
    pub sha256: String,
}

/// Weights in an object store.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct S3Source {
    /// Bucket.
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(validation = rules::deployment::S3_BUCKET.cel())]
    pub bucket: String,
    /// Key of one GGUF file; or a prefix ending in `/`, below which are a model in safetensors and the list `SHA256SUMS`, as
    /// `sha256sum` writes it.
    #[schemars(length(min = 1, max = 1024))]
    #[x_kube(validation = rules::deployment::S3_KEY.cel())]
    pub key: String,
    /// Lower-case hex digest of the file; of a prefix, that of its list.
    #[schemars(length(min = 1, max = 64))]
    #[x_kube(validation = rules::deployment::SHA256.cel())]
    pub sha256: String,
    /// Address of the store where it is not AWS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    #[x_kube(validation = rules::deployment::S3_ENDPOINT.cel())]
    pub endpoint: Option<String>,
    /// Region of the bucket; us-east-1 where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    #[x_kube(validation = rules::deployment::S3_REGION.cel())]
    pub region: Option<String>,
    /// Secret in the same namespace with the keys AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, of temporary ones
    /// AWS_SESSION_TOKEN too. Absent: everybody may read it. Node agents alone read the Secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::deployment::S3_SECRET.cel())]
    pub secret_ref: Option<SecretName>,
}

/// Weights on a volume.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VolumeSource {
    /// PersistentVolumeClaim in the same namespace.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = rules::deployment::CLAIM_NAME.cel())]
    pub claim_name: String,
    /// File or directory on the volume, for example /smollm2/model.gguf.
    #[schemars(length(min = 1, max = 256))]
    #[x_kube(validation = rules::deployment::VOLUME_PATH.cel())]
    pub path: String,
}

/// A Secret in the same namespace.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SecretRef {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Key inside it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub key: Option<String>,
}

/// A Secret in the same namespace, whose keys have fixed names.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SecretName {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// A LoRA adapter.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Adapter {
    /// Name as clients send it.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// Where it comes from.
    pub source: ModelSource,
}

/// Who beside the owning tenant may call the model.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Access {
    /// Names of TenantQuotas. Everyone else gets 404, in /v1/models too. The caller pays.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 63)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    #[x_kube(validation = rules::deployment::TENANTS.cel())]
    pub tenants: Vec<String>,
}
