//! The server: sockets, limits, and the making of answers.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, SOA};
use hickory_proto::rr::{Name, RData, Record};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::debug;

use super::Upstreams;
use super::cache::Cache;
use super::upstream::{self, UDP_PAYLOAD};
use super::zone::{self, Decision, Resolve};
use crate::network::cidr::Cidr;

/// Questions being answered at once; more by UDP are dropped, more by TCP wait.
const MAX_IN_FLIGHT: usize = 512;
/// TCP connections at once; more are closed.
const MAX_CONNECTIONS: usize = 128;
/// The longest question.
const MAX_QUESTION_BYTES: usize = 4096;
/// How long a TCP connection may be silent.
const IDLE: Duration = Duration::from_secs(10);
/// How long all tries at the upstream resolvers may take.
const UPSTREAM: Duration = Duration::from_secs(5);
/// How long pods may keep a cluster name.
const CLUSTER_TTL_SECONDS: u32 = 5;

/// What the server needs to answer.
pub struct DnsServer {
    /// The bridge's address.
    pub own: Ipv4Addr,
    /// Who may ask, besides this machine.
    pub pods: Cidr,
    /// The domains answered here, lower case, no dot at either end.
    pub zones: Vec<String>,
    /// Where cluster names lead.
    pub resolve: Arc<dyn Resolve>,
    /// Who knows all other names.
    pub upstreams: Upstreams,
    cache: Cache,
    in_flight: Arc<Semaphore>,
}

impl std::fmt::Debug for DnsServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DnsServer").field("own", &self.own).finish_non_exhaustive()
    }
}

/// Opens both sockets on `address`.
///
/// # Errors
///
/// The port is taken, or the address is not there.
pub async fn bind(address: SocketAddr) -> io::Result<(UdpSocket, TcpListener)> {
    Ok((UdpSocket::bind(address).await?, TcpListener::bind(address).await?))
}

/// Answers on both sockets until `stop`.
pub fn serve(
    server: Arc<DnsServer>,
    (udp, tcp): (UdpSocket, TcpListener),
    tasks: &TaskTracker,
    stop: CancellationToken,
) {
    tasks.spawn(serve_udp(server.clone(), Arc::new(udp), tasks.clone(), stop.clone()));
    tasks.spawn(serve_tcp(server, tcp, tasks.clone(), stop));
}

async fn serve_udp(server: Arc<DnsServer>, socket: Arc<UdpSocket>, tasks: TaskTracker, stop: CancellationToken) {
    let mut buffer = vec![0; MAX_QUESTION_BYTES];
    loop {
        let received = tokio::select! {
            () = stop.cancelled() => return,
            received = socket.recv_from(&mut buffer) => received,
        };
        let Ok((length, from)) = received else { continue };
        if !server.may_ask(from.ip()) {
            continue;
        }
        let Ok(permit) = server.in_flight.clone().try_acquire_owned() else { continue };
        let question = buffer[..length].to_vec();
        let (server, socket, stop) = (server.clone(), socket.clone(), stop.clone());
        tasks.spawn(async move {
            let answer = stop.run_until_cancelled(server.answer(&question, true)).await;
            if let Some(Some(answer)) = answer {
                let _ = socket.send_to(&answer, from).await;
            }
            drop(permit);
        });
    }
}

async fn serve_tcp(server: Arc<DnsServer>, listener: TcpListener, tasks: TaskTracker, stop: CancellationToken) {
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, from) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, most likely: let others close some.
                debug!(%error, "cannot accept a DNS connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        if !server.may_ask(from.ip()) {
            continue;
        }
        let Ok(permit) = connections.clone().try_acquire_owned() else { continue };
        let (server, stop) = (server.clone(), stop.clone());
        tasks.spawn(async move {
            let _ = stop.run_until_cancelled(server.converse(stream)).await;
            drop(permit);
        });
    }
}

impl DnsServer {
    /// A server with an empty cache.
    pub fn new(own: Ipv4Addr, pods: Cidr, zones: Vec<String>, resolve: Arc<dyn Resolve>, upstreams: Upstreams) -> Self {
        let in_flight = Arc::new(Semaphore::new(MAX_IN_FLIGHT));
        Self { own, pods, zones, resolve, upstreams, cache: Cache::default(), in_flight }
    }

    fn may_ask(&self, from: IpAddr) -> bool {
        matches!(from, IpAddr::V4(from) if self.pods.contains(from))
    }

    async fn converse(&self, mut stream: TcpStream) -> io::Result<()> {
        loop {
            let question = timeout(IDLE, read_question(&mut stream)).await??;
            let permit = self.in_flight.acquire().await.map_err(io::Error::other)?;
            let Some(answer) = self.answer(&question, false).await else { return Ok(()) };
            drop(permit);
            let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
            let framed = [&length.to_be_bytes()[..], &answer].concat();
            timeout(IDLE, stream.write_all(&framed)).await??;
        }
    }

    /// The answer to a question's bytes; `None` for what deserves none.
    pub async fn answer(&self, bytes: &[u8], is_udp: bool) -> Option<Vec<u8>> {
        let Ok(request) = Message::from_vec(bytes) else { return malformed(bytes) };
        if request.metadata.message_type != MessageType::Query {
            return None;
        }
        let answer = self.respond(&request).await;
        let limit = match is_udp {
            true => usize::from(request.max_payload().min(UDP_PAYLOAD)),
            false => usize::from(u16::MAX),
        };
        let bytes = answer.to_vec().ok()?;
        if bytes.len() <= limit { Some(bytes) } else { answer.truncate().to_vec().ok() }
    }

    async fn respond(&self, request: &Message) -> Message {
        let [query] = request.queries.as_slice() else {
            return reply(request, ResponseCode::FormErr);
        };
        if request.metadata.op_code != OpCode::Query {
            return reply(request, ResponseCode::NotImp);
        }
        match zone::decide(query, &self.zones, self.pods, &*self.resolve) {
            Decision::Forward => self.forward(request, query).await,
            Decision::Code(code) => {
                let mut message = reply(request, code);
                message.metadata.authoritative = true;
                if code == ResponseCode::NXDomain {
                    message.authorities.extend(self.authority());
                }
                message
            }
            Decision::Addresses(addresses) => {
                let mut message = reply(request, ResponseCode::NoError);
                message.metadata.authoritative = true;
                if addresses.is_empty() {
                    message.authorities.extend(self.authority());
                }
                message.answers = addresses.into_iter().map(|ip| record(query, ip)).collect();
                message
            }
        }
    }

    async fn forward(&self, request: &Message, query: &Query) -> Message {
        let (name, kind) = (zone::plain_name(query), query.query_type());
        let found = match self.cache.get(&name, kind) {
            Some(found) => Some(found),
            None => {
                let servers = self.upstreams.servers(self.own);
                let asked = timeout(UPSTREAM, upstream::ask(&servers, query)).await;
                match asked.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                    Ok(answer) => {
                        self.cache.put(&name, kind, &answer);
                        Some(answer)
                    }
                    Err(error) => {
                        debug!(%name, %error, "no upstream resolver answered");
                        None
                    }
                }
            }
        };
        let Some(found) = found else { return reply(request, ResponseCode::ServFail) };
        let mut message = reply(request, found.metadata.response_code);
        message.answers = found.answers;
        message.authorities = found.authorities;
        message
    }

    /// Who is responsible for the cluster's names: tells clients how long to remember a "no".
    fn authority(&self) -> Option<Record> {
        let zone = Name::from_ascii(format!("{}.", self.zones.first()?)).ok()?;
        let server = Name::from_ascii("ns.dns.").ok()?.append_domain(&zone).ok()?;
        let contact = Name::from_ascii("hostmaster.").ok()?.append_domain(&zone).ok()?;
        let soa = SOA::new(server, contact, 1, 7200, 1800, 86400, CLUSTER_TTL_SECONDS);
        Some(Record::from_rdata(zone, CLUSTER_TTL_SECONDS, RData::SOA(soa)))
    }
}

async fn read_question(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let length = usize::from(stream.read_u16().await?);
    if length > MAX_QUESTION_BYTES {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut question = vec![0; length];
    stream.read_exact(&mut question).await?;
    Ok(question)
}

/// An answer without records to `request`.
fn reply(request: &Message, code: ResponseCode) -> Message {
    let mut message = Message::response(request.metadata.id, request.metadata.op_code);
    message.metadata.recursion_desired = request.metadata.recursion_desired;
    message.metadata.recursion_available = true;
    message.metadata.response_code = code;
    message.queries = request.queries.clone();
    if request.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(UDP_PAYLOAD);
        message.set_edns(edns);
    }
    message
}

/// "Format error" with the question's number, where there is one and it is no answer itself.
fn malformed(bytes: &[u8]) -> Option<Vec<u8>> {
    let [high, low, flags] = *bytes.first_chunk::<3>()?;
    let is_response = flags & 0x80 != 0;
    if is_response || bytes.len() < 12 {
        return None;
    }
    let id = u16::from_be_bytes([high, low]);
    Message::error_msg(id, OpCode::Query, ResponseCode::FormErr).to_vec().ok()
}

fn record(query: &Query, address: IpAddr) -> Record {
    let data = match address {
        IpAddr::V4(address) => RData::A(A(address)),
        IpAddr::V6(address) => RData::AAAA(AAAA(address)),
    };
    Record::from_rdata(query.name().clone(), CLUSTER_TTL_SECONDS, data)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::rr::RecordType;
    use proptest::prelude::*;

    struct Many(usize);

    impl Resolve for Many {
        fn lookup(&self, name: &str) -> Option<Vec<IpAddr>> {
            (name == "many.default.svc.cluster.local")
                .then(|| (0..self.0).map(|n| IpAddr::from([10, 200, 1, n as u8])).collect())
        }
    }

    fn server(count: usize, upstreams: Vec<SocketAddr>) -> DnsServer {
        DnsServer::new(
            Ipv4Addr::new(10, 200, 0, 1),
            "10.200.0.0/20".parse().unwrap(),
            vec!["cluster.local".to_owned()],
            Arc::new(Many(count)),
            Upstreams::Fixed(upstreams),
        )
    }

    fn ask(name: &str) -> Vec<u8> {
        let mut message = Message::query();
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
        message.to_vec().unwrap()
    }

    async fn answer(server: &DnsServer, name: &str, is_udp: bool) -> Message {
        Message::from_vec(&server.answer(&ask(name), is_udp).await.unwrap()).unwrap()
    }

    #[tokio::test]
    async fn a_long_answer_is_cut_by_udp_and_whole_by_tcp() {
        let server = server(100, vec![]);
        let name = "many.default.svc.cluster.local.";
        let udp = answer(&server, name, true).await;
        assert!(udp.metadata.truncation && udp.answers.is_empty());
        let tcp = answer(&server, name, false).await;
        assert_eq!(tcp.answers.len(), 100);
        assert!(tcp.metadata.authoritative && tcp.metadata.recursion_available);
    }

    #[tokio::test]
    async fn an_unknown_cluster_name_tells_how_long_to_remember() {
        let got = answer(&server(0, vec![]), "x.default.svc.cluster.local.", true).await;
        assert_eq!(got.metadata.response_code, ResponseCode::NXDomain);
        assert_eq!(got.authorities.len(), 1);
    }

    #[tokio::test]
    async fn without_a_resolver_other_names_fail() {
        let got = answer(&server(0, vec![]), "example.com.", true).await;
        assert_eq!(got.metadata.response_code, ResponseCode::ServFail);
    }

    #[tokio::test]
    async fn other_names_are_asked_upstream_once_and_kept() {
        let upstream = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let server = server(0, vec![upstream.local_addr().unwrap()]);
        let answering = tokio::spawn(async move {
            let mut buffer = [0; 2000];
            let (length, from) = upstream.recv_from(&mut buffer).await.unwrap();
            let question = Message::from_vec(&buffer[..length]).unwrap();
            let mut forged = reply(&question, ResponseCode::NXDomain);
            forged.metadata.id ^= 1;
            upstream.send_to(&forged.to_vec().unwrap(), from).await.unwrap();
            let mut good = reply(&question, ResponseCode::NoError);
            good.add_answer(record(&question.queries[0], IpAddr::from([192, 0, 2, 7])));
            upstream.send_to(&good.to_vec().unwrap(), from).await.unwrap();
            // Gone now: the second answer below can only be a kept one.
        });
        let first = answer(&server, "example.com.", true).await;
        answering.await.unwrap();
        let second = answer(&server, "EXAMPLE.com.", true).await;
        assert_eq!(first.answers.len(), 1);
        assert_eq!(first.answers[0].data, second.answers[0].data);
    }

    #[test]
    fn only_pods_may_ask() {
        let server = server(0, vec![]);
        assert!(server.may_ask("10.200.3.4".parse().unwrap()));
        for other in ["192.0.2.1", "127.0.0.1", "10.200.16.1", "::1"] {
            assert!(!server.may_ask(other.parse().unwrap()), "{other}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async { server(1, vec![]).answer(&bytes, true).await });
        }
    }
}
