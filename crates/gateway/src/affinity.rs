//! Session affinity: a cookie that names the instance which served a client first.
//!
//! Its value is a hash of the pod's name and UID, so that it tells neither, and no address; any gateway knows it again. It
//! is looked for only among the instances of the revision that the request is for: no cookie leads anywhere else. Each
//! revision has a cookie of its own, so that a split of traffic does not make them overwrite each other.

use std::hash::{DefaultHasher, Hash, Hasher};

use base::{PodId, RevisionId};
use http::{HeaderMap, HeaderValue, header};

/// What the cookie says of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token(u64);

impl Token {
    /// That of an instance.
    pub fn of(pod: &PodId, uid: &str) -> Self {
        Self(hash((&*pod.namespace, &*pod.name, uid)))
    }
}

fn hash(value: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

fn name(revision: &RevisionId) -> String {
    format!("colibri-affinity-{:08x}", hash((&*revision.namespace, &*revision.name)) >> 32)
}

/// The instance that a request asks for.
pub fn asked(headers: &HeaderMap, revision: &RevisionId) -> Option<Token> {
    let name = name(revision);
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|field| field.to_str().ok());
    let mut values = cookies.flat_map(|field| field.split(';')).filter_map(|cookie| cookie.trim().split_once('='));
    let (_, value) = values.find(|(key, _)| *key == name)?;
    let is_token = value.len() == 16 && value.bytes().all(|digit| digit.is_ascii_hexdigit());
    is_token.then(|| u64::from_str_radix(value, 16).ok().map(Token)).flatten()
}

/// The `Set-Cookie` by which the client is to ask for the instance. It ends with the client's session.
pub fn cookie(revision: &RevisionId, Token(token): Token, secure: bool) -> Option<HeaderValue> {
    let secure = if secure { "; Secure" } else { "" };
    HeaderValue::try_from(format!("{}={token:016x}; Path=/; HttpOnly; SameSite=Lax{secure}", name(revision))).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_is_known_again_among_others_and_for_its_revision_only() {
        let (mine, yours) = (RevisionId::new("ns", "a-1"), RevisionId::new("ns", "a-2"));
        let token = Token::of(&PodId::new("ns", "p"), "uid");
        assert_ne!(token, Token::of(&PodId::new("ns", "p"), "another"));
        let set = cookie(&mine, token, true).unwrap();
        let (pair, attributes) = set.to_str().unwrap().split_once(';').unwrap();
        assert_eq!(attributes, " Path=/; HttpOnly; SameSite=Lax; Secure");
        let mut headers = HeaderMap::new();
        headers.append(header::COOKIE, HeaderValue::from_static("x=1; colibri-affinity-=2"));
        assert_eq!(asked(&headers, &mine), None);
        headers.append(header::COOKIE, HeaderValue::try_from(format!("a=b;c; {pair} ; d=e")).unwrap());
        assert_eq!((asked(&headers, &mine), asked(&headers, &yours)), (Some(token), None));
        for value in ["", "1", "+000000000000001", "00000000000000001", "g000000000000000"] {
            let text = format!("{}={value}", name(&mine));
            let headers = HeaderMap::from_iter([(header::COOKIE, HeaderValue::try_from(text).unwrap())]);
            assert_eq!(asked(&headers, &mine), None, "{value:?}");
        }
    }
}
