//! A blocking netlink socket that sends requests in batches.
//!
//! The kernel handles a request while it is being sent, so a batch costs one system call out and
//! one per answer in, and no task switch. Sockets stay in the network namespace they were made in.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR};
use netlink_packet_core::{NetlinkDeserializable, NetlinkHeader, NetlinkSerializable};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use netlink_sys::{Socket, SocketAddr};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};

const HEADER_BYTES: usize = 16;
const RECEIVE_BYTES: usize = 64 * 1024;
/// The largest batch: the static rule set is about 200 KiB.
const SEND_BYTES: usize = 4 * 1024 * 1024;

/// One netlink message without its header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// What it does, for error texts ("create the bridge").
    pub what: &'static str,
    /// The message type.
    pub kind: u16,
    /// Flags besides `NLM_F_REQUEST`.
    pub flags: u16,
    /// The family's own header and its attributes.
    pub payload: Vec<u8>,
    /// An errno that counts as done ("no such device" when removing).
    pub tolerate: Option<i32>,
}

impl Request {
    /// A request of the route family.
    pub fn route(what: &'static str, message: &RouteNetlinkMessage, flags: u16) -> Self {
        let mut payload = vec![0; NetlinkSerializable::buffer_len(message)];
        message.serialize(&mut payload);
        Self { what, kind: message.message_type(), flags, payload, tolerate: None }
    }

    /// The same request, done too when the kernel answers with `errno`.
    pub fn tolerating(mut self, errno: i32) -> Self {
        self.tolerate = Some(errno);
        self
    }
}

/// The kernel refused a request, or could not be asked.
#[derive(Debug, thiserror::Error)]
#[error("the kernel refused to {what}")]
pub struct Refused {
    /// What was asked.
    pub what: &'static str,
    /// The kernel's answer.
    #[source]
    pub source: io::Error,
}

impl Refused {
    /// The kernel's error number.
    pub fn errno(&self) -> Option<i32> {
        self.source.raw_os_error()
    }
}

/// One answer of a dump.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The message type.
    pub kind: u16,
    /// The bytes after the netlink header.
    pub payload: Vec<u8>,
}

/// A netlink socket in the namespace of the thread that opened it.
pub struct Netlink {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl std::fmt::Debug for Netlink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Netlink").field("sequence", &self.sequence).finish_non_exhaustive()
    }
}

impl Netlink {
    /// Opens a socket for links, addresses and routes.
    ///
    /// # Errors
    ///
    /// The kernel has no such family, or the limit of open files is reached.
    pub fn route() -> io::Result<Self> {
        Self::open(NETLINK_ROUTE)
    }

    /// Opens a socket for nf_tables, with room for a whole rule set in one send.
    ///
    /// # Errors
    ///
    /// As [`Netlink::route`].
    pub fn netfilter() -> io::Result<Self> {
        Self::open(NETLINK_NETFILTER)
    }

    fn open(protocol: isize) -> io::Result<Self> {
        let socket = Socket::new(protocol)?;
        let fd = borrow(&socket);
        // An answer is there when the send returns; the limit is for a kernel that sends none.
        setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::seconds(10))?;
        if protocol == NETLINK_NETFILTER {
            // Refused without CAP_NET_ADMIN; the send then says so in plainer words.
            let _ = setsockopt(&fd, sockopt::SndBufForce, &SEND_BYTES);
        }
        Ok(Self { socket, sequence: 0, buffer: Vec::with_capacity(RECEIVE_BYTES) })
    }

    /// Sends `requests` at once and waits until the kernel has done all of them.
    ///
    /// # Errors
    ///
    /// [`Refused`] for the first one that failed. Those after it may still have been done: only an
    /// nf_tables batch is atomic.
    pub fn run(&mut self, requests: &[Request]) -> Result<(), Refused> {
        let Some(last) = requests.last() else { return Ok(()) };
        let first_sequence = self.sequence + 1;
        let mut out = Vec::with_capacity(requests.iter().map(|r| r.payload.len() + 20).sum());
        for (index, request) in requests.iter().enumerate() {
            let ack = if index + 1 == requests.len() { NLM_F_ACK } else { 0 };
            self.sequence += 1;
            encode(&mut out, request, ack, self.sequence);
        }
        let failed = |what, source| Refused { what, source };
        self.send(&out).map_err(|source| failed(last.what, source))?;
        let mut first_error = None;
        loop {
            let answers = self.receive().map_err(|source| failed(last.what, source))?;
            for (sequence, answer) in answers {
                let index = sequence.wrapping_sub(first_sequence) as usize;
                let Some(request) = requests.get(index) else { continue };
                let Some(code) = error_code(&answer) else { continue };
                if code != 0 && request.tolerate != Some(code) && first_error.is_none() {
                    let source = io::Error::from_raw_os_error(code);
                    first_error = Some(failed(request.what, source));
                }
                if index + 1 == requests.len() {
                    return first_error.map_or(Ok(()), Err);
                }
            }
        }
    }

    /// Sends an nf_tables batch: one atomic change, framed by `begin` and `end`.
    ///
    /// # Errors
    ///
    /// [`Refused`] for the first request that failed; nothing was changed then.
    pub fn run_atomic(&mut self, begin: &Request, requests: &[Request], end: &Request) -> Result<(), Refused> {
        let Some(last) = requests.last() else { return Ok(()) };
        let failed = |what, source| Refused { what, source };
        let first_sequence = self.sequence + 1;
        let mut out = Vec::new();
        for (index, request) in [begin].into_iter().chain(requests).chain([end]).enumerate() {
            let ack = if index == requests.len() { NLM_F_ACK } else { 0 };
            self.sequence += 1;
            encode(&mut out, request, ack, self.sequence);
        }
        self.send(&out).map_err(|source| failed(last.what, source))?;
        loop {
            let answers = self.receive().map_err(|source| failed(last.what, source))?;
            for (sequence, answer) in answers {
                // 0 is the frame itself: refused as a whole for want of a capability.
                let index = sequence.wrapping_sub(first_sequence) as usize;
                let Some(code) = error_code(&answer) else { continue };
                let what = index.checked_sub(1).and_then(|i| requests.get(i)).unwrap_or(last).what;
                if code != 0 {
                    return Err(failed(what, io::Error::from_raw_os_error(code)));
                }
                if index == requests.len() {
                    return Ok(());
                }
            }
        }
    }

    /// All answers to a dump request.
    ///
    /// # Errors
    ///
    /// [`Refused`] when the kernel knows no such list.
    pub fn dump(&mut self, request: &Request) -> Result<Vec<Answer>, Refused> {
        let mut found = Vec::new();
        self.ask(request, NLM_F_DUMP, &mut found)?;
        Ok(found)
    }

    /// The one answer to a get request; `None` when the kernel sent none.
    ///
    /// # Errors
    ///
    /// [`Refused`], for one when there is no such object.
    pub fn get(&mut self, request: &Request) -> Result<Option<Answer>, Refused> {
        let mut found = Vec::new();
        self.ask(request, NLM_F_ACK, &mut found)?;
        Ok(found.into_iter().next())
    }

    /// The links, addresses or routes that `request` lists, decoded; what cannot be decoded is left
    /// out.
    ///
    /// # Errors
    ///
    /// As [`Netlink::dump`].
    pub fn dump_route(&mut self, request: &Request) -> Result<Vec<RouteNetlinkMessage>, Refused> {
        Ok(self.dump(request)?.iter().filter_map(decode_route).collect())
    }

    fn ask(&mut self, request: &Request, flags: u16, found: &mut Vec<Answer>) -> Result<(), Refused> {
        let failed = |source| Refused { what: request.what, source };
        self.sequence += 1;
        let mut out = Vec::with_capacity(request.payload.len() + HEADER_BYTES);
        encode(&mut out, request, flags, self.sequence);
        self.send(&out).map_err(failed)?;
        loop {
            for (sequence, answer) in self.receive().map_err(failed)? {
                if sequence != self.sequence {
                    continue;
                }
                match (answer.kind, error_code(&answer)) {
                    (NLMSG_DONE, _) | (_, Some(0)) => return Ok(()),
                    (_, Some(code)) => return Err(failed(io::Error::from_raw_os_error(code))),
                    _ => found.push(answer),
                }
            }
        }
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.socket.send_to(bytes, &SocketAddr::new(0, 0), 0).map(drop)
    }

    fn receive(&mut self) -> io::Result<Vec<(u32, Answer)>> {
        loop {
            self.buffer.clear();
            match self.socket.recv_from(&mut &mut self.buffer, 0) {
                // Only the kernel (port 0) is believed.
                Ok((_, from)) if from.port_number() != 0 => continue,
                Ok(_) => return Ok(decode(&self.buffer)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
        }
    }
}

/// Decodes one answer of the route family.
pub fn decode_route(answer: &Answer) -> Option<RouteNetlinkMessage> {
    let mut header = NetlinkHeader::default();
    header.message_type = answer.kind;
    RouteNetlinkMessage::deserialize(&header, &answer.payload).ok()
}

fn borrow(socket: &Socket) -> BorrowedFd<'_> {
    // SAFETY: the descriptor is open for as long as `socket`, which the result borrows.
    unsafe { BorrowedFd::borrow_raw(socket.as_raw_fd()) }
}

fn encode(out: &mut Vec<u8>, request: &Request, flags: u16, sequence: u32) {
    let length = HEADER_BYTES + request.payload.len();
    let length = u32::try_from(length).expect("a message is bounded by the send buffer");
    out.extend_from_slice(&length.to_ne_bytes());
    out.extend_from_slice(&request.kind.to_ne_bytes());
    out.extend_from_slice(&(request.flags | NLM_F_REQUEST | flags).to_ne_bytes());
    out.extend_from_slice(&sequence.to_ne_bytes());
    out.extend_from_slice(&0u32.to_ne_bytes());
    out.extend_from_slice(&request.payload);
    out.resize(out.len().next_multiple_of(4), 0);
}

/// Splits a datagram into its messages; a cut one ends the list.
fn decode(mut bytes: &[u8]) -> Vec<(u32, Answer)> {
    let mut found = Vec::new();
    while bytes.len() >= HEADER_BYTES {
        let word = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let length = word(0) as usize;
        if length < HEADER_BYTES || length > bytes.len() {
            break;
        }
        let kind = u16::from_ne_bytes([bytes[4], bytes[5]]);
        found.push((word(8), Answer { kind, payload: bytes[HEADER_BYTES..length].to_vec() }));
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

/// The positive error number of an error answer, 0 for an acknowledgement.
fn error_code(answer: &Answer) -> Option<i32> {
    let code = answer.payload.first_chunk::<4>()?;
    (answer.kind == NLMSG_ERROR).then(|| i32::from_ne_bytes(*code).saturating_neg())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_are_split_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            for (_, answer) in decode(&bytes) {
                let _ = error_code(&answer);
                let _ = decode_route(&answer);
            }
        }

        #[test]
        fn what_is_encoded_is_decoded(
            payloads in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..6),
        ) {
            let mut out = Vec::new();
            for (index, payload) in payloads.iter().enumerate() {
                let request = Request {
                    what: "test", kind: 7, flags: 0, payload: payload.clone(), tolerate: None,
                };
                encode(&mut out, &request, 0, index as u32);
            }
            let back: Vec<Vec<u8>> = decode(&out).into_iter().map(|(_, a)| a.payload).collect();
            prop_assert_eq!(back, payloads);
        }
    }

    #[test]
    fn the_loopback_link_is_listed_by_the_kernel() {
        use netlink_packet_route::link::LinkMessage;
        let message = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let mut socket = Netlink::route().unwrap();
        let links = socket.dump_route(&Request::route("list links", &message, 0)).unwrap();
        assert!(!links.is_empty());
    }
}
