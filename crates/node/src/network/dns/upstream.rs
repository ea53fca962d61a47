//! Asking another resolver: UDP first, TCP when the answer is cut.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, Query};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

/// The answer size we ask for: what passes every link without fragments.
pub const UDP_PAYLOAD: u16 = 1232;
const ONE_TRY: Duration = Duration::from_secs(2);

/// Asks `servers` in order, twice, and gives the first answer.
///
/// # Errors
///
/// None answered.
pub async fn ask(servers: &[SocketAddr], query: &Query) -> io::Result<Message> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "no resolver is configured");
    for server in servers.iter().chain(servers) {
        let attempt = async {
            let answer = ask_udp(*server, query).await?;
            if answer.metadata.truncation { ask_tcp(*server, query).await } else { Ok(answer) }
        };
        match timeout(ONE_TRY, attempt).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => last = error,
            Err(_) => last = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(last)
}

fn question(query: &Query) -> io::Result<(Message, Vec<u8>)> {
    let mut message = Message::query(); // with a random number
    message.metadata.recursion_desired = true;
    message.add_query(query.clone());
    let mut edns = Edns::new();
    edns.set_max_payload(UDP_PAYLOAD);
    message.set_edns(edns);
    let bytes = message.to_vec().map_err(io::Error::other)?;
    Ok((message, bytes))
}

async fn ask_udp(server: SocketAddr, query: &Query) -> io::Result<Message> {
    let (asked, bytes) = question(query)?;
    // A new socket per question: its random port is half of what a forger must guess.
    let local: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(local).await?;
    socket.connect(server).await?;
    socket.send(&bytes).await?;
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if let Some(answer) = matching(&buffer[..length], &asked) {
            return Ok(answer);
        }
    }
}

async fn ask_tcp(server: SocketAddr, query: &Query) -> io::Result<Message> {
    let (asked, bytes) = question(query)?;
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes()[..], &bytes].concat()).await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; length.into()];
    stream.read_exact(&mut answer).await?;
    matching(&answer, &asked).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the answer fits no question"))
}

/// The answer in `bytes`, if it belongs to what was asked.
fn matching(bytes: &[u8], asked: &Message) -> Option<Message> {
    let answer = Message::from_vec(bytes).ok()?;
    let fits = answer.metadata.id == asked.metadata.id
        && answer.metadata.message_type == MessageType::Response
        && answer.queries == asked.queries;
    fits.then_some(answer)
}
