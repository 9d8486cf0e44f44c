//! The bytes of an artifact: safetensors with a checksum over all of them.

use super::tensors::Content;
use super::{Artifact, ArtifactError, Description, TensorEntry};
use safetensors::SafeTensors;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use std::ops::Range;
use std::sync::Arc;

/// The version of the format that is written: 2 adds the graph, 3 nested weights, 4 calibrated layers.
pub const FORMAT_VERSION: u32 = 4;

/// The oldest version that is read.
pub const FIRST_VERSION: u32 = 1;

/// The key of the description in the metadata of the file.
pub const METADATA_KEY: &str = "dr-train";

/// The longest header that is read; those of our models take some ten thousand bytes.
pub const MAX_HEADER_BYTES: u64 = 16 << 20;

/// What stands in the checksum's place while the checksum is computed: as long as a checksum is.
const BLANK: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// Bytes that are in memory at a time when all are read.
const PART: usize = 1 << 23;

/// Bytes of the header's length at the start of a safetensors file.
const LENGTH_BYTES: usize = 8;

pub(super) fn write(artifact: &Artifact) -> Result<Vec<u8>, ArtifactError> {
    let description = Description { checksum: BLANK.to_owned(), ..artifact.description.clone() };
    description.check()?;
    for (name, entry) in &artifact.tensors {
        entry.check(name)?;
    }
    let json =
        serde_json::to_string(&description).map_err(|error| ArtifactError::Description(error.to_string()))?;
    let metadata = HashMap::from([(METADATA_KEY.to_owned(), json)]);
    let mut bytes =
        safetensors::serialize(&artifact.tensors, Some(metadata)).map_err(ArtifactError::Safetensors)?;
    let header = header_range(&bytes)?;
    let place = checksum_place(&bytes[header], BLANK)?;
    let checksum = checksum(&bytes, &place, |_| ());
    bytes[place].copy_from_slice(checksum.as_bytes());
    Ok(bytes)
}

/// What a file says of itself, before its checksum is [verified](verify).
pub(super) fn description(bytes: &[u8]) -> Result<Description, ArtifactError> {
    header_range(bytes)?;
    let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(ArtifactError::Safetensors)?;
    let json = metadata.metadata().as_ref().and_then(|map| map.get(METADATA_KEY));
    parse_description(json.ok_or(ArtifactError::Foreign)?)
}

/// A file with its tensors.
pub(super) fn tensors(content: &Arc<Content>, description: Description) -> Result<Artifact, ArtifactError> {
    let bytes: &[u8] = content;
    let file = SafeTensors::deserialize(bytes).map_err(ArtifactError::Safetensors)?;
    let mut tensors = BTreeMap::new();
    for (name, view) in file.iter() {
        let start = view.data().as_ptr().addr() - bytes.as_ptr().addr();
        let range = start..start + view.data().len();
        let entry = TensorEntry::of(name, view.dtype(), view.shape().to_vec(), content, range)?;
        tensors.insert(name.to_owned(), entry);
    }
    Ok(Artifact { description, tensors })
}

/// Whether a file is what was written.
pub(super) fn verify(content: &Content, expected: &str) -> Result<(), ArtifactError> {
    let place = checksum_place(&content[header_range(content)?], expected)?;
    // What is used of it is read again, and then kept or not by who uses it.
    let found = checksum(content, &place, |range| content.release(range));
    match found == expected {
        true => Ok(()),
        false => Err(ArtifactError::Checksum { found, expected: expected.to_owned() }),
    }
}

/// The length of the header, from the first bytes of a file of the given length.
pub(super) fn header_len(start: &[u8], file_len: u64) -> Result<usize, ArtifactError> {
    let (length, _) = start.split_first_chunk::<LENGTH_BYTES>().ok_or(ArtifactError::Header)?;
    let length = u64::from_le_bytes(*length);
    let room = file_len.saturating_sub(LENGTH_BYTES as u64);
    if !(2..=MAX_HEADER_BYTES.min(room)).contains(&length) {
        return Err(ArtifactError::Header);
    }
    usize::try_from(length).map_err(|_| ArtifactError::Header)
}

fn header_range(bytes: &[u8]) -> Result<Range<usize>, ArtifactError> {
    let length = header_len(bytes, bytes.len() as u64)?;
    Ok(LENGTH_BYTES..LENGTH_BYTES + length)
}

/// The version is looked at first: a later one may have other fields.
fn parse_description(json: &str) -> Result<Description, ArtifactError> {
    #[derive(Deserialize)]
    struct Versioned {
        format_version: u32,
    }
    let unreadable = |error: serde_json::Error| ArtifactError::Description(error.to_string());
    let Versioned { format_version } = serde_json::from_str(json).map_err(unreadable)?;
    if !(FIRST_VERSION..=FORMAT_VERSION).contains(&format_version) {
        return Err(ArtifactError::Version(format_version));
    }
    let description: Description = serde_json::from_str(json).map_err(unreadable)?;
    description.check()?;
    Ok(description)
}

/// Where in the file the checksum stands. It is the first such text: the header begins with the metadata, and no other
/// field of the description can hold 64 hexadecimal digits.
fn checksum_place(header: &[u8], checksum: &str) -> Result<Range<usize>, ArtifactError> {
    let wrong = || ArtifactError::Description("its checksum is not a SHA-256 in hexadecimal".to_owned());
    if checksum.len() != BLANK.len() {
        return Err(wrong());
    }
    let start =
        header.windows(BLANK.len()).position(|window| window == checksum.as_bytes()).ok_or_else(wrong)?
            + LENGTH_BYTES;
    Ok(start..start + BLANK.len())
}

/// SHA-256 of the bytes with [`BLANK`] in the checksum's place; tells what it has read, part by part.
fn checksum(bytes: &[u8], place: &Range<usize>, read: impl Fn(&Range<usize>)) -> String {
    let mut digest = Sha256::new().chain_update(&bytes[..place.start]).chain_update(BLANK);
    let mut start = place.end;
    for part in bytes[place.end..].chunks(PART) {
        digest.update(part);
        read(&(start..start + part.len()));
        start += part.len();
    }
    digest.finalize().iter().fold(String::with_capacity(BLANK.len()), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
