//! The edge: everything that talks to the API server.
//!
//! Reads only, and asks for the account's rights and for dry runs. Errors name the read that failed and what to try; [`ClusterError::unreachable`] tells a refusal
//! from a cluster that does not answer.

use std::fmt::Debug;
use std::path::Path;

use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{
    ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams, PostParams,
};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config, Resource};
use serde::de::DeserializeOwned;
use stowage_crds::names;

use crate::remedy::Right;

#[derive(Clone)]
pub struct Cluster {
    client: Client,
}

#[derive(Debug)]
pub struct ClusterError {
    what: String,
    source: Box<dyn std::error::Error + Send + Sync>,
    answered: bool,
    forbidden: bool,
}

impl std::fmt::Display for ClusterError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.what, self.source)?;
        if !self.answered {
            write!(f, "\ncheck --context and --kubeconfig, then: kubectl cluster-info")?;
        }
        Ok(())
    }
}

impl std::error::Error for ClusterError {}

impl ClusterError {
    pub(crate) fn new(what: impl Into<String>, error: kube::Error) -> Self {
        let answered = matches!(error, kube::Error::Api(_));
        let forbidden = matches!(&error, kube::Error::Api(status) if status.code == 403);
        let source: Box<dyn std::error::Error + Send + Sync> = match error {
            kube::Error::Api(status) => status.message.clone().into(),
            other => Box::new(other),
        };
        ClusterError { what: what.into(), source, answered, forbidden }
    }

    /// The server answered that this account may not do it.
    pub fn forbidden(&self) -> bool {
        self.forbidden
    }

    /// The same with what to do instead.
    pub fn with_advice(mut self, advice: &str) -> Self {
        self.source = format!("{}; {advice}", self.source).into();
        self
    }

    /// The same refusal in words that say which right is missing.
    pub fn replaced(mut self, why: &str) -> Self {
        self.source = why.into();
        self
    }

    /// No answer at all, in contrast to a refusal.
    pub fn unreachable(&self) -> bool {
        !self.answered
    }
}

/// What a read found, where absence and refusal differ.
#[derive(Clone, Debug, PartialEq)]
pub enum Read<T> {
    Got(T),
    /// The object or its whole kind does not exist.
    Absent,
    /// The account may not, or the server failed.
    Failed(Unreadable),
}

/// Why a read found nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct Unreadable {
    /// The API server's message, or the connection's.
    pub message: String,
    /// The account may not.
    pub forbidden: bool,
}

/// What the API server says to a change that it does not make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Admitted,
    /// By authorisation or by an admission policy; its message.
    Forbidden(String),
    /// By the schema, by an admission policy, or because something is missing; its message.
    Refused(String),
}

impl<T> Read<T> {
    pub fn got(&self) -> Option<&T> {
        match self {
            Read::Got(t) => Some(t),
            Read::Absent | Read::Failed(_) => None,
        }
    }
}

impl Cluster {
    pub async fn connect(kubeconfig: Option<&Path>, context: Option<&str>) -> Result<Self, ClusterError> {
        let failed = |what: &str, source: Box<dyn std::error::Error + Send + Sync>| ClusterError {
            what: what.to_owned(),
            source,
            answered: false,
            forbidden: false,
        };
        let options = KubeConfigOptions { context: context.map(str::to_owned), ..Default::default() };
        let config = match kubeconfig {
            Some(path) => {
                let file = Kubeconfig::read_from(path)
                    .map_err(|e| failed(&format!("reading {}", path.display()), Box::new(e)))?;
                Config::from_custom_kubeconfig(file, &options).await
            }
            None => Config::from_kubeconfig(&options).await,
        };
        let mut config = config.map_err(|e| failed("reading the kubeconfig", Box::new(e)))?;
        config.connect_timeout = Some(std::time::Duration::from_secs(5));
        config.read_timeout = Some(std::time::Duration::from_secs(20));
        let client = Client::try_from(config).map_err(|e| ClusterError::new("setting up the client", e))?;
        Ok(Cluster { client })
    }

    pub fn default_namespace(&self) -> &str {
        self.client.default_namespace()
    }

    pub async fn version(&self) -> Result<(u32, u32, String), ClusterError> {
        let v = self
            .client
            .apiserver_version()
            .await
            .map_err(|e| ClusterError::new("asking the API server for its version", e))?;
        let digits = |s: &str| s.chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap_or(0);
        Ok((digits(&v.major), digits(&v.minor), v.git_version))
    }

    /// Whether `group/version` is served.
    pub async fn serves(&self, group: &str, version: &str) -> Read<bool> {
        match self.client.list_api_groups().await {
            Ok(list) => Read::Got(
                list.groups.iter().any(|g| g.name == group && g.versions.iter().any(|v| v.version == version)),
            ),
            Err(e) => refused(e),
        }
    }

    pub fn all<K>(&self) -> Api<K>
    where
        K: Resource,
        K::DynamicType: Default,
    {
        Api::all(self.client.clone())
    }

    pub fn within<K>(&self, namespace: &str) -> Api<K>
    where
        K: Resource<Scope = kube::core::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    pub async fn get<K>(&self, api: Api<K>, kind: &str, name: &str) -> Result<K, ClusterError>
    where
        K: Clone + DeserializeOwned + Debug,
    {
        api.get(name).await.map_err(|e| ClusterError::new(format!("reading {kind} {name}"), e))
    }

    pub async fn list<K>(&self, api: Api<K>, kinds: &str, labels: &str) -> Result<Vec<K>, ClusterError>
    where
        K: Clone + DeserializeOwned + Debug,
    {
        let list = api.list(&selected(labels)).await;
        Ok(list.map_err(|e| ClusterError::new(format!("listing {kinds}"), e))?.items)
    }

    pub async fn read<K>(&self, api: Api<K>, name: &str) -> Read<K>
    where
        K: Clone + DeserializeOwned + Debug,
    {
        match api.get_opt(name).await {
            Ok(Some(found)) => Read::Got(found),
            Ok(None) => Read::Absent,
            Err(e) => refused(e),
        }
    }

    pub async fn read_all<K>(&self, api: Api<K>) -> Read<Vec<K>>
    where
        K: Clone + DeserializeOwned + Debug,
    {
        self.read_labelled(api, "").await
    }

    /// Those that a label selector selects; an empty one selects all.
    pub async fn read_labelled<K>(&self, api: Api<K>, labels: &str) -> Read<Vec<K>>
    where
        K: Clone + DeserializeOwned + Debug,
    {
        match api.list(&selected(labels)).await {
            Ok(list) => Read::Got(list.items),
            Err(e) => refused(e),
        }
    }

    /// Whether this account may do it. No where the server does not answer: then nothing is advised.
    pub async fn may(&self, right: &Right) -> bool {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let attributes = ResourceAttributes {
            verb: some(right.verb),
            group: some(right.group),
            resource: some(right.resource),
            subresource: some(right.subresource),
            namespace: some(&right.namespace),
            name: some(&right.name),
            ..ResourceAttributes::default()
        };
        let review = SelfSubjectAccessReview {
            spec: SelfSubjectAccessReviewSpec { resource_attributes: Some(attributes), ..Default::default() },
            ..SelfSubjectAccessReview::default()
        };
        let answer = self.all::<SelfSubjectAccessReview>().create(&PostParams::default(), &review).await;
        answer.is_ok_and(|answer| answer.status.is_some_and(|status| status.allowed))
    }

    /// A dry run of applying (as a whole, whoever owns its fields) or deleting an object, whose `resource` is its
    /// kind's plural: with the caller's rights and all admission, and nothing is stored.
    pub async fn try_change(
        &self,
        object: &serde_json::Value,
        resource: &str,
        delete: bool,
    ) -> Result<Verdict, ClusterError> {
        let text = |at: &str| object.pointer(at).and_then(serde_json::Value::as_str).unwrap_or_default();
        let (namespace, name) = (text("/metadata/namespace"), text("/metadata/name"));
        let kind = GroupVersionKind::gvk(names::GROUP, names::VERSION, text("/kind"));
        let resource = ApiResource::from_gvk_with_plural(&kind, resource);
        let api: Api<DynamicObject> = match namespace {
            "" => Api::all_with(self.client.clone(), &resource),
            namespace => Api::namespaced_with(self.client.clone(), namespace, &resource),
        };
        let done = if delete {
            api.delete(name, &DeleteParams::default().dry_run()).await.map(drop)
        } else {
            let mut params = PatchParams::apply("kubectl-stowage-plan").force().validation_strict();
            params.dry_run = true;
            api.patch(name, &params, &Patch::Apply(object)).await.map(drop)
        };
        match done {
            Ok(()) => Ok(Verdict::Admitted),
            Err(kube::Error::Api(status)) if status.code == 403 => Ok(Verdict::Forbidden(status.message.clone())),
            Err(kube::Error::Api(status)) if refuses(&status) => Ok(Verdict::Refused(status.message.clone())),
            Err(e) => Err(ClusterError::new(format!("asking the API server about {name}"), e)),
        }
    }

    /// One GET on the operator's admin port, through the API server's proxy. Asks the leader's pod if
    /// the Lease names one, because it carries out what it decides; otherwise any pod of the Service.
    pub async fn operator<T: DeserializeOwned>(&self, path_and_query: &str) -> Result<T, ClusterError> {
        self.through_proxy(path_and_query, http::Method::GET, &[]).await
    }

    /// The same with a POST of `body` as JSON.
    pub async fn ask_operator<B: serde::Serialize, T: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
    ) -> Result<T, ClusterError> {
        let body = serde_json::to_vec(body).unwrap_or_default();
        self.through_proxy(path, http::Method::POST, &body).await
    }

    async fn through_proxy<T: DeserializeOwned>(
        &self,
        path_and_query: &str,
        method: http::Method,
        body: &[u8],
    ) -> Result<T, ClusterError> {
        let mut last = None;
        for target in self.operator_targets().await {
            let uri = format!("/api/v1/namespaces/{}/{target}/proxy{path_and_query}", names::SYSTEM_NAMESPACE);
            let request = http::Request::builder().method(method.clone()).uri(&uri);
            let request = request.header(http::header::CONTENT_TYPE, "application/json").body(body.to_vec());
            let Ok(request) = request else { continue };
            match self.client.request::<T>(request).await {
                Ok(answer) => return Ok(answer),
                // The operator's own answer: another one would say the same.
                Err(kube::Error::Api(status)) if matches!(status.code, 400 | 413) => {
                    return Err(ClusterError::new("asking the operator", kube::Error::Api(status)));
                }
                Err(e) => last = Some(ClusterError::new(format!("asking the operator ({target})"), e)),
            }
        }
        Err(last.unwrap_or_else(|| ClusterError {
            what: "asking the operator".to_owned(),
            source: "no address to ask".into(),
            answered: true,
            forbidden: false,
        }))
    }

    async fn operator_targets(&self) -> Vec<String> {
        let service = format!("services/{}:{}", names::OPERATOR_SERVICE, names::ADMIN_PORT_NAME);
        let lease = self.read(self.within::<Lease>(names::SYSTEM_NAMESPACE), names::LEASE).await;
        let holder = lease.got().and_then(|l| l.spec.as_ref()?.holder_identity.clone());
        let pods: Api<k8s_openapi::api::core::v1::Pod> = self.within(names::SYSTEM_NAMESPACE);
        let pods = self.read_all(pods).await;
        // The holder is the pod's name and a random part.
        let leader = holder.and_then(|holder| {
            let named = pods.got()?.iter().filter_map(|p| p.metadata.name.as_ref());
            named.filter(|name| holder.starts_with(name.as_str())).max_by_key(|n| n.len()).cloned()
        });
        let leader = leader.map(|pod| format!("pods/{pod}:{}", names::OPERATOR_ADMIN_PORT));
        leader.into_iter().chain([service]).collect()
    }
}

/// Whether the server answers that the object is wrong, and not that it cannot answer now. For a field that the schema does
/// not have, server-side apply answers 500.
fn refuses(status: &kube::core::Status) -> bool {
    let unknown_field = status.message.contains("field not declared in schema");
    (400..500).contains(&status.code) && status.code != 429 || unknown_field
}

fn selected(labels: &str) -> ListParams {
    if labels.is_empty() { ListParams::default() } else { ListParams::default().labels(labels) }
}

fn refused<T>(error: kube::Error) -> Read<T> {
    match error {
        kube::Error::Api(status) if status.code == 404 => Read::Absent,
        kube::Error::Api(status) => {
            Read::Failed(Unreadable { message: status.message.clone(), forbidden: status.code == 403 })
        }
        other => Read::Failed(Unreadable { message: other.to_string(), forbidden: false }),
    }
}
