//! IPv4 ranges, and the choice of a free one for the pods.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// An IPv4 range such as `10.200.16.0/20`. Host bits are always zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cidr {
    base: u32,
    prefix: u8,
}

/// The text is not an IPv4 range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an IPv4 range such as 10.200.16.0/20")]
pub struct CidrError(pub String);

impl Cidr {
    /// The range of `prefix` bits (at most 32) around `address`.
    pub fn new(address: Ipv4Addr, prefix: u8) -> Self {
        let prefix = prefix.min(32);
        Self { base: u32::from(address) & mask(prefix), prefix }
    }

    /// The first address of the range.
    pub fn base(&self) -> Ipv4Addr {
        Ipv4Addr::from(self.base)
    }

    /// The number of fixed bits, 0 to 32.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// The netmask.
    pub fn mask(&self) -> Ipv4Addr {
        Ipv4Addr::from(mask(self.prefix))
    }

    /// Whether `address` lies in the range.
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        u32::from(address) & mask(self.prefix) == self.base
    }

    /// Whether the two ranges share an address.
    pub fn overlaps(&self, other: &Cidr) -> bool {
        let shorter = self.prefix.min(other.prefix);
        self.base & mask(shorter) == other.base & mask(shorter)
    }

    /// The address at `offset` from the base; `None` past the end.
    pub fn nth(&self, offset: u32) -> Option<Ipv4Addr> {
        let size = 1u64 << (32 - self.prefix);
        (u64::from(offset) < size).then(|| Ipv4Addr::from(self.base + offset))
    }

    /// How far `address` is from the base; `None` outside the range.
    pub fn offset_of(&self, address: Ipv4Addr) -> Option<u32> {
        self.contains(address).then(|| u32::from(address) - self.base)
    }
}

fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base(), self.prefix)
    }
}

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        let wrong = || CidrError(text.to_owned());
        let (address, prefix) = text.split_once('/').ok_or_else(wrong)?;
        let address: Ipv4Addr = address.parse().map_err(|_| wrong())?;
        let prefix: u8 = prefix.parse().map_err(|_| wrong())?;
        let cidr = Cidr::new(address, prefix);
        (prefix <= 32 && cidr.base() == address).then_some(cidr).ok_or_else(wrong)
    }
}

/// Bits of a platform's pod range: 4,096 addresses.
pub const POD_PREFIX: u8 = 20;

/// Where pod ranges come from, in order: a quarter of 10/8 that virtual private networks, container
/// engines and the usual service ranges seldom use, then the top of 172.16/12.
const POOLS: [(Ipv4Addr, u8); 2] = [(Ipv4Addr::new(10, 192, 0, 0), 10), (Ipv4Addr::new(172, 24, 0, 0), 13)];

/// A free /20 that overlaps none of `taken`.
///
/// `seed` moves the start, so that platforms on several machines of one network seldom agree.
/// `None` when both pools are used up.
pub fn choose(taken: &[Cidr], seed: u32) -> Option<Cidr> {
    POOLS.iter().find_map(|(base, prefix)| {
        let count = 1u32 << (POD_PREFIX - prefix);
        (0..count).find_map(|step| {
            let index = (seed % count + step) % count;
            let base = u32::from(*base) + (index << (32 - POD_PREFIX));
            let candidate = Cidr::new(Ipv4Addr::from(base), POD_PREFIX);
            (!taken.iter().any(|used| used.overlaps(&candidate))).then_some(candidate)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cidr(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    #[test]
    fn ranges_are_parsed_strictly() {
        for good in ["10.0.0.0/8", "0.0.0.0/0", "1.2.3.4/32"] {
            assert_eq!(cidr(good).to_string(), good);
        }
        for bad in ["", "10.0.0.0", "10.0.0.1/8", "10.0.0.0/33", "::/0", "10.0.0.0/-1"] {
            assert!(bad.parse::<Cidr>().is_err(), "{bad}");
        }
    }

    #[test]
    fn overlap_is_symmetric_and_sees_both_sizes() {
        for (a, b, overlaps) in [
            ("10.0.0.0/8", "10.200.0.0/20", true),
            ("10.200.0.0/20", "10.200.16.0/20", false),
            ("10.200.0.0/20", "10.200.15.255/32", true),
            ("192.0.2.0/24", "10.200.0.0/20", false),
        ] {
            assert_eq!(cidr(a).overlaps(&cidr(b)), overlaps, "{a} {b}");
            assert_eq!(cidr(b).overlaps(&cidr(a)), overlaps, "{b} {a}");
        }
    }

    #[test]
    fn a_taken_range_is_stepped_over() {
        assert_eq!(choose(&[], 0), Some(cidr("10.192.0.0/20")));
        assert_eq!(choose(&[cidr("10.192.0.0/20")], 0), Some(cidr("10.192.16.0/20")));
        assert_eq!(choose(&[cidr("10.0.0.0/8")], 0), Some(cidr("172.24.0.0/20")));
        assert_eq!(choose(&[cidr("0.0.0.0/0")], 0), None);
    }

    proptest! {
        #[test]
        fn what_is_chosen_is_free(
            seed: u32,
            taken in proptest::collection::vec((any::<u32>(), 8u8..=32), 0..20),
        ) {
            let taken: Vec<Cidr> =
                taken.into_iter().map(|(a, p)| Cidr::new(Ipv4Addr::from(a), p)).collect();
            if let Some(found) = choose(&taken, seed) {
                prop_assert_eq!(found.prefix(), POD_PREFIX);
                prop_assert!(taken.iter().all(|t| !t.overlaps(&found)));
            }
        }

        #[test]
        fn any_text_is_parsed_without_panic(text in ".{0,40}") {
            let _ = text.parse::<Cidr>();
        }
    }
}
