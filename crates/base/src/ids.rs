//! Keys of the objects that pass between crates: a namespace and a name, never a bare string.

use std::fmt;
use std::sync::Arc;

macro_rules! namespaced_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name {
            /// Namespace of the object.
            pub namespace: Arc<str>,
            /// Name of the object.
            pub name: Arc<str>,
        }

        impl $name {
            /// An identifier from its two parts.
            pub fn new(namespace: impl AsRef<str>, name: impl AsRef<str>) -> Self {
                Self { namespace: Arc::from(namespace.as_ref()), name: Arc::from(name.as_ref()) }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}/{}", self.namespace, self.name)
            }
        }
    };
}

namespaced_id!(
    /// A Revision.
    RevisionId
);
namespaced_id!(
    /// A Route.
    RouteId
);
namespaced_id!(
    /// A DomainMapping: its name is the domain.
    MappingId
);
namespaced_id!(
    /// A Pod.
    PodId
);
