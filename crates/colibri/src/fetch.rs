//! Functions' code at a URL: an HTTP client that reaches the network, and nothing of the machine itself.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use functions::Fetch;
use functions::pack::ARCHIVE_LIMIT_BYTES;
use futures::future::BoxFuture;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::redirect::Policy;
use reqwest::{Client, Url};

use crate::cli::error::causes;

/// Longest time until a connection stands.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest time for all of it.
const TIMEOUT: Duration = Duration::from_secs(300);
/// Most redirects that are followed.
const REDIRECTS: usize = 5;

/// Fetches over HTTP. Who may write Functions names the URL: an address of this machine, of its links or of a cloud's
/// metadata service is none of theirs.
#[derive(Clone)]
pub struct HttpFetch {
    client: Result<Client, String>,
    allowed: Allowed,
}

/// Whether an address may be asked.
type Allowed = fn(IpAddr) -> bool;

impl HttpFetch {
    /// A client that asks no address of this machine.
    pub fn new() -> Self {
        Self::to(is_of_the_network)
    }

    fn to(allowed: Allowed) -> Self {
        let redirects = Policy::custom(move |attempt| {
            if attempt.previous().len() > REDIRECTS {
                return attempt.error(format!("it redirects more than {REDIRECTS} times"));
            }
            match check(attempt.url(), allowed) {
                Ok(()) => attempt.follow(),
                Err(why) => attempt.error(why),
            }
        });
        // A provider that is installed already is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder()
            .user_agent(concat!("colibri/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(TIMEOUT)
            .redirect(redirects)
            .dns_resolver(Arc::new(Guarded(allowed)))
            .build();
        Self { client: client.map_err(|error| causes(&error)), allowed }
    }

    async fn get(self, url: String) -> Result<Vec<u8>, String> {
        let client = self.client?;
        let parsed = Url::parse(&url).map_err(|error| format!("{url} is not a URL: {error}"))?;
        check(&parsed, self.allowed)?;
        let failed = |error: reqwest::Error| format!("{url} cannot be fetched: {}", causes(&error.without_url()));
        let mut response = client.get(parsed).send().await.map_err(failed)?;
        if !response.status().is_success() {
            return Err(format!("{url} answered {}; what is there must be public", response.status()));
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            if (body.len() + chunk.len()) as u64 > ARCHIVE_LIMIT_BYTES {
                return Err(format!("what {url} gives is longer than {} MiB", ARCHIVE_LIMIT_BYTES >> 20));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }
}

impl Fetch for HttpFetch {
    fn fetch(&self, url: &str) -> BoxFuture<'static, Result<Vec<u8>, String>> {
        Box::pin(self.clone().get(url.to_owned()))
    }
}

/// Refuses a URL whose host is an address that may not be asked. Names are looked up by [`Guarded`].
fn check(url: &Url, allowed: Allowed) -> Result<(), String> {
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    match address {
        Ok(address) if !allowed(address) => Err(refusal(host)),
        _ => Ok(()),
    }
}

fn refusal(host: &str) -> String {
    format!("{host} is an address of this machine or its links, where no code is fetched; name a server of the network")
}

/// Looks names up and leaves out addresses that may not be asked.
struct Guarded(Allowed);

impl Resolve for Guarded {
    fn resolve(&self, name: Name) -> Resolving {
        let allowed = self.0;
        Box::pin(async move {
            let found: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            let asked: Vec<SocketAddr> = found.iter().copied().filter(|address| allowed(address.ip())).collect();
            if asked.is_empty() && !found.is_empty() {
                return Err(refusal(name.as_str()).into());
            }
            Ok(Box::new(asked.into_iter()) as Addrs)
        })
    }
}

/// Neither this machine, nor its links, nor nobody or everybody.
fn is_of_the_network(address: IpAddr) -> bool {
    /// Where Amazon's machines find their credentials over IPv6, and what else lies beside it.
    const METADATA: [u16; 2] = [0xfd00, 0x0ec2];
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            !(v4.is_loopback() || v4.is_link_local() || v4.is_unspecified() || v4.is_broadcast() || v4.is_multicast())
                && v4.octets()[0] != 0
        }
        IpAddr::V6(v6) => {
            let begin = [v6.segments()[0], v6.segments()[1]];
            !(v6.is_loopback() || v6.is_unspecified() || v6.is_multicast() || v6.is_unicast_link_local())
                && begin != METADATA
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn addresses_of_the_machine_are_told_from_those_of_the_network() {
        for (address, expected) in [
            ("127.0.0.1", false),
            ("127.9.9.9", false),
            ("0.0.0.0", false),
            ("0.1.2.3", false),
            ("169.254.169.254", false),
            ("224.0.0.1", false),
            ("255.255.255.255", false),
            ("::1", false),
            ("::", false),
            ("::ffff:127.0.0.1", false),
            ("::ffff:169.254.169.254", false),
            ("fe80::1", false),
            ("ff02::1", false),
            ("fd00:ec2::254", false),
            ("10.0.0.1", true),
            ("192.0.2.1", true),
            ("2001:db8::1", true),
            ("fd00:1::1", true),
        ] {
            assert_eq!(is_of_the_network(address.parse().unwrap()), expected, "{address}");
        }
    }

    #[tokio::test]
    async fn nothing_of_this_machine_is_asked() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        for host in ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "2130706433", "0x7f.1"] {
            let error = HttpFetch::new().fetch(&format!("http://{host}:{port}/")).await.unwrap_err();
            assert!(error.contains("an address of this machine"), "{host}: {error}");
        }
        let nobody = listener.accept().unwrap_err();
        assert_eq!(nobody.kind(), std::io::ErrorKind::WouldBlock, "somebody was asked");
    }

    /// What is said of a server that answers so, where this machine may be asked.
    async fn ask(answer: &'static str) -> Result<Vec<u8>, String> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/a.tar", listener.local_addr().unwrap());
        let served = tokio::spawn(async move {
            let (mut connection, _) = listener.accept().await.unwrap();
            let mut head = [0; 4096];
            let _ = connection.read(&mut head).await.unwrap();
            connection.write_all(answer.as_bytes()).await.unwrap();
        });
        let result = HttpFetch::to(|address| address.is_loopback()).fetch(&url).await;
        served.abort();
        result
    }

    #[tokio::test]
    async fn what_a_server_gives_is_taken_and_what_it_refuses_is_told() {
        let good = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\ncode";
        assert_eq!(ask(good).await.unwrap(), b"code");
        let missing = "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        assert!(ask(missing).await.unwrap_err().contains("answered 404 Not Found"));
        let cut = "HTTP/1.1 200 OK\r\nContent-Length: 40\r\nConnection: close\r\n\r\ncode";
        assert!(ask(cut).await.unwrap_err().contains("cannot be fetched"));
        let elsewhere =
            "HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        let error = ask(elsewhere).await.unwrap_err();
        assert!(error.contains("169.254.169.254 is an address of this machine"), "{error}");
    }
}
