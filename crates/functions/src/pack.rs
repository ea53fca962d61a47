//! Source files to a tar archive that depends on nothing but their names, contents and executable bits: the same code
//! gives the same digest on every machine.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

/// Most files of one archive.
pub const FILES_LIMIT: usize = 20_000;
/// Most bytes of one archive.
pub const ARCHIVE_LIMIT_BYTES: u64 = 256 << 20;

/// One file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Its content.
    pub content: Vec<u8>,
    /// Whether it may be run.
    pub executable: bool,
}

/// Why files cannot be packed.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// The name is not a relative path of plain parts.
    #[error("{0:?} is not a path of a file inside the code; rename it")]
    Name(String),
    /// Too many files.
    #[error("the code has more than {FILES_LIMIT} files; name what is not needed in .colibriignore")]
    Files,
    /// Too many bytes.
    #[error("the code is longer than {} MiB; name what is not needed in .colibriignore", ARCHIVE_LIMIT_BYTES >> 20)]
    Bytes,
    /// The archive could not be written.
    #[error("the archive cannot be written")]
    Write(#[source] std::io::Error),
}

/// The archive of some files.
///
/// # Errors
///
/// A name that leaves the folder, too many files or bytes.
pub fn pack(files: &BTreeMap<String, File>) -> Result<Vec<u8>, PackError> {
    if files.len() > FILES_LIMIT {
        return Err(PackError::Files);
    }
    if files.values().map(|file| file.content.len() as u64).sum::<u64>() > ARCHIVE_LIMIT_BYTES {
        return Err(PackError::Bytes);
    }
    let mut archive = tar::Builder::new(Vec::new());
    for (name, file) in files {
        if !api::functions::admission::is_file_name(name) {
            return Err(PackError::Name(name.clone()));
        }
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Regular);
        header.set_size(file.content.len() as u64);
        header.set_mode(if file.executable { 0o755 } else { 0o644 });
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        archive.append_data(&mut header, name, file.content.as_slice()).map_err(PackError::Write)?;
    }
    archive.into_inner().map_err(PackError::Write)
}

/// The archive of an inline source.
///
/// # Errors
///
/// As [`pack`].
pub fn pack_inline(files: &BTreeMap<String, String>) -> Result<Vec<u8>, PackError> {
    let file = |(name, text): (&String, &String)| {
        // A script that names its interpreter is meant to be run.
        (name.clone(), File { content: text.clone().into_bytes(), executable: text.starts_with("#!") })
    };
    pack(&files.iter().map(file).collect())
}

/// `sha256:...` of an archive.
pub fn digest(archive: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(archive)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(list: &[(&str, &str, bool)]) -> BTreeMap<String, File> {
        let file = |(name, text, executable): &(&str, &str, bool)| {
            ((*name).to_owned(), File { content: text.as_bytes().to_vec(), executable: *executable })
        };
        list.iter().map(file).collect()
    }

    #[test]
    fn the_digest_depends_on_names_contents_and_modes_alone() {
        let code = [("main.py", "a = 1\n", false), ("bin/run", "#!/bin/sh\n", true)];
        let archive = pack(&files(&code)).unwrap();
        assert_eq!(
            digest(&archive),
            "sha256:9cd4c91470644933def044aa63dc7bc1ebf4ed1fd20aad87c2a9a3903eb718a0",
            "this digest is a promise: the same code keeps its version when the platform is updated"
        );
        let reversed: Vec<_> = code.iter().rev().copied().collect();
        assert_eq!(pack(&files(&reversed)).unwrap(), archive);
        assert_ne!(pack(&files(&[("main.py", "a = 1\n", true), code[1]])).unwrap(), archive);
        assert_ne!(pack(&files(&[("main.py", "a = 2\n", false), code[1]])).unwrap(), archive);
    }

    #[test]
    fn what_was_packed_can_be_read() {
        let long = format!("{}/{}", "d".repeat(120), "f".repeat(120));
        let packed = pack(&files(&[("a.py", "1", false), (&long, "2", true), ("ü/é.txt", "3", false)])).unwrap();
        let mut archive = tar::Archive::new(packed.as_slice());
        let mut seen = Vec::new();
        for entry in archive.entries().unwrap() {
            let entry = entry.unwrap();
            let mode = entry.header().mode().unwrap();
            seen.push((entry.path().unwrap().to_str().unwrap().to_owned(), mode, entry.header().mtime().unwrap()));
        }
        let expected = vec![("a.py".to_owned(), 0o644, 0), (long, 0o755, 0), ("ü/é.txt".to_owned(), 0o644, 0)];
        assert_eq!(seen, expected);
    }

    #[test]
    fn names_that_leave_the_folder_are_refused() {
        for name in ["", "/etc/passwd", "..", "../x", "a/../../x", "a//b", "./a", "a/", "a\0b", "a\nb", "a\\b"] {
            let error = pack(&files(&[(name, "", false)])).unwrap_err();
            assert!(matches!(&error, PackError::Name(found) if found == name), "{name:?}: {error}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_name_is_packed_as_it_is_or_refused(name in "[a-z./\\\\\u{0}-\u{1f}]{0,40}") {
            if let Ok(packed) = pack(&files(&[(&name, "x", false)])) {
                let mut archive = tar::Archive::new(packed.as_slice());
                let entry = archive.entries().unwrap().next().unwrap().unwrap();
                let path = entry.path().unwrap();
                let plain = |part| matches!(part, std::path::Component::Normal(_));
                proptest::prop_assert_eq!(path.to_str(), Some(name.as_str()));
                proptest::prop_assert!(path.components().all(plain));
            }
        }
    }
}
