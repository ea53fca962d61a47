//! Errors of the image store.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};

use client::images::ImageError;
use store::cas::{CasError, Digest};

use super::archive::ArchiveError;
use super::reference::ParseReferenceError;

/// Why the image store could not do what was asked, registries apart: those fail with [`ImageError`].
#[derive(Debug, thiserror::Error)]
pub enum ImagesError {
    /// A reference is not valid.
    #[error(transparent)]
    Reference(#[from] ParseReferenceError),
    /// The content store failed.
    #[error(transparent)]
    Cas(#[from] CasError),
    /// An archive was refused.
    #[error("{what}")]
    Archive {
        /// Which archive.
        what: String,
        /// Why.
        source: ArchiveError,
    },
    /// A file could not be used.
    #[error("image store: cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// What was to be loaded could not be read.
    #[error("the image could not be read")]
    Source(#[source] io::Error),
    /// What was to be loaded is no image.
    #[error("not an image: {0}; an OCI layout or an archive made by `docker save` is expected")]
    Layout(String),
    /// An image's own description is not usable.
    #[error("image {what} is not usable: {why}")]
    Manifest {
        /// Reference or digest.
        what: String,
        /// What is wrong.
        why: String,
    },
    /// The image is not made for this machine.
    #[error("image {what} has nothing for {wanted}; it is made for {available}")]
    Platform {
        /// Reference or digest.
        what: String,
        /// This machine's platform.
        wanted: String,
        /// The platforms it is made for.
        available: String,
    },
    /// No image or archive of that name.
    #[error("{0} is not in the image store")]
    NotFound(String),
    /// A task of the store ended early: it panicked, or the platform stops.
    #[error("the work was cut off: {0}")]
    CutOff(String),
}

impl ImagesError {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }

    pub(crate) fn manifest(what: impl ToString, why: impl ToString) -> Self {
        Self::Manifest { what: what.to_string(), why: why.to_string() }
    }

    pub(crate) fn archive(what: impl Into<String>) -> impl FnOnce(ArchiveError) -> Self {
        let what = what.into();
        move |source| Self::Archive { what, source }
    }

    /// Whether the stored content is missing or damaged, so that fetching it again helps.
    pub fn is_lost_content(&self) -> bool {
        matches!(self, Self::NotFound(_) | Self::Cas(CasError::Missing(_) | CasError::Corrupt { .. }))
    }

    /// Whether what was handed in is to blame, and not the store: an HTTP server answers 400 then, else 500.
    pub fn is_input(&self) -> bool {
        match self {
            Self::Reference(_) | Self::Layout(_) | Self::Manifest { .. } | Self::Platform { .. } | Self::Source(_) => {
                true
            }
            Self::Archive { source, .. } => !matches!(source, ArchiveError::Write { .. }),
            Self::Cas(error) => {
                matches!(error, CasError::TooLarge { .. } | CasError::WrongDigest { .. } | CasError::Source(_))
            }
            Self::Io { .. } | Self::NotFound(_) | Self::CutOff(_) => false,
        }
    }

    /// The error and all its causes in one line.
    pub fn text(&self) -> String {
        chain(self)
    }
}

impl From<ImagesError> for ImageError {
    fn from(error: ImagesError) -> Self {
        match error {
            ImagesError::Reference(error) => Self::Reference { reference: error.reference, why: error.why },
            other if other.is_input() || matches!(other, ImagesError::NotFound(_)) => Self::Refused(other.text()),
            other => Self::Unreachable(other.text()),
        }
    }
}

/// An error and its causes, joined by colons, without repeating a text that contains the next.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let part = cause.to_string();
        if !text.contains(&part) {
            text.push_str(": ");
            text.push_str(&part);
        }
        next = cause.source();
    }
    text
}

/// Runs blocking work on the pool made for it.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ImagesError> + Send + 'static,
) -> Result<T, ImagesError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(ImagesError::CutOff(error.to_string())),
    }
}

/// The digest that a manifest writes, which must be of the one algorithm that is used here.
pub(crate) fn digest_of(what: impl ToString, digest: &oci_spec::image::Digest) -> Result<Digest, ImagesError> {
    digest.to_string().parse().map_err(|error| ImagesError::manifest(what, error))
}
