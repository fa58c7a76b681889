//! One certificate authority, the key that signs service account tokens, and a key pair with a
//! kubeconfig for each client. Only the caller can read the keys. All of it ends with the cluster.

use crate::base::private;
use crate::cluster::shape::layout::{API_SERVICE_IP, Layout, node_name};
use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use std::fs;
use std::path::Path;

type Authority = CertifiedIssuer<'static, KeyPair>;

/// Writes what is missing: all of it, or the files of nodes that were added.
pub fn ensure(layout: &Layout, nodes: usize, api_port: u16) -> Result<()> {
    let dir = layout.pki();
    private::make(&dir)?;
    let ca = authority(&dir)?;
    let inside = format!("https://{}:6443", layout.control_ip());
    if !dir.join("apiserver.crt").exists() {
        service_account_key(&dir)?;
        api_server(&dir, &ca, layout)?;
        client(&dir, &ca, "kubelet-client", "apiserver-kubelet-client", Some("system:masters"))?;
        client(&dir, &ca, "front-proxy", "front-proxy-client", None)?;
    }
    let parts = ["kube-controller-manager", "kube-scheduler", "kube-proxy"];
    let mut users: Vec<(String, String, Option<&str>)> =
        parts.iter().map(|p| (p.to_string(), format!("system:{p}"), None)).collect();
    users.push(("admin".into(), "admin".into(), Some("system:masters")));
    users.extend((1..=nodes).map(node_name).map(|n| (n.clone(), format!("system:node:{n}"), Some("system:nodes"))));
    for (name, user, group) in users {
        if !dir.join(format!("{name}.kubeconfig")).exists() {
            client(&dir, &ca, &name, &user, group)?;
            private::write(&dir.join(format!("{name}.kubeconfig")), kubeconfig(&dir, &name, &inside)?)?;
        }
    }
    let outside = kubeconfig(&dir, "admin", &format!("https://127.0.0.1:{api_port}"))?;
    private::write(&layout.kubeconfig(), outside)
}

fn authority(dir: &Path) -> Result<Authority> {
    let mut params = named("stowage-local-cluster", None);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    let (key_file, cert_file) = (dir.join("ca.key"), dir.join("ca.crt"));
    // Issuing needs the key and the name only, so a later start makes the same authority from the key.
    let key = match fs::read_to_string(&key_file) {
        Ok(pem) => KeyPair::from_pem(&pem)?,
        Err(_) => KeyPair::generate()?,
    };
    let pem = key.serialize_pem();
    let ca = CertifiedIssuer::self_signed(params, key)?;
    if !cert_file.exists() {
        fs::write(cert_file, ca.pem())?;
        private::write(&key_file, pem)?;
    }
    Ok(ca)
}

fn service_account_key(dir: &Path) -> Result<()> {
    let key = KeyPair::generate()?;
    private::write(&dir.join("sa.key"), key.serialize_pem())?;
    fs::write(dir.join("sa.pub"), key.public_key_pem())?;
    Ok(())
}

fn api_server(dir: &Path, ca: &Authority, layout: &Layout) -> Result<()> {
    let service = "kubernetes.default.svc";
    let control = layout.control_ip();
    let names = ["kubernetes", "kubernetes.default", service, "kubernetes.default.svc.cluster.local", "localhost"];
    let addresses = ["127.0.0.1", API_SERVICE_IP, control.as_str()];
    let alternative: Vec<String> = names.iter().chain(&addresses).map(|s| s.to_string()).collect();
    let mut params = CertificateParams::new(alternative)?;
    params.distinguished_name.push(DnType::CommonName, "kube-apiserver");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    issue(dir, ca, "apiserver", params)
}

fn client(dir: &Path, ca: &Authority, file: &str, user: &str, group: Option<&str>) -> Result<()> {
    let mut params = named(user, group);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    issue(dir, ca, file, params)
}

fn named(common: &str, organization: Option<&str>) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    if let Some(organization) = organization {
        params.distinguished_name.push(DnType::OrganizationName, organization);
    }
    params.distinguished_name.push(DnType::CommonName, common);
    params
}

fn issue(dir: &Path, ca: &Authority, file: &str, params: CertificateParams) -> Result<()> {
    let key = KeyPair::generate()?;
    let cert = params.signed_by(&key, ca).with_context(|| format!("issuing {file}"))?;
    private::write(&dir.join(format!("{file}.key")), key.serialize_pem())?;
    fs::write(dir.join(format!("{file}.crt")), cert.pem())?;
    Ok(())
}

/// Self-contained, so that it can be copied elsewhere.
fn kubeconfig(dir: &Path, user: &str, server: &str) -> Result<String> {
    let data = |file: String| -> Result<String> {
        use base64::Engine;
        let bytes = fs::read(dir.join(&file)).with_context(|| format!("reading {file}"))?;
        Ok(base64::engine::general_purpose::STANDARD.encode(bytes))
    };
    Ok(format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: stowage-local\n\
         clusters: [{{name: stowage-local, cluster: {{server: \"{server}\", certificate-authority-data: {}}}}}]\n\
         users: [{{name: {user}, user: {{client-certificate-data: {}, client-key-data: {}}}}}]\n\
         contexts: [{{name: stowage-local, context: {{cluster: stowage-local, user: {user}}}}}]\n",
        data("ca.crt".into())?,
        data(format!("{user}.crt"))?,
        data(format!("{user}.key"))?,
    ))
}
