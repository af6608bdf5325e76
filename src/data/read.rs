//! Bytes from files, bounded by what is there: plain or gzip, with the file's sha256.

use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind, Read};
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

/// Deflate codes at most 258 bytes in 2 bits: no stream unpacks to more than this many times its size.
/// A header that promises more than a compressed file can hold is refused before anything is unpacked.
pub(crate) const MAX_DEFLATE_RATIO: u64 = 1032;

/// A file that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceFile {
    /// The file.
    pub path: PathBuf,
    /// The sha256 of its bytes as stored, as `sha256sum` prints it; `None` for a file whose rows are
    /// read on demand and that was never read whole.
    pub sha256: Option<String>,
}

/// Opens a regular file and gives its length in bytes.
pub(crate) fn open(path: &Path) -> Result<(File, u64)> {
    let file = File::open(path).map_err(|e| {
        let missing = e.kind() == ErrorKind::NotFound;
        let error = Error::io("read", path, e);
        if missing { error.with_hint("check the path; it is relative to the current folder") } else { error }
    })?;
    let meta = file.metadata().map_err(|e| Error::io("read", path, e))?;
    // A pipe or a device has no length to bound the reading by.
    if !meta.is_file() {
        return Err(Error::data(path, "file type", "a regular file", "a folder, pipe or device"));
    }
    Ok((file, meta.len()))
}

/// Reads `path` through, unpacked where it begins like gzip whatever its name says. `parse` gets the bytes
/// and how many there can be at most, and must read to the end: the checksum of gzip is at the end.
pub(crate) fn parse_file<T>(
    path: &Path,
    parse: impl FnOnce(&mut dyn Read, u64) -> Result<T>,
) -> Result<(T, SourceFile)> {
    let (file, len) = open(path)?;
    let mut input = BufReader::new(Hashing { inner: file, sha: Sha256::new() });
    let start = input.fill_buf().map_err(|e| Error::io("read", path, e))?;
    let value = if start.starts_with(&[0x1f, 0x8b]) {
        let most = len.saturating_mul(MAX_DEFLATE_RATIO);
        parse(&mut MultiGzDecoder::new(&mut input), most)?
    } else {
        parse(&mut input, len)?
    };
    let source = SourceFile { path: path.to_owned(), sha256: Some(hex(&input.into_inner().sha.finalize())) };
    Ok((value, source))
}

/// All bytes of a file.
pub(crate) fn whole(path: &Path) -> Result<(Vec<u8>, SourceFile)> {
    let mut bytes = Vec::new();
    let source = pour(path, &mut bytes)?;
    Ok((bytes, source))
}

/// The file's sha256, without keeping its bytes.
pub(crate) fn hash(path: &Path) -> Result<SourceFile> {
    pour(path, &mut io::sink())
}

fn pour(path: &Path, to: &mut dyn io::Write) -> Result<SourceFile> {
    let (file, _) = open(path)?;
    let mut input = Hashing { inner: file, sha: Sha256::new() };
    io::copy(&mut input, to).map_err(|e| Error::io("read", path, e))?;
    Ok(SourceFile { path: path.to_owned(), sha256: Some(hex(&input.sha.finalize())) })
}

/// Exactly `promised` bytes and then the end. `most` is what can be there at all; the vector grows with what
/// arrives, so that nothing is allocated on a header's word.
pub(crate) fn payload(
    reader: &mut dyn Read,
    promised: u64,
    most: u64,
    path: &Path,
    at: &str,
    what: &str,
) -> Result<Vec<u8>> {
    if promised > most {
        return Err(Error::data(
            path,
            format!("{at}header"),
            format!("at most {most} bytes of values, all that a file of this size can hold"),
            format!("{promised} bytes, promised by {what}"),
        )
        .with_hint("the file is truncated or its header is corrupt: fetch it again"));
    }
    let mut bytes = Vec::new();
    reader
        .take(promised.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(|e| broken(path, &format!("{at}values"), e))?;
    let found = bytes.len() as u64;
    if found == promised {
        return Ok(bytes);
    }
    Err(Error::data(
        path,
        format!("{at}values"),
        format!("{promised} bytes for {what}"),
        if found < promised {
            format!("{found} bytes and then the end")
        } else {
            "more bytes after them".to_owned()
        },
    )
    .with_hint("the file is truncated or corrupt: fetch it again"))
}

/// Fills `out` from a header; a short file is an [`Error::Data`].
pub(crate) fn fill(reader: &mut dyn Read, out: &mut [u8], path: &Path, at: &str) -> Result<()> {
    reader.read_exact(out).map_err(|e| broken(path, at, e))
}

/// A read that failed: bad bytes are the file's fault, everything else the system's.
pub(crate) fn broken(path: &Path, at: &str, e: io::Error) -> Error {
    match e.kind() {
        ErrorKind::UnexpectedEof | ErrorKind::InvalidData | ErrorKind::InvalidInput => {
            Error::data(path, at, "a whole, valid file", e.to_string())
                .with_hint("the file is truncated or corrupt: fetch it again")
        }
        _ => Error::io("read", path, e),
    }
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

struct Hashing<R> {
    inner: R,
    sha: Sha256,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.sha.update(&buf[..n]);
        Ok(n)
    }
}
