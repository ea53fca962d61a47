//! Where a value lies in an object.

use std::fmt;

/// A path of fields and items, written out only where something is wrong at its end.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Place<'a> {
    /// The object itself.
    Root,
    /// A field of what lies there.
    Field(&'a Place<'a>, &'a str),
    /// An item of the list that lies there.
    Item(&'a Place<'a>, usize),
}

impl Place<'_> {
    /// Whether it is the object itself.
    pub(crate) fn is_root(&self) -> bool {
        matches!(self, Self::Root)
    }
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => Ok(()),
            Self::Field(Self::Root, name) => f.write_str(name),
            Self::Field(above, name) => write!(f, "{above}.{name}"),
            Self::Item(above, index) => write!(f, "{above}[{index}]"),
        }
    }
}

impl From<&Place<'_>> for String {
    fn from(place: &Place<'_>) -> Self {
        place.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_written_as_field_errors_name_it() {
        let spec = Place::Field(&Place::Root, "spec");
        let list = Place::Field(&spec, "containers");
        let item = Place::Item(&list, 2);
        assert_eq!(String::from(&Place::Field(&item, "image")), "spec.containers[2].image");
        assert_eq!(Place::Root.to_string(), "");
    }
}
