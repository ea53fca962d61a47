//! The wire format of protocol buffers: numbered fields of four kinds.

use super::ProtoError;

/// The value of one field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire<'a> {
    /// A number of variable length.
    Number(u64),
    /// Eight bytes.
    Fixed64(u64),
    /// Bytes: a text, bytes, or a message.
    Bytes(&'a [u8]),
    /// Four bytes; no known field has them.
    Fixed32,
}

impl Wire<'_> {
    /// Number of the wire type.
    pub fn kind(&self) -> u64 {
        match self {
            Self::Number(_) => 0,
            Self::Fixed64(_) => 1,
            Self::Bytes(_) => 2,
            Self::Fixed32 => 5,
        }
    }
}

/// The fields of one message, in order. Ends after the first fault.
pub struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    /// The fields of the message in `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], ProtoError> {
        let (head, rest) = self.rest.split_at_checked(length).ok_or(ProtoError::Cut)?;
        self.rest = rest;
        Ok(head)
    }

    fn next_field(&mut self) -> Result<(u32, Wire<'a>), ProtoError> {
        let tag = varint(&mut self.rest)?;
        let number = u32::try_from(tag >> 3).map_err(|_| ProtoError::Overflow)?;
        let value = match tag & 7 {
            0 => Wire::Number(varint(&mut self.rest)?),
            1 => {
                let mut bytes = [0; 8];
                bytes.copy_from_slice(self.take(8)?);
                Wire::Fixed64(u64::from_le_bytes(bytes))
            }
            2 => {
                let length = usize::try_from(varint(&mut self.rest)?).map_err(|_| ProtoError::Overflow)?;
                Wire::Bytes(self.take(length)?)
            }
            5 => {
                self.take(4)?;
                Wire::Fixed32
            }
            wire => return Err(ProtoError::WireType { field: "unknown", wire }),
        };
        Ok((number, value))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u32, Wire<'a>), ProtoError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let field = self.next_field();
        if field.is_err() {
            self.rest = &[];
        }
        Some(field)
    }
}

/// Numbers packed into one field.
pub fn packed(bytes: &[u8]) -> impl Iterator<Item = Result<u64, ProtoError>> + '_ {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let number = varint(&mut rest);
        if number.is_err() {
            rest = &[];
        }
        Some(number)
    })
}

fn varint(rest: &mut &[u8]) -> Result<u64, ProtoError> {
    let mut value = 0_u64;
    for (index, byte) in rest.iter().enumerate() {
        if index == 10 {
            return Err(ProtoError::Overflow);
        }
        // The tenth byte holds one bit; higher ones are lost, as in other decoders.
        value |= u64::from(byte & 0x7f).checked_shl(7 * index as u32).unwrap_or(0);
        if byte & 0x80 == 0 {
            *rest = &rest[index + 1..];
            return Ok(value);
        }
    }
    Err(ProtoError::Cut)
}
