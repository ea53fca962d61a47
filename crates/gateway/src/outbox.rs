//! What waits to be written or sent by somebody who may be slow: bounded, and nobody who adds to it waits.

use parking_lot::Mutex;

/// Bytes of several items, one behind the other.
#[derive(Debug, Default)]
pub struct Batch {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// How many items they are.
    pub items: u64,
}

/// Collects items until they are taken.
#[derive(Debug)]
pub struct Outbox {
    batch: Mutex<Batch>,
    limit_bytes: usize,
}

/// What became of an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Added {
    /// It is the first since the last were taken: whoever takes them should be told.
    First,
    /// It is in.
    More,
    /// There is no room for it.
    Full,
}

impl Outbox {
    /// An empty one that takes that many bytes.
    pub fn new(limit_bytes: usize) -> Self {
        Self { batch: Mutex::default(), limit_bytes }
    }

    /// Adds bytes that are so many items, if there is room. The lock is held for a copy.
    pub fn add(&self, bytes: &[u8], items: u64) -> Added {
        let mut batch = self.batch.lock();
        if batch.bytes.len() + bytes.len() > self.limit_bytes {
            return Added::Full;
        }
        let first = batch.items == 0;
        batch.bytes.extend_from_slice(bytes);
        batch.items += items;
        if first { Added::First } else { Added::More }
    }

    /// Takes all; `spare`, emptied, takes their place.
    pub fn take(&self, mut spare: Batch) -> Batch {
        spare.bytes.clear();
        spare.items = 0;
        std::mem::swap(&mut *self.batch.lock(), &mut spare);
        spare
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_takes_what_fits_and_tells_of_the_first() {
        let outbox = Outbox::new(5);
        assert_eq!(
            ["abc", "de", "f"].map(|item| outbox.add(item.as_bytes(), 1)),
            [Added::First, Added::More, Added::Full]
        );
        let batch = outbox.take(Batch::default());
        assert_eq!((batch.bytes.as_slice(), batch.items), (&b"abcde"[..], 2));
        assert_eq!(outbox.add(b"g", 1), Added::First);
        assert_eq!(outbox.take(batch).bytes, b"g");
        assert_eq!(outbox.add(b"123456", 1), Added::Full);
    }
}
