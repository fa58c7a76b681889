//! The configuration files of `e2e/cluster/templates`, with `{{name}}` filled in.

use anyhow::{Result, bail};

pub const CONTAINERD: &str = include_str!("../../../../e2e/cluster/templates/containerd.toml");
pub const CNI: &str = include_str!("../../../../e2e/cluster/templates/cni.conflist");
pub const KUBELET: &str = include_str!("../../../../e2e/cluster/templates/kubelet.yaml");
pub const KUBE_PROXY: &str = include_str!("../../../../e2e/cluster/templates/kube-proxy.yaml");
pub const NODE_INIT: &str = include_str!("../../../../e2e/cluster/templates/node-init.sh");
pub const COREFILE: &str = include_str!("../../../../e2e/cluster/templates/Corefile");
pub const CHECK: &str = include_str!("../../../../e2e/cluster/templates/check.yaml");
pub const PROMETHEUS: &str = include_str!("../../../../e2e/cluster/templates/prometheus.yaml");
pub const KUBE_DNS: &str = include_str!("../../../../e2e/cluster/templates/kube-dns.yaml");

/// Replaces each `{{name}}`; a name without a value is an error, not an empty string.
pub fn fill(template: &str, values: &[(&str, String)]) -> Result<String> {
    let mut text = String::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once("{{") {
        let Some((name, behind)) = after.split_once("}}") else { break };
        text.push_str(before);
        match values.iter().find(|(n, _)| *n == name) {
            Some((_, value)) => text.push_str(value),
            None if name == "names" => text.push_str("{{names}}"), // the comment that explains them
            None => bail!("no value for {{{{{name}}}}}"),
        }
        rest = behind;
    }
    text.push_str(rest);
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::fill;

    #[track_caller]
    fn check(template: &str, want: &str) {
        let got = fill(template, &[("a", "1".into()), ("b", "{{a}}".into())]);
        assert_eq!(got.unwrap_or_else(|e| e.to_string()), want);
    }

    #[test]
    fn every_name_is_replaced_once() {
        check("x {{a}} y {{b}}", "x 1 y {{a}}");
    }
    #[test]
    fn a_name_without_a_value_is_an_error() {
        check("{{c}}", "no value for {{c}}");
    }
    #[test]
    fn text_without_names_stays() {
        check("{a} $b", "{a} $b");
    }
}
