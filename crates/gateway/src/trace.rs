//! W3C Trace Context: the trace that a request belongs to. Pure.
//!
//! A `traceparent` is read strictly: what is not exactly one valid value is as good as none, and begins a new trace. The
//! parent's decision whether the trace is sampled is kept; who begins one decides by the trace's id, as OpenTelemetry's
//! `TraceIDRatioBased` does, so that whoever samples by it decides alike. The gateway's own span takes the parent's place
//! only where it is sent to a collector: else it would be a hole in the trace.
//!
//! Source: W3C Trace Context (level 1, and the random flag of level 2), sections 3.2 and 3.3.

use http::header::{HeaderMap, HeaderName, HeaderValue};

/// Names the trace, the parent and whether it is sampled.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
const SAMPLED: u8 = 1;
/// Flags that have a meaning: sampled, and (level 2) random.
const KNOWN_FLAGS: u8 = 3;
const LENGTH: usize = 55;
/// Most members of a `tracestate`.
const MEMBERS: usize = 32;

/// Which traces are sent to a collector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sampling {
    /// Whether any are.
    pub on: bool,
    /// Of those that begin here: those whose id, its last 63 bits but one, is below.
    pub bound: u64,
}

impl Sampling {
    /// Traces are sent, `share` of those that begin here.
    pub fn of(share: f64) -> Self {
        Self { on: true, bound: (share.clamp(0.0, 1.0) * (1_u64 << 63) as f64) as u64 }
    }
}

/// The trace of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trace {
    /// Its id.
    pub id: u128,
    /// The gateway's own span.
    pub span: u64,
    /// The client's span; 0 where the trace begins here.
    pub parent: u64,
    /// Whether the gateway's spans are sent to a collector.
    pub exported: bool,
    flags: u8,
}

impl Trace {
    /// The trace that the request says it belongs to, or a new one.
    pub fn of(headers: &HeaderMap, sampling: Sampling, mut random: impl FnMut() -> u64) -> Self {
        let mut values = headers.get_all(TRACEPARENT).iter();
        let parent = values.next().and_then(|value| parse(value.as_bytes())).filter(|_| values.next().is_none());
        match parent {
            Some(Parent { id, span: parent, flags }) => {
                let exported = sampling.on && flags & SAMPLED != 0;
                let span = if exported { random() | 1 } else { 0 };
                Self { id, span, parent, exported, flags }
            }
            None => {
                // No id may be all zeros.
                let (high, low, span) = (random(), random() | 1, random() | 1);
                let exported = sampling.on && low >> 1 < sampling.bound;
                let id = (u128::from(high) << 64) | u128::from(low);
                Self { id, span, parent: 0, exported, flags: u8::from(exported) }
            }
        }
    }

    /// Says in the header which trace the request belongs to.
    pub fn write(&self, headers: &mut HeaderMap) {
        let begun = self.parent == 0;
        if begun || self.exported {
            headers.insert(TRACEPARENT, self.value());
        }
        // What was said of another trace, or is no such list, is nobody's.
        if headers.contains_key(&TRACESTATE) && (begun || !is_state(headers)) {
            headers.remove(TRACESTATE);
        }
    }

    /// The id as text.
    pub fn id(&self) -> String {
        format!("{:032x}", self.id)
    }

    fn value(&self) -> HeaderValue {
        let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
        hex(&mut text[3..35], self.id);
        hex(&mut text[36..52], self.span.into());
        hex(&mut text[53..55], self.flags.into());
        HeaderValue::from_bytes(&text).expect("digits and dashes are a valid header value")
    }
}

/// The `tracestate` that goes with a trace, if there is one line of it.
pub fn state(headers: &HeaderMap) -> Option<&HeaderValue> {
    headers.get(TRACESTATE)
}

/// Writes the number's last digits, as many as there is room for.
pub fn hex(into: &mut [u8], mut number: u128) {
    for digit in into.iter_mut().rev() {
        *digit = b"0123456789abcdef"[(number & 15) as usize];
        number >>= 4;
    }
}

struct Parent {
    id: u128,
    span: u64,
    flags: u8,
}

fn parse(text: &[u8]) -> Option<Parent> {
    let (head, rest) = text.split_at_checked(LENGTH)?;
    if [head[2], head[35], head[52]] != [b'-'; 3] {
        return None;
    }
    let version = number(&head[..2])?;
    // A later version may add something, behind another dash.
    let fits =
        if version == 0 { rest.is_empty() } else { version != 0xff && matches!(rest.first(), None | Some(b'-')) };
    let (id, span, flags) = (number(&head[3..35])?, number(&head[36..52])?, number(&head[53..])?);
    let flags = flags as u8 & KNOWN_FLAGS;
    (fits && id != 0 && span != 0).then_some(Parent { id, span: span as u64, flags })
}

/// Digits are lower case, or none.
fn number(digits: &[u8]) -> Option<u128> {
    digits.iter().try_fold(0, |number: u128, digit| {
        let digit = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some((number << 4) | u128::from(digit))
    })
}

/// Whether all lines together are a list as it should be.
fn is_state(headers: &HeaderMap) -> bool {
    let mut keys: Vec<&[u8]> = Vec::new();
    let lines = headers.get_all(TRACESTATE).iter();
    for member in lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b',')) {
        let member = member.trim_ascii();
        // Empty members are allowed.
        if member.is_empty() {
            continue;
        }
        let Some(equals) = member.iter().position(|byte| *byte == b'=') else { return false };
        let (key, value) = (&member[..equals], &member[equals + 1..]);
        if keys.len() == MEMBERS || !is_key(key) || !is_value(value) || keys.contains(&key) {
            return false;
        }
        keys.push(key);
    }
    !keys.is_empty()
}

fn is_key(key: &[u8]) -> bool {
    let is_part = |part: &[u8], length: usize, digit_first: bool| {
        let first = part.first().is_some_and(|byte| byte.is_ascii_lowercase() || digit_first && byte.is_ascii_digit());
        let rest = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-*/".contains(byte);
        first && part.len() <= length && part.iter().all(rest)
    };
    match key.iter().position(|byte| *byte == b'@') {
        Some(at) => is_part(&key[..at], 241, true) && is_part(&key[at + 1..], 14, false),
        None => is_part(key, 256, true),
    }
}

fn is_value(value: &[u8]) -> bool {
    let is_plain = |byte: &u8| (b' '..=b'~').contains(byte) && !b",=".contains(byte);
    !value.is_empty() && value.len() <= 256 && value.iter().all(is_plain)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop};
    use proptest::{prop_assert, prop_assert_eq, proptest};

    use super::*;

    const ID: u128 = 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c;
    const NEW: &str = "00-000000000000aaaa0000000000000011-0000000000000021-0";

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    /// What is sent on.
    fn sent(lines: &[(&'static str, &str)], sampling: Sampling) -> (Option<String>, Option<String>) {
        let mut headers = headers(lines);
        let mut numbers = [0xaaaa, 0x10, 0x20].into_iter();
        Trace::of(&headers, sampling, || numbers.next().unwrap()).write(&mut headers);
        let of = |name: &str| headers.get(name).map(|value| value.to_str().unwrap().to_owned());
        assert!(headers.get_all("traceparent").iter().count() == 1);
        (of("traceparent"), of("tracestate"))
    }

    #[test]
    fn what_is_no_valid_parent_begins_a_new_trace() {
        let id = "0af7651916cd43dd8448eb211c80319c";
        let span = "b7ad6b7169203331";
        let zeros = "00000000000000000000000000000000";
        for parent in [
            String::new(),
            "00".to_owned(),
            format!("00-{id}-{span}"),
            format!("00-{id}-{span}-"),
            format!("00-{id}-{span}-1"),
            format!("00-{id}-{span}-01-"),
            format!("00-{id}-{span}-01-more"),
            format!("00-{id}-{span}-0x"),
            format!("00-{id}-{span}-010"),
            format!("ff-{id}-{span}-01"),
            format!("FE-{id}-{span}-01"),
            format!("01-{id}-{span}-01more"),
            format!("00-{zeros}-{span}-01"),
            format!("00-{id}-{}-01", &zeros[..16]),
            format!("00-{}-{span}-01", id.to_uppercase()),
            format!("00-{id}_{span}-01"),
            format!("00_{id}-{span}-01"),
            format!(" 00-{id}-{span}-01"),
            format!("00-{id}-{span}-01 "),
            format!("00-{}-{span}-01", &id[1..]),
        ] {
            let lines = [("traceparent", parent.as_str()), ("tracestate", "of=another")];
            assert_eq!(sent(&lines, Sampling::default()), (Some(format!("{NEW}0")), None), "{parent:?}");
        }
        let valid = format!("00-{id}-{span}-01");
        let twice = [("traceparent", valid.as_str()), ("traceparent", valid.as_str())];
        assert_eq!(sent(&twice, Sampling::of(1.0)), (Some(format!("{NEW}1")), None), "two are none");
    }

    #[test]
    fn a_valid_parent_is_passed_on_as_it_is_or_with_the_gateways_span_in_its_place() {
        let (off, none, all) = (Sampling::default(), Sampling::of(0.0), Sampling::of(1.0));
        let parent =
            |version: &str, rest: &str| format!("{version}-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-{rest}");
        let own = |flags: &str| format!("00-0af7651916cd43dd8448eb211c80319c-000000000000aaab-{flags}");
        let rows = [
            (parent("00", "01"), off, parent("00", "01")),
            (parent("00", "00"), all, parent("00", "00")),
            (parent("00", "02"), all, parent("00", "02")),
            // What the parent has decided counts, not the share.
            (parent("00", "01"), none, own("01")),
            (parent("00", "03"), all, own("03")),
            (parent("00", "ff"), all, own("03")),
            (parent("01", "01"), off, parent("01", "01")),
            (parent("cc", "01-what-comes"), off, parent("cc", "01-what-comes")),
            (parent("cc", "01-what-comes"), all, own("01")),
        ];
        for (parent, sampling, want) in rows {
            assert_eq!(sent(&[("traceparent", &parent)], sampling).0, Some(want), "{parent} {sampling:?}");
        }
    }

    #[test]
    fn a_state_goes_with_its_trace_if_it_is_one() {
        let long = format!("a={}", "x".repeat(256));
        let many = |count: usize| (0..count).map(|n| format!("k{n}=v")).collect::<Vec<_>>().join(",");
        let (most, too_many) = (many(32), many(33));
        let rows = [
            ("a=1", true),
            ("a=1,b@c=2 , , 0_-*/=x y", true),
            ("a= 1", true),
            (&long, true),
            (&most, true),
            (&too_many, false),
            ("a", false),
            ("A=1", false),
            ("a=1,a=2", false),
            ("a=1=2", false),
            ("@b=1", false),
            ("a@0=1", false),
            ("a=", false),
            ("", false),
            ("a\tb=1", false),
        ];
        for (state, kept) in rows {
            let lines =
                [("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"), ("tracestate", state)];
            let (_, after) = sent(&lines, Sampling::of(1.0));
            assert_eq!(after.is_some(), kept, "{state:?}");
        }
    }

    #[test]
    fn a_share_of_the_traces_that_begin_here_is_sampled() {
        let random = crate::random::Random::new(7);
        let sampled = |share: f64| {
            let new = |_: &i32| Trace::of(&HeaderMap::new(), Sampling::of(share), || random.next()).exported;
            (0..10_000).filter(new).count()
        };
        assert_eq!((sampled(0.0), sampled(1.0)), (0, 10_000));
        assert!((800..1_200).contains(&sampled(0.1)));
    }

    proptest! {
        /// What anyone may send: no panic, exactly one valid value goes on, and only a valid one stays.
        #[test]
        fn what_goes_on_is_always_valid(
            values in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..70), 0..3),
            state in prop::collection::vec(any::<u8>(), 0..40),
            share in 0.0..1.0,
        ) {
            let mut headers = HeaderMap::new();
            for value in values.iter().filter_map(|value| HeaderValue::from_bytes(value).ok()) {
                headers.append(TRACEPARENT, value);
            }
            if let Ok(state) = HeaderValue::from_bytes(&state) {
                headers.insert(TRACESTATE, state);
            }
            let trace = Trace::of(&headers, Sampling::of(share), || 5);
            trace.write(&mut headers);
            let sent: Vec<_> = headers.get_all(TRACEPARENT).iter().collect();
            prop_assert_eq!(sent.len(), 1);
            let parsed = parse(sent[0].as_bytes());
            prop_assert!(parsed.is_some_and(|parsed| parsed.id == trace.id));
        }

        /// One byte of a valid value is another: it is read as what it says, or not at all.
        #[test]
        fn a_mutated_parent_is_read_as_it_stands_or_not_at_all(place in 0..LENGTH, byte in any::<u8>()) {
            let mut text = *b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
            text[place] = byte;
            if let Some(Parent { id, span, flags }) = parse(&text) {
                let mut again = [0; 55];
                again[..3].copy_from_slice(&text[..3]);
                (again[35], again[52]) = (b'-', b'-');
                hex(&mut again[3..35], id);
                hex(&mut again[36..52], span.into());
                prop_assert_eq!(&again[..53], &text[..53]);
                prop_assert_eq!(flags & !KNOWN_FLAGS, 0);
                prop_assert!(id == ID || (3..35).contains(&place));
            }
        }
    }
}
