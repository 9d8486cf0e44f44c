//! What is said of data on the standard error: where each part is from and what it is for, what is left out, what is missing.

use crate::data::{ImageFiles, ImageSet, Noted};
use crate::note::note;
use crate::report::few;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::path::{Path, PathBuf};

/// What the parts are for, in the order of [`Part`](super::Part).
pub(super) const PURPOSES: [&str; 3] = ["to learn from", "to choose the epoch by", "for the table"];

/// What comes of a part for the table of which there is nothing.
pub(super) const UNDEFINED_TABLE: &str = "the table is undefined";

/// What comes of a part to choose the epoch by of which there is nothing.
pub(super) const LAST_EPOCH: &str = "the last epoch is taken";

/// The most names of classes in a line.
const NAMES: usize = 8;

/// How many images are for what, where they are, and what their classes are called.
pub(super) fn tell_parts<'a>(parts: impl IntoIterator<Item = (&'a str, usize, &'a Path)>, names: &[String]) {
    let part = |(purpose, count, path): (_, _, &Path)| format!("{count} of `{}` {purpose}", path.display());
    let parts: Vec<String> = parts.into_iter().map(part).collect();
    note(format_args!("images: {}; classes: {}", parts.join(", "), few(names, NAMES)));
}

/// Something that does not stop the program.
pub(super) fn warn(what: impl Display) {
    note(format_args!("warning: {what}"));
}

/// The same of images in files, and what is ignored where they are.
pub(super) fn tell_images<'a>(parts: impl IntoIterator<Item = (&'a str, &'a ImageSet)>) {
    let files = |(purpose, images): (&'a str, &'a ImageSet)| match images {
        ImageSet::Files(files) => Some((purpose, &**files)),
        ImageSet::Memory(_) => None,
    };
    let parts: Vec<(&str, &ImageFiles)> = parts.into_iter().filter_map(files).collect();
    let Some((_, first)) = parts.first() else { return };
    let of = |&(purpose, files): &(&'a str, &'a ImageFiles)| (purpose, files.len(), &*files.source.path);
    tell_parts(parts.iter().map(of), &first.classes);
    tell_ignored(parts.iter().map(|(_, files)| *files));
}

/// How many files are ignored where images are looked for, and one of them.
pub(crate) fn tell_ignored<'a>(parts: impl IntoIterator<Item = &'a ImageFiles>) {
    let ignored: BTreeSet<&PathBuf> = parts.into_iter().flat_map(|files| &files.source.ignored).collect();
    if let Some(example) = ignored.first() {
        let (count, example) = (ignored.len(), example.display());
        note(format_args!(
            "ignored: {count} files or folders that are no .jpg, .jpeg or .png, such as `{example}`"
        ));
    }
}

/// That none of the images of a part can be read, and what comes of that; or of which classes none can.
pub(super) fn tell_missing(part: &ImageSet, purpose: &str, result: &str) {
    if let Err(error) = part.check() {
        return warn(format_args!("{error}; {result}"));
    }
    let ImageSet::Files(part) = part else { return };
    let missing: Vec<_> = part.missing_classes().into_iter().map(|class| &part.classes[class]).collect();
    if !missing.is_empty() {
        let (count, path, missing) = (part.len(), part.source.path.display(), few(&missing, NAMES));
        warn(format_args!("`{path}`: none of the {count} images {purpose} that can be read is of {missing}"));
    }
}

/// How many images are turned, if that was not said, and how many files could not be read, each with one of them. The result is
/// the number of the latter.
pub(crate) fn tell_noted(noted: &[Noted]) -> usize {
    Noted::tell_turned(noted);
    let skipped: BTreeMap<PathBuf, String> = noted.iter().flat_map(Noted::skipped).collect();
    if let Some((path, reason)) = skipped.first_key_value() {
        let (count, path) = (skipped.len(), path.display());
        note(format_args!("skipped: {count} images that cannot be read, such as `{path}`: {reason}"));
    }
    skipped.len()
}
