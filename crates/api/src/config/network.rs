//! `config-network`: URLs and how traffic moves.
//!
//! Source: `knative/networking/pkg/config/config.go`.

use std::collections::BTreeMap;
use std::time::Duration;

use super::reader::{Key, Reader, SettingError};
use super::template::Template;

/// Name of the ConfigMap.
pub const NAME: &str = "config-network";

/// Keys, in the order of the documentation.
pub const KEYS: &[Key] = &[
    key("domain-template", "{{.Name}}.{{.Namespace}}.{{.Domain}}", "host of a service, or with a tag's name in front"),
    key("default-external-scheme", "http", "scheme of public URLs: http or https"),
    key("rollout-duration", "0", "seconds over which traffic moves to a new Revision"),
    key("tag-template", "{{.Tag}}-{{.Name}}", "name of a tag's host"),
    key("autocreate-cluster-domain-claims", "false", "whether a DomainMapping may claim its domain by itself"),
    idle("external-domain-tls", "Disabled", "certificates for public domains"),
    idle("cluster-local-domain-tls", "Disabled", "certificates inside the cluster"),
    idle("system-internal-tls", "Disabled", "TLS between the gateway and instances"),
    key("http-protocol", "Enabled", "what plain HTTP gets: Enabled, Redirected or Disabled"),
    idle("ingress-class", "", "the gateway is Colibri's own"),
    idle("certificate-class", "", "who makes certificates"),
    idle("namespace-wildcard-cert-selector", "", "namespaces with a certificate for all their hosts"),
    idle("mesh-compatibility-mode", "auto", "of service meshes"),
    idle("enable-mesh-pod-addressability", "false", "of service meshes"),
];
/// Earlier spellings.
pub const LEGACY: &[(&str, &str)] = &[
    ("ingress.class", "ingress-class"),
    ("certificate.class", "certificate-class"),
    ("domainTemplate", "domain-template"),
    ("tagTemplate", "tag-template"),
    ("rolloutDuration", "rollout-duration"),
    ("autocreateClusterDomainClaims", "autocreate-cluster-domain-claims"),
    ("defaultExternalScheme", "default-external-scheme"),
    ("autoTLS", "external-domain-tls"),
    ("auto-tls", "external-domain-tls"),
    ("httpProtocol", "http-protocol"),
    ("internal-encryption", "system-internal-tls"),
];

const fn key(name: &'static str, default: &'static str, about: &'static str) -> Key {
    Key { name, default, about, in_force: true }
}

const fn idle(name: &'static str, default: &'static str, about: &'static str) -> Key {
    Key { name, default, about, in_force: false }
}

/// The values of `config-network`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// `domain-template`.
    pub domain_template: Template,
    /// `tag-template`.
    pub tag_template: Template,
    /// `default-external-scheme`. Default `http`.
    pub external_scheme: &'static str,
    /// `rollout-duration`. Default 0 s.
    pub rollout_duration: Duration,
    /// `autocreate-cluster-domain-claims`. Default false.
    pub autocreate_claims: bool,
    /// `http-protocol`. Default `Enabled`.
    pub http_protocol: HttpProtocol,
}

/// What a request without TLS for a public host gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HttpProtocol {
    /// The answer.
    #[default]
    Enabled,
    /// A redirect to HTTPS.
    Redirected,
    /// 403.
    Disabled,
}

impl HttpProtocol {
    /// Reads a value, in any case.
    pub fn parse(text: &str) -> Option<Self> {
        let known = [("enabled", Self::Enabled), ("redirected", Self::Redirected), ("disabled", Self::Disabled)];
        known.into_iter().find(|(name, _)| name.eq_ignore_ascii_case(text)).map(|(_, value)| value)
    }
}

impl Default for Network {
    fn default() -> Self {
        Self::parse(&BTreeMap::new()).expect("the defaults are valid")
    }
}

impl Network {
    /// Reads the ConfigMap's data; absent keys have their defaults.
    ///
    /// # Errors
    ///
    /// The first value that cannot be used.
    pub fn parse(data: &BTreeMap<String, String>) -> Result<Self, SettingError> {
        let read = Reader { map: NAME, data };
        let host = |text: &str| {
            let template = Template::parse(text, &["Name", "Namespace", "Domain"], &["Labels", "Annotations"])?;
            let sample = template.render(|field, _| match field {
                "Domain" => "baz.com".to_owned(),
                "Labels" | "Annotations" => "x".to_owned(),
                name => name.to_lowercase(),
            });
            base::names::is_dns1123_subdomain(&sample).then_some(template)
        };
        let tag = |text: &str| {
            let template = Template::parse(text, &["Name", "Tag"], &[])?;
            base::names::is_dns1123_label(&template.render(|field, _| field.to_lowercase())).then_some(template)
        };
        for (key, wanted) in [
            ("external-domain-tls", "Enabled or Disabled"),
            ("cluster-local-domain-tls", "Enabled or Disabled"),
            ("system-internal-tls", "Enabled or Disabled"),
            ("mesh-compatibility-mode", "auto, enabled or disabled"),
        ] {
            read.value(key, (), wanted, |text| {
                let mut known = wanted.split([',', ' ']).filter(|word| !["", "or"].contains(word));
                known.any(|word| word.eq_ignore_ascii_case(text)).then_some(())
            })?;
        }
        read.truth("enable-mesh-pod-addressability", false)?;
        let seconds = read.integer("rollout-duration", 0, 0)?;
        Ok(Self {
            domain_template: read.value(
                "domain-template",
                host("{{.Name}}.{{.Namespace}}.{{.Domain}}").expect("the default is a template"),
                "a host name in which {{.Name}}, {{.Namespace}}, {{.Domain}}, {{.Labels.KEY}} or \
                 {{.Annotations.KEY}} may stand",
                host,
            )?,
            tag_template: read.value(
                "tag-template",
                tag("{{.Tag}}-{{.Name}}").expect("the default is a template"),
                "a name in which {{.Tag}} and {{.Name}} may stand",
                tag,
            )?,
            external_scheme: read.value("default-external-scheme", "http", "http or https", |text| {
                ["http", "https"].into_iter().find(|known| *known == text)
            })?,
            rollout_duration: Duration::from_secs(u64::try_from(seconds).unwrap_or_default()),
            autocreate_claims: read.truth("autocreate-cluster-domain-claims", false)?,
            http_protocol: read.value(
                "http-protocol",
                HttpProtocol::Enabled,
                "Enabled, Redirected or Disabled",
                HttpProtocol::parse,
            )?,
        })
    }

    /// Name by which a tag of the Route of that name is reached.
    pub fn tag_name(&self, tag: &str, route: &str) -> String {
        self.tag_template.render(|field, _| if field == "Tag" { tag } else { route }.to_owned())
    }
}
