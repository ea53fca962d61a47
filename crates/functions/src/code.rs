//! Where code archives are kept.

use futures::future::BoxFuture;

/// Why the code store could not answer; trying again can help.
#[derive(Debug, thiserror::Error)]
#[error("the code store cannot be used: {0}")]
pub struct CodeError(pub String);

/// A store of archives by digest. An archive belongs to the namespaces that uploaded it: a digest alone gives no right
/// to another namespace's code.
pub trait CodeStore: Send + Sync + 'static {
    /// Keeps an archive for a namespace and returns its digest, `sha256:...`; keeping it twice is no error.
    fn put(&self, namespace: &str, archive: Vec<u8>) -> BoxFuture<'static, Result<String, CodeError>>;
    /// Whether the namespace has that archive.
    fn contains(&self, namespace: &str, digest: &str) -> BoxFuture<'static, Result<bool, CodeError>>;
}

#[cfg(test)]
pub(crate) mod memory {
    use std::collections::BTreeMap;
    use std::sync::Mutex;

    use super::*;

    /// A store that cannot be used, for tests.
    pub struct BrokenStore;

    impl CodeStore for BrokenStore {
        fn put(&self, _: &str, _: Vec<u8>) -> BoxFuture<'static, Result<String, CodeError>> {
            Box::pin(async { Err(CodeError("the disk is full".to_owned())) })
        }

        fn contains(&self, _: &str, _: &str) -> BoxFuture<'static, Result<bool, CodeError>> {
            Box::pin(async { Ok(false) })
        }
    }

    /// A store in memory, for tests.
    #[derive(Default)]
    pub struct MemoryStore(pub Mutex<BTreeMap<(String, String), Vec<u8>>>);

    impl CodeStore for MemoryStore {
        fn put(&self, namespace: &str, archive: Vec<u8>) -> BoxFuture<'static, Result<String, CodeError>> {
            let digest = crate::pack::digest(&archive);
            self.0.lock().unwrap().insert((namespace.to_owned(), digest.clone()), archive);
            Box::pin(async move { Ok(digest) })
        }

        fn contains(&self, namespace: &str, digest: &str) -> BoxFuture<'static, Result<bool, CodeError>> {
            let found = self.0.lock().unwrap().contains_key(&(namespace.to_owned(), digest.to_owned()));
            Box::pin(async move { Ok(found) })
        }
    }
}
