//! Netlink attributes, as bytes.

/// The bit that marks an attribute whose value is attributes.
const NESTED: u16 = 1 << 15;

/// A run of attributes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes(Vec<u8>);

impl Attributes {
    /// Appends raw bytes, padded.
    ///
    /// # Panics
    ///
    /// When the value is over 64 KiB: the caller splits lists into several messages.
    pub fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(value.len() + 4).expect("an attribute is under 64 KiB");
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// Appends a number in network order, as nf_tables wants numbers.
    pub fn number(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// Appends one byte.
    pub fn byte(self, kind: u16, value: u8) -> Self {
        self.bytes(kind, &[value])
    }

    /// Appends a text with its final zero.
    pub fn text(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    /// Appends attributes as the value of one.
    pub fn nest(self, kind: u16, inner: Attributes) -> Self {
        self.bytes(kind | NESTED, &inner.0)
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// The value of the first attribute of `kind` in `bytes`; a cut attribute ends the search.
pub fn find(mut bytes: &[u8], kind: u16) -> Option<&[u8]> {
    while bytes.len() >= 4 {
        let length = usize::from(u16::from_ne_bytes([bytes[0], bytes[1]]));
        let found = u16::from_ne_bytes([bytes[2], bytes[3]]) & 0x3fff;
        let value = bytes.get(4..length)?;
        if found == kind {
            return Some(value);
        }
        bytes = bytes.get(length.next_multiple_of(4)..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers_are_in_network_order_and_text_ends_in_zero() {
        let got = Attributes::default().number(1, 0x0102).text(2, "ab").byte(3, 9);
        let mut want = Vec::new();
        want.extend_from_slice(&[8, 0, 1, 0, 0, 0, 1, 2]);
        want.extend_from_slice(&[7, 0, 2, 0, b'a', b'b', 0, 0]);
        want.extend_from_slice(&[5, 0, 3, 0, 9, 0, 0, 0]);
        assert_eq!(got.as_bytes(), want);
    }

    proptest! {
        #[test]
        fn what_is_put_in_is_found(
            values in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..50), 1..9),
        ) {
            let mut all = Attributes::default();
            for (kind, value) in values.iter().enumerate() {
                all = all.bytes(kind as u16, value);
            }
            prop_assert_eq!(all.as_bytes().len() % 4, 0);
            for (kind, value) in values.iter().enumerate() {
                prop_assert_eq!(find(all.as_bytes(), kind as u16), Some(value.as_slice()));
            }
            prop_assert_eq!(find(all.as_bytes(), 99), None);
        }

        #[test]
        fn any_bytes_are_searched_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..99), kind: u16) {
            let _ = find(&bytes, kind);
        }
    }
}
