//! Pictures with objects in them, in files of the COCO format: boxes, categories and masks.

mod error;
mod file;
mod masks;

pub use error::{CocoError, Fault, Problem};
pub use masks::{Mask, Outline, RunLengthError};

use crate::files::{at, write_atomically};
use dr_runtime::read_file;
use file::{File, whole};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The longest side of a picture.
const SIDE: usize = 1 << 15;

/// What some programs write before everything else.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Pictures and what is in them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Coco {
    /// The kinds of objects; sorted by id when loaded.
    pub categories: Vec<Category>,
    /// Sorted by id when loaded.
    pub images: Vec<Picture>,
    /// The ids of annotations that were left out when loaded, as their boxes have no pixels of their images.
    pub without_pixels: Vec<u64>,
}

/// A kind of object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Category {
    /// As in the file; any number.
    #[serde(deserialize_with = "whole")]
    pub id: u64,
    /// Its name.
    pub name: String,
}

/// A picture, without its pixels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Picture {
    /// As in the file; any number.
    #[serde(deserialize_with = "whole")]
    pub id: u64,
    /// A path relative to the folder of the images.
    pub file_name: String,
    /// Columns.
    #[serde(deserialize_with = "whole")]
    pub width: usize,
    /// Rows.
    #[serde(deserialize_with = "whole")]
    pub height: usize,
    /// What is in it, in the order of the file.
    #[serde(skip)]
    pub objects: Vec<Object>,
}

/// Something in a picture.
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    /// The position of its category among the categories sorted by id.
    pub category: usize,
    /// Left, top, width and height in pixels.
    pub bbox: [f32; 4],
    /// Whether it is a group of objects that were not told apart.
    pub crowd: bool,
    /// Which pixels of the picture it has, if that is known.
    pub outline: Option<Outline>,
}

impl Coco {
    /// Reads a file with images, if there are some, annotations and categories. Boxes are cut off where their image ends. Whole numbers may be written as
    /// `7.0` or `"7"`, and annotations may have no ids.
    ///
    /// # Errors
    /// Files that cannot be read, are not JSON of the format, or whose content does not fit together.
    pub fn load(path: &Path) -> Result<Self, CocoError> {
        let content = read_file(path).map_err(at(path))?;
        let file = serde_json::from_slice::<File>(content.strip_prefix(BYTE_ORDER_MARK).unwrap_or(&content));
        let file = file.map_err(|source| CocoError::Format { path: path.into(), source })?;
        file.into_coco().map_err(|problem| CocoError::Content { path: path.into(), problem })
    }

    /// Writes a file that [`load`](Self::load) reads, in one step. Images and categories keep their ids, annotations get
    /// theirs from 1 on; outlines are written as they are.
    ///
    /// # Errors
    /// Those of the file system, and what [`load`](Self::load) would not accept; then nothing is written.
    pub fn save(&self, path: &Path) -> Result<(), CocoError> {
        let file = File::new(self).map_err(|problem| CocoError::Content { path: path.into(), problem })?;
        let content = serde_json::to_vec(&file);
        let content = content.map_err(|source| CocoError::Format { path: path.into(), source })?;
        Ok(write_atomically(path, &content).map_err(at(path))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chacha20::ChaCha8Rng;
    use rand::{Rng, RngExt, SeedableRng};

    fn object(category: usize, bbox: [f32; 4], outline: Option<Outline>) -> Object {
        Object { category, bbox, crowd: outline.is_none(), outline }
    }

    fn example() -> Coco {
        let mask = Mask::from_rle_counts(&[9, 2, 2, 2, 2, 2, 5], 6, 4).unwrap();
        let bbox = mask.bbox().unwrap();
        let objects =
            vec![object(1, bbox, Some((&mask).into())), object(0, [0.1, 0.7, 1.0 / 3.0, 3.3], None)];
        let image = |id, file_name: &str, objects| Picture {
            id,
            file_name: file_name.into(),
            width: 6,
            height: 4,
            objects,
        };
        let category = |id, name: &str| Category { id, name: name.into() };
        Coco {
            categories: vec![category(3, "dog"), category(90, "\"cat\"\n")],
            images: vec![image(5, "a.png", vec![]), image(1 << 60, "sub/b.jpg", objects)],
            without_pixels: vec![],
        }
    }

    #[test]
    fn what_is_saved_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("val.json");
        let coco = example();
        for _ in 0..2 {
            coco.save(&path).unwrap();
            assert_eq!(Coco::load(&path).unwrap(), coco);
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_byte_order_mark_and_a_pointer() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("val.json");
        example().save(&path).unwrap();
        let content = std::fs::read(&path).unwrap();
        std::fs::write(&path, [BYTE_ORDER_MARK, &content].concat()).unwrap();
        assert_eq!(Coco::load(&path).unwrap(), example());
        std::fs::write(&path, "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 44\n")
            .unwrap();
        let error = Coco::load(&path).unwrap_err().to_string();
        assert!(error.contains("val.json`: a pointer of Git LFS: expected the file itself"), "{error}");
    }

    #[test]
    fn files_have_what_other_tools_expect() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("val.json");
        example().save(&path).unwrap();
        let file: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let first = serde_json::json!({
            "id": 1, "image_id": 1u64 << 60, "category_id": 90, "bbox": [2.0, 1.0, 3.0, 2.0], "area": 6.0, "iscrowd": 0,
            "segmentation": {"counts": [9, 2, 2, 2, 2, 2, 5], "size": [4, 6]},
        });
        assert_eq!(file["annotations"][0], first);
        assert_eq!(
            (&file["annotations"][1]["id"], &file["annotations"][1]["iscrowd"]),
            (&2.into(), &1.into())
        );
        assert_eq!(file["annotations"][1].get("segmentation"), None);
        assert_eq!(file["categories"][0], serde_json::json!({"id": 3, "name": "dog"}));
    }

    #[test]
    fn what_is_not_accepted_leaves_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("val.json");
        let mut coco = example();
        coco.save(&path).unwrap();
        coco.images[1].objects[1].category = 2;
        let error = coco.save(&path).unwrap_err().to_string();
        let expected = "annotation 2: category at position 2: expected less than 2";
        assert_eq!(error, format!("`{}`: {expected}", path.display()));
        assert_eq!(Coco::load(&path).unwrap(), example());
        assert!(matches!(coco.save(&dir.path().join("no/val.json")), Err(CocoError::Content { .. })));
        assert!(matches!(example().save(&dir.path().join("no/val.json")), Err(CocoError::Io { .. })));
    }

    #[test]
    fn errors_name_the_file_and_what_is_expected() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("val.json");
        let error = |content: &str| {
            std::fs::write(&path, content).unwrap();
            let error = Coco::load(&path).unwrap_err();
            assert!(!error.to_string().contains('\n'), "{error}");
            error.to_string().strip_prefix(&format!("`{}`: ", path.display())).unwrap().to_owned()
        };
        let format = ": expected JSON with the images, annotations and categories of COCO";
        assert_eq!(error("{"), format!("EOF while parsing an object at line 1 column 1{format}"));
        assert!(error("[]").ends_with(format));
        let missing = error(r#"{"images": [], "categories": []}"#);
        assert_eq!(missing, format!("missing field `annotations` at line 1 column 32{format}"));
        let empty = error(r#"{"images": [], "annotations": [], "categories": []}"#);
        assert_eq!(empty, "has no categories: expected at least one");
        assert!(matches!(Coco::load(&dir.path().join("none")), Err(CocoError::Io { .. })));
    }

    #[test]
    fn garbage_does_no_harm() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("val.json");
        example().save(&path).unwrap();
        let sound = std::fs::read(&path).unwrap();
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let load = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            Coco::load(&path)
        };
        for _ in 0..300 {
            let mut noise = vec![0; rng.random_range(0..99)];
            rng.fill_bytes(&mut noise);
            assert!(load(&noise).is_err());
            // Changed in some places, and perhaps cut off.
            let mut changed = sound.clone();
            for _ in 0..rng.random_range(1..4) {
                let at = rng.random_range(0..changed.len());
                changed[at] = b"0123456789-.e,:\"[]{}\0\xff"[rng.random_range(0..22)];
            }
            changed.truncate(rng.random_range(changed.len() / 2..changed.len() * 2));
            if let Ok(coco) = load(&changed) {
                let coco = Coco { without_pixels: vec![], ..coco };
                coco.save(&path).unwrap();
                assert_eq!(Coco::load(&path).unwrap(), coco);
            }
        }
    }
}
