//! What a proxy does to header fields.
//!
//! Sources: RFC 9110 section 7.6.1 (fields of one hop), RFC 7239 (`Forwarded`), Knative runtime contract (`Host`,
//! `Forwarded`, `X-Forwarded-For`, `X-Forwarded-Proto`).

use std::net::IpAddr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::{self, Entry, HeaderMap, HeaderName, HeaderValue};
use http::uri::{Authority, PathAndQuery, Scheme, Uri};
use http::{Method, Request, Version, request};
use http_body::Body;
use parking_lot::Mutex;
use sha1::{Digest, Sha1};

use crate::answer::Failure;
use crate::routes::{HOST_LIMIT_BYTES, normalise};
use crate::trace::Trace;

const FORWARDED: HeaderName = HeaderName::from_static("forwarded");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
/// Asks whether the host is routed.
pub const NETWORK_PROBE: HeaderName = HeaderName::from_static("k-network-probe");
/// What all requests of one client connection have in common.
pub struct Peer {
    address: HeaderValue,
    for_node: String,
    proto: &'static str,
    /// Whether what it says of the clients behind it is kept.
    trusted: bool,
    /// The last host and its `Forwarded` element: nearly all requests of a connection name one host.
    last: Mutex<Option<(HeaderValue, HeaderValue)>>,
}

impl Peer {
    /// A client at `address`; what a `trusted` one says of clients behind it is kept.
    pub fn new(address: IpAddr, tls: bool, trusted: bool) -> Self {
        let address = address.to_canonical();
        let text = address.to_string();
        let for_node = if address.is_ipv6() { format!("\"[{text}]\"") } else { text.clone() };
        let address = HeaderValue::from_str(&text).expect("an address is a valid header value");
        Self { address, for_node, proto: if tls { "https" } else { "http" }, trusted, last: Mutex::new(None) }
    }

    /// Whether the client speaks TLS, with the gateway or with a proxy before it. It deceives nobody but itself.
    pub fn is_secure(&self, headers: &HeaderMap) -> bool {
        self.proto == "https" || headers.get(X_FORWARDED_PROTO).is_some_and(|proto| proto == "https")
    }

    /// Its address.
    pub fn address(&self) -> &HeaderValue {
        &self.address
    }

    /// `https` where it speaks TLS, else `http`.
    pub fn scheme(&self) -> &'static str {
        self.proto
    }

    fn forwarded(&self, host: &HeaderValue) -> Option<HeaderValue> {
        let mut last = self.last.lock();
        if let Some((of, element)) = last.as_ref().filter(|(of, _)| of == host) {
            let _ = of;
            return Some(element.clone());
        }
        let host_text = host.to_str().ok()?;
        let token = host_text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.".contains(&b));
        let quote = if token { "" } else { "\"" };
        if host_text.contains(['"', '\\']) {
            return None;
        }
        let text = format!("for={};host={quote}{host_text}{quote};proto={}", self.for_node, self.proto);
        let element = HeaderValue::from_str(&text).ok()?;
        *last = Some((host.clone(), element.clone()));
        Some(element)
    }
}

/// The host that a request is for, in the form of the table: the URI's authority before the Host header.
///
/// # Errors
///
/// Where there is none, or where the two are not the same, so that somebody on the way could have acted on either.
///
/// Source: RFC 9112 section 3.2.2, RFC 9113 section 8.3.1.
pub fn host<'b, B>(request: &Request<B>, buffer: &'b mut [u8; HOST_LIMIT_BYTES]) -> Result<&'b str, Failure> {
    let mut fields = request.headers().get_all(header::HOST).iter();
    let field = fields.next().map(HeaderValue::as_bytes);
    if fields.next().is_some() {
        return Err(Failure::Malformed { cause: "it has more than one Host" });
    }
    let authority = request.uri().authority().map(|authority| authority.as_str().as_bytes());
    if let (Some(authority), Some(field)) = (authority, field)
        && authority != field
    {
        let mut other = [0; HOST_LIMIT_BYTES];
        if normalise(authority, buffer).is_none_or(|host| normalise(field, &mut other) != Some(host)) {
            return Err(Failure::Malformed { cause: "its Host is another one than its target's" });
        }
    }
    authority.or(field).and_then(|named| normalise(named, buffer)).ok_or(Failure::NoHost)
}

/// The protocol that the client asks to switch to.
pub fn upgrade<B>(request: &Request<B>) -> Option<HeaderValue> {
    let protocol = request.headers().get(header::UPGRADE)?;
    let asked = request.version() == Version::HTTP_11 && lists(request.headers(), &header::CONNECTION, "upgrade");
    // HTTP/2 is spoken on each hop by itself.
    (asked && !protocol.as_bytes().eq_ignore_ascii_case(b"h2c")).then(|| protocol.clone())
}

/// Makes the head that is sent on: no fields of this hop, Host kept, the client named, the trace said.
pub fn to_workload(head: &mut request::Parts, peer: &Peer, trace: &Trace) {
    let trailers = lists(&head.headers, &header::TE, "trailers");
    remove_named(&mut head.headers);
    remove(&mut head.headers, |name| is_of_one_hop(name) || is_of_the_platform(name) || is_lie(name, peer.trusted));
    if trailers {
        head.headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    if let Some(authority) = head.uri.authority()
        && let Ok(host) = HeaderValue::from_str(authority.as_str())
    {
        head.headers.insert(header::HOST, host);
    }
    if head.uri.authority().is_some() || head.uri.scheme().is_some() {
        head.uri = origin_form(&head.uri, &head.method);
    }
    head.version = Version::HTTP_11;
    let headers = &mut head.headers;
    append(headers, X_FORWARDED_FOR, peer.address.clone());
    if let Some(host) = headers.get(header::HOST).cloned() {
        if let Some(forwarded) = peer.forwarded(&host) {
            append(headers, FORWARDED, forwarded);
        }
        headers.entry(X_FORWARDED_HOST).or_insert(host);
    }
    headers.entry(X_FORWARDED_PROTO).or_insert(HeaderValue::from_static(peer.proto));
    trace.write(headers);
}

/// Removes the fields that `unwanted` names. Few have any: what is there is looked at once, instead of each name that
/// could be there being looked up.
fn remove(headers: &mut HeaderMap, unwanted: impl Fn(&str) -> bool) {
    let found: Vec<HeaderName> = headers.keys().filter(|name| unwanted(name.as_str())).cloned().collect();
    for name in found {
        headers.remove(name);
    }
}

/// Whether a field is what only a proxy may say of a client, unless a trusted one says it, or one that servers take for
/// another: many make one variable of `X-Forwarded-For` and `X_Forwarded_For`.
fn is_lie(name: &str, trusted: bool) -> bool {
    (!trusted && is_claim(name)) || (name.contains('_') && is_alias(&name.replace('_', "-")))
}

fn is_alias(name: &str) -> bool {
    let plain = ["host", "content-length", "transfer-encoding", "connection", "upgrade"];
    is_claim(name) || name.starts_with("k-") || name.starts_with("knative-") || plain.contains(&name)
}

/// What Knative's parts tell each other; from a client it would be a lie.
///
/// Source: `knative/networking/pkg/http/header/header.go`.
fn is_of_the_platform(name: &str) -> bool {
    name.starts_with('k')
        && matches!(
            name,
            "k-network-probe"
                | "k-network-hash"
                | "k-proxy-request"
                | "k-original-host"
                | "k-kubelet-probe"
                | "knative-serving-revision"
                | "knative-serving-namespace"
                | "knative-serving-default-route"
        )
}

/// Whether a field says who the client is.
fn is_claim(name: &str) -> bool {
    name == "forwarded" || name == "x-real-ip" || name.starts_with("x-forwarded-")
}

/// Says that a body of unknown length comes in chunks: of a method that seldom has one, the codec would drop it.
pub fn frame<B: Body>(request: &mut Request<B>) {
    if !request.body().is_end_stream() && !request.headers().contains_key(header::CONTENT_LENGTH) {
        request.headers_mut().insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
}

/// Removes what the workload meant for the gateway only.
pub fn to_client(headers: &mut HeaderMap) {
    if headers.contains_key(header::TRANSFER_ENCODING) {
        // Source: RFC 9112 section 6.3: the chunks count, and no length goes on beside them.
        headers.remove(header::CONTENT_LENGTH);
    }
    remove_hop_fields(headers);
}

/// Makes an HTTP/1.1 handshake of a WebSocket that HTTP/2 asks for.
///
/// Source: RFC 8441 section 5; RFC 6455 section 4.1 for the key, which only has to be new each time.
pub fn to_websocket(headers: &mut HeaderMap, random: [u64; 2]) {
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.entry(header::SEC_WEBSOCKET_VERSION).or_insert(HeaderValue::from_static("13"));
    headers.insert(header::SEC_WEBSOCKET_KEY, websocket_key(random));
}

/// Undoes [`to_websocket`] on the response.
pub fn from_websocket(headers: &mut HeaderMap) {
    headers.remove(header::SEC_WEBSOCKET_ACCEPT);
    remove_hop_fields(headers);
}

/// Whether it is a WebSocket's handshake that asks for this protocol.
pub fn is_websocket(protocol: &HeaderValue, headers: &HeaderMap) -> bool {
    protocol.as_bytes().eq_ignore_ascii_case(b"websocket") && headers.contains_key(header::SEC_WEBSOCKET_KEY)
}

/// Takes the key out of a handshake that goes on by HTTP/2, which has none; what answers it.
///
/// Source: RFC 8441 section 5, RFC 6455 section 4.2.2.
pub fn take_websocket_key(headers: &mut HeaderMap) -> Option<HeaderValue> {
    let key = headers.remove(header::SEC_WEBSOCKET_KEY)?;
    let hash = Sha1::new().chain_update(key.as_bytes()).chain_update("258EAFA5-E914-47DA-95CA-C5AB0DC85B11").finalize();
    HeaderValue::try_from(STANDARD.encode(hash)).ok()
}

/// Makes HTTP/1.1's answer to a handshake of one that came by HTTP/2.
pub fn accept_websocket(headers: &mut HeaderMap, accept: HeaderValue) {
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
}

/// 16 bytes in base64.
fn websocket_key([high, low]: [u64; 2]) -> HeaderValue {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bits = (u128::from(high) << 64) | u128::from(low);
    let mut text = *b"========================";
    for (at, digit) in text.iter_mut().take(21).enumerate() {
        *digit = DIGITS[(bits >> (122 - 6 * at)) as usize & 63];
    }
    text[21] = DIGITS[(bits << 4) as usize & 63];
    HeaderValue::from_bytes(&text).expect("base64 is a valid header value")
}

/// Turns a head for HTTP/1 into one for HTTP/2: the host becomes the authority.
pub fn to_http2<B>(request: &mut Request<B>) {
    let host = request.headers_mut().remove(header::HOST);
    let authority = host.and_then(|host| Authority::try_from(host.as_bytes()).ok());
    let mut parts = std::mem::take(request.uri_mut()).into_parts();
    parts.scheme = Some(Scheme::HTTP);
    parts.authority = Some(authority.unwrap_or(Authority::from_static("localhost")));
    parts.path_and_query.get_or_insert(PathAndQuery::from_static("/"));
    *request.uri_mut() = Uri::from_parts(parts).expect("scheme, authority and path make a URI");
    *request.version_mut() = Version::HTTP_2;
}

/// Whether a list-valued field names `token`.
pub fn lists(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|item| item.trim().eq_ignore_ascii_case(token))
}

fn remove_hop_fields(headers: &mut HeaderMap) {
    remove_named(headers);
    remove(headers, is_of_one_hop);
}

/// Removes what `Connection` names.
fn remove_named(headers: &mut HeaderMap) {
    if !headers.contains_key(header::CONNECTION) {
        return;
    }
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        // A client must not be able to strip these from what the workload sees.
        .filter(|name: &HeaderName| {
            *name != header::HOST && *name != header::CONTENT_LENGTH && !is_claim(name.as_str())
        })
        .collect();
    for name in named {
        headers.remove(name);
    }
}

fn is_of_one_hop(name: &str) -> bool {
    matches!(
        name,
        "connection"
            | "keep-alive"
            | "proxy-connection"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "te"
            | "transfer-encoding"
            | "upgrade"
    )
}

fn append(headers: &mut HeaderMap, name: HeaderName, element: HeaderValue) {
    match headers.entry(name) {
        Entry::Vacant(vacant) => {
            vacant.insert(element);
        }
        Entry::Occupied(mut occupied) => {
            let mut joined = Vec::new();
            for value in occupied.iter() {
                joined.extend_from_slice(value.as_bytes());
                joined.extend_from_slice(b", ");
            }
            joined.extend_from_slice(element.as_bytes());
            let joined = HeaderValue::from_bytes(&joined).unwrap_or(element);
            occupied.insert(joined);
        }
    }
}

fn origin_form(uri: &Uri, method: &Method) -> Uri {
    let path = uri.path_and_query().filter(|path| path.as_str() != "*" || method == Method::OPTIONS);
    path.cloned().map_or(Uri::from_static("/"), Uri::from)
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;
    use crate::trace::Sampling;

    fn check(request: http::request::Builder, want: Expect) {
        check_from(true, request, want);
    }

    fn check_from(trusted: bool, request: http::request::Builder, want: Expect) {
        let (mut head, ()) = request.body(()).unwrap().into_parts();
        let peer = Peer::new("192.0.2.7".parse().unwrap(), false, trusted);
        let mut numbers = [0xaaaa, 0x10, 0x20].into_iter();
        let trace = Trace::of(&head.headers, Sampling::default(), || numbers.next().unwrap());
        to_workload(&mut head, &peer, &trace);
        let mut lines: Vec<String> =
            head.headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
        lines.sort();
        want.assert_eq(&format!("{} {}\n{}\n", head.method, head.uri, lines.join("\n")));
    }

    #[test]
    fn a_plain_request_names_the_client_and_begins_a_trace() {
        check(
            Request::builder().uri("/a?b").header("host", "hello.ns.localhost:8080"),
            expect![[r#"
                GET /a?b
                forwarded: for=192.0.2.7;host="hello.ns.localhost:8080";proto=http
                host: hello.ns.localhost:8080
                traceparent: 00-000000000000aaaa0000000000000011-0000000000000021-00
                x-forwarded-for: 192.0.2.7
                x-forwarded-host: hello.ns.localhost:8080
                x-forwarded-proto: http
            "#]],
        );
    }

    #[test]
    fn what_came_is_kept_and_fields_of_the_hop_are_not() {
        check(
            Request::builder()
                .uri("http://other.ns/x")
                .header("host", "lie")
                .header("connection", "close, X-Hop, x-forwarded-for")
                .header("x-hop", "1")
                .header("K-Proxy-Request", "activator")
                .header("k-original-host", "other")
                .header("knative-serving-default-route", "true")
                .header("k-of-a-user", "kept")
                .header("te", "gzip, trailers")
                .header("proxy-authorization", "secret")
                .header("transfer-encoding", "chunked")
                .header("x-forwarded-for", "198.51.100.1")
                .header("forwarded", "for=198.51.100.1")
                .header("x-forwarded-proto", "https")
                .header("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
            expect![[r#"
                GET /x
                forwarded: for=198.51.100.1, for=192.0.2.7;host=other.ns;proto=http
                host: other.ns
                k-of-a-user: kept
                te: trailers
                traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01
                x-forwarded-for: 198.51.100.1, 192.0.2.7
                x-forwarded-host: other.ns
                x-forwarded-proto: https
            "#]],
        );
    }

    /// CVE-2026-29054, CVE-2026-33433, CVE-2026-39858: neither the client nor a spelling of its own says who it is.
    #[test]
    fn what_a_client_says_of_itself_is_not_believed() {
        check_from(
            false,
            Request::builder()
                .uri("/")
                .header("host", "hello.ns")
                .header("connection", "x-forwarded-proto, X-Forwarded-For, forwarded, host, content-length")
                .header("content-length", "0")
                .header("x-forwarded-for", "198.51.100.1")
                .header("x_forwarded_for", "198.51.100.1")
                .header("x-forwarded_proto", "https")
                .header("x-forwarded-proto", "https")
                .header("x-forwarded-host", "admin.example.com")
                .header("x-forwarded-prefix", "/admin")
                .header("x-real-ip", "198.51.100.1")
                .header("forwarded", "for=198.51.100.1")
                .header("k_proxy_request", "activator")
                .header("transfer_encoding", "chunked")
                .header("content_length", "5")
                .header("x_own", "kept"),
            expect![[r#"
                GET /
                content-length: 0
                forwarded: for=192.0.2.7;host=hello.ns;proto=http
                host: hello.ns
                traceparent: 00-000000000000aaaa0000000000000011-0000000000000021-00
                x-forwarded-for: 192.0.2.7
                x-forwarded-host: hello.ns
                x-forwarded-proto: http
                x_own: kept
            "#]],
        );
    }

    #[test]
    fn the_last_forwarded_element_is_kept_per_host_and_ipv6_is_quoted() {
        let peer = Peer::new("2001:db8::1".parse().unwrap(), true, false);
        let of = |host: &'static str| peer.forwarded(&HeaderValue::from_static(host)).unwrap();
        assert_eq!(of("a"), "for=\"[2001:db8::1]\";host=a;proto=https");
        assert_eq!(of("b"), "for=\"[2001:db8::1]\";host=b;proto=https");
        assert_eq!(of("b"), of("b"));
        assert!(peer.forwarded(&HeaderValue::from_static("a\"b")).is_none());
        assert_eq!(Peer::new("::ffff:192.0.2.7".parse().unwrap(), false, false).address, "192.0.2.7");
    }

    #[test]
    fn a_request_is_for_one_host() {
        let of = |uri: &str, hosts: &[&str]| {
            let request = hosts.iter().fold(Request::builder().uri(uri), |request, host| request.header("host", *host));
            let mut buffer = [0; HOST_LIMIT_BYTES];
            host(&request.body(()).unwrap(), &mut buffer).map(str::to_owned).map_err(|failure| failure.to_string())
        };
        let ok = |host: &str| Ok(host.to_owned());
        assert_eq!(of("/", &["A.b:80"]), ok("a.b"));
        assert_eq!(of("http://a.b/", &[]), ok("a.b"));
        assert_eq!(of("http://a.b:80/", &["A.B."]), ok("a.b"));
        let other = "the request is malformed: its Host is another one than its target's";
        for (uri, host) in
            [("http://a.b/", "c.d"), ("http://a.b/", ""), ("http://x@a.b/", "a.b"), ("http://a.b/", "x@a.b")]
        {
            assert_eq!(of(uri, &[host]), Err(other.to_owned()), "{uri} {host}");
        }
        assert_eq!(of("/", &["a", "a"]), Err("the request is malformed: it has more than one Host".to_owned()));
        for (uri, hosts) in [("/", &[][..]), ("/", &["x@a.b"]), ("http://x@a.b/", &["x@a.b"]), ("/", &["a b"])] {
            assert_eq!(of(uri, hosts), Err("the request names no valid host".to_owned()), "{uri} {hosts:?}");
        }
    }

    proptest::proptest! {
        /// The trace id and the elements that are added are read from bytes of the client's.
        #[test]
        fn no_header_panics_or_ends_early(
            names in proptest::collection::vec("(x[-_])?(forwarded|host|traceparent|connection|te|k-a)([-_](for|proto))?", 0..6),
            values in proptest::collection::vec(proptest::collection::vec(proptest::prelude::any::<u8>(), 0..12), 6),
        ) {
            let mut request = Request::builder().uri("/");
            for (name, value) in names.iter().zip(&values) {
                if let Ok(value) = HeaderValue::from_bytes(value) {
                    request = request.header(name, value);
                }
            }
            let (mut head, ()) = request.body(()).unwrap().into_parts();
            let trace = Trace::of(&head.headers, Sampling::default(), || 1);
            to_workload(&mut head, &Peer::new("192.0.2.7".parse().unwrap(), false, true), &trace);
            let last = head.headers.get_all("x-forwarded-for").iter().next_back().unwrap();
            proptest::prop_assert!(last.as_bytes().ends_with(b"192.0.2.7"));
        }
    }

    #[test]
    fn a_websockets_key_is_16_bytes_in_base64() {
        assert_eq!(websocket_key([0, 0]), "AAAAAAAAAAAAAAAAAAAAAA==");
        // RFC 6455 section 1.3: the bytes of "the sample nonce".
        let bytes = *b"the sample nonce";
        let half = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap());
        assert_eq!(websocket_key([half(0), half(8)]), "dGhlIHNhbXBsZSBub25jZQ==");
    }

    #[test]
    fn http2_heads_name_the_authority() {
        let mut request = Request::builder().uri("/a?b").header("host", "h:80").body(()).unwrap();
        to_http2(&mut request);
        assert_eq!(request.uri(), "http://h:80/a?b");
        assert!(request.headers().is_empty());
    }
}
