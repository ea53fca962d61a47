//! A request that gets its slot before the codec sees it.
//!
//! A codec's connection holds several buffers. The first request of an HTTP/1 connection waits without one: all there is
//! of it is its head, as [`crate::wire`] has passed it.

use http::{HeaderName, HeaderValue, Method, Request, Uri, Version, header};

use crate::answer::Failure;
use crate::proxy::Arrival;
use crate::revision::Slot;

/// What was done for a request before the codec had it.
pub struct Early {
    /// The request.
    pub arrival: Arrival,
    /// Its slot, or why it has none.
    pub slot: Result<Slot, Failure>,
}

/// The head that these bytes begin with; `None` if it is none that the codec will take.
pub fn read_head(bytes: &[u8]) -> Option<Request<()>> {
    let lines = bytes.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let mut lines = lines.skip_while(|line| line.is_empty());
    let mut first = lines.next()?.split(|byte| *byte == b' ');
    let mut request = Request::new(());
    *request.method_mut() = Method::from_bytes(first.next()?).ok()?;
    *request.uri_mut() = Uri::try_from(first.next()?).ok()?;
    *request.version_mut() = if first.next()? == b"HTTP/1.0" { Version::HTTP_10 } else { Version::HTTP_11 };
    for line in lines.take_while(|line| !line.is_empty()) {
        let colon = line.iter().position(|byte| *byte == b':')?;
        let name = HeaderName::from_bytes(&line[..colon]).ok()?;
        request.headers_mut().append(name, HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).ok()?);
    }
    Some(request)
}

/// The length of the body that a head announces.
pub fn announced_length(request: &Request<()>) -> Option<u64> {
    request.headers().get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_read_as_it_stands() {
        let bytes =
            b"\r\nPOST http://a/x?y HTTP/1.0\r\nHost: a\r\nx:\r\nX: \t z \r\ncontent-length: 7\r\n\r\nb: c\r\n\r\n";
        let head = read_head(bytes).unwrap();
        assert_eq!((head.method(), head.uri().to_string().as_str()), (&Method::POST, "http://a/x?y"));
        assert_eq!((head.version(), announced_length(&head)), (Version::HTTP_10, Some(7)));
        let values: Vec<_> = head.headers().get_all("x").iter().collect();
        assert_eq!(values, ["", "z"]);
        assert!(head.headers().get("b").is_none());
        assert!(read_head(b"GET\r\n\r\n").is_none());
    }
}
