//! The content of a file, as it is in JSON, and its checks.

use super::error::{Fault, Problem};
use super::masks::{Outline, Shape, decompress};
use super::{Category, Coco, Object, Picture, SIDE};
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The keys that are read and written.
#[derive(Serialize, Deserialize)]
pub(super) struct File {
    images: Vec<Picture>,
    annotations: Vec<Annotation>,
    categories: Vec<Category>,
}

#[derive(Serialize, Deserialize)]
struct Annotation {
    #[serde(default, deserialize_with = "optional_whole")]
    id: Option<u64>,
    #[serde(deserialize_with = "whole")]
    image_id: u64,
    #[serde(deserialize_with = "whole")]
    category_id: u64,
    bbox: [f32; 4],
    #[serde(skip_deserializing)]
    area: f64,
    #[serde(default, deserialize_with = "yes_or_no")]
    iscrowd: u8,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    segmentation: Option<Segmentation>,
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Segmentation {
    Polygons(Vec<Vec<f64>>),
    /// One polygon, not in a list.
    Polygon(Vec<f64>),
    /// `size` is rows and columns.
    RunLengths {
        counts: Counts,
        size: [usize; 2],
    },
    Other(serde_json::Value),
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Counts {
    Plain(Vec<usize>),
    Compressed(String),
}

/// A number as programs write it: `7`, `7.0` or `"7"`; or yes and no.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a whole number")]
enum Written {
    Whole(u64),
    Float(f64),
    Bool(bool),
    Text(String),
}

impl Written {
    fn whole<T: TryFrom<u64>, E: Error>(self) -> Result<T, E> {
        let whole = match self {
            Self::Whole(whole) => Some(whole),
            Self::Float(float) if float >= 0.0 && float.fract() == 0.0 && float < EXACT => Some(float as u64),
            Self::Text(text) => text.trim().parse().ok(),
            Self::Float(_) | Self::Bool(_) => None,
        };
        let whole = whole.and_then(|whole| T::try_from(whole).ok());
        whole.ok_or_else(|| E::custom("expected a whole number"))
    }
}

/// Below it each whole number is a float.
const EXACT: f64 = (1u64 << 53) as f64;

/// A whole number, however it is written.
pub(super) fn whole<'de, D: Deserializer<'de>, T: TryFrom<u64>>(deserializer: D) -> Result<T, D::Error> {
    Written::deserialize(deserializer)?.whole()
}

fn optional_whole<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    Option::<Written>::deserialize(deserializer)?.map(Written::whole).transpose()
}

fn yes_or_no<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u8, D::Error> {
    match Option::<Written>::deserialize(deserializer)? {
        None => Ok(0),
        Some(Written::Bool(yes)) => Ok(yes.into()),
        Some(number) => number.whole(),
    }
}

impl File {
    /// What is written of a dataset, checked.
    pub fn new(coco: &Coco) -> Result<Self, Problem> {
        let mut categories = coco.categories.clone();
        categories.sort_by_key(|category| category.id);
        let without_objects =
            |image: &Picture| Picture { file_name: image.file_name.clone(), objects: vec![], ..*image };
        let images = coco.images.iter().map(without_objects).collect();
        let mut file = Self { images, annotations: vec![], categories };
        file.check()?;
        for image in &coco.images {
            for object in &image.objects {
                let id = file.annotations.len() as u64 + 1;
                let annotation = Annotation::new(id, image, object, &file.categories);
                file.annotations.push(annotation.map_err(|fault| Problem::Annotation { id, fault })?);
            }
        }
        Ok(file)
    }

    /// Everything but the annotations' content.
    fn check(&self) -> Result<(), Problem> {
        if self.categories.is_empty() {
            return Err(Problem::NoCategories);
        }
        differ("image", self.images.iter().map(|image| image.id))?;
        differ("category", self.categories.iter().map(|category| category.id))?;
        differ("annotation", self.annotations.iter().filter_map(|annotation| annotation.id))?;
        self.images.iter().try_for_each(check_image)
    }

    /// The dataset, if the content fits together.
    pub fn into_coco(self) -> Result<Coco, Problem> {
        self.check()?;
        let Self { mut images, annotations, mut categories } = self;
        images.sort_by_key(|image| image.id);
        categories.sort_by_key(|category| category.id);
        let mut without_pixels = vec![];
        let image_of: BTreeMap<u64, usize> = images.iter().map(|image| image.id).zip(0..).collect();
        for (annotation, place) in annotations.into_iter().zip(1..) {
            let (id, image_id) = (annotation.id.unwrap_or(place), annotation.image_id);
            let found = image_of.get(&image_id).ok_or(Fault::Image(image_id));
            let object =
                found.and_then(|&index| Ok((index, annotation.into_object(&images[index], &categories)?)));
            let (index, object) = object.map_err(|fault| Problem::Annotation { id, fault })?;
            match object {
                Some(object) => images[index].objects.push(object),
                None => without_pixels.push(id),
            }
        }
        Ok(Coco { categories, images, without_pixels })
    }
}

fn differ(what: &'static str, ids: impl Iterator<Item = u64>) -> Result<(), Problem> {
    let mut seen = BTreeSet::new();
    for id in ids {
        if !seen.insert(id) {
            return Err(Problem::Duplicate { what, id });
        }
    }
    Ok(())
}

fn check_image(image: &Picture) -> Result<(), Problem> {
    let &Picture { id, ref file_name, width, height, .. } = image;
    if [width, height].iter().any(|side| !(1..=SIDE).contains(side)) {
        return Err(Problem::ImageSize { id, width, height });
    }
    if !is_inside_folder(file_name) {
        return Err(Problem::FileName { id, found: file_name.clone() });
    }
    Ok(())
}

/// Whether a path stays in the folder that it is relative to, here and where `\` separates folders.
fn is_inside_folder(name: &str) -> bool {
    let separators = ['/', '\\'];
    let has_drive = name.as_bytes().get(1) == Some(&b':');
    let is_absolute = name.starts_with(separators) || has_drive || Path::new(name).is_absolute();
    !name.is_empty() && !is_absolute && name.split(separators).all(|part| part != "..")
}

impl Annotation {
    fn new(id: u64, image: &Picture, object: &Object, categories: &[Category]) -> Result<Self, Fault> {
        let category = categories.get(object.category);
        let position = Fault::Position { found: object.category, categories: categories.len() };
        let [_, _, width, height] = inside(object.bbox, image)?.ok_or(Fault::Box(object.bbox))?;
        let box_area = f64::from(width) * f64::from(height);
        let segmentation =
            object.outline.as_ref().map(|outline| Segmentation::of(outline, image)).transpose()?;
        Ok(Self {
            id: Some(id),
            image_id: image.id,
            category_id: category.ok_or(position)?.id,
            bbox: object.bbox,
            area: object.outline.as_ref().map_or(box_area, |outline| outline.mask().area() as f64),
            iscrowd: object.crowd.into(),
            segmentation,
        })
    }

    /// None if its box has no pixels of the image.
    fn into_object(self, image: &Picture, categories: &[Category]) -> Result<Option<Object>, Fault> {
        let category = categories.binary_search_by_key(&self.category_id, |category| category.id);
        let category = category.map_err(|_| Fault::Category(self.category_id))?;
        let Some(bbox) = inside(self.bbox, image)? else { return Ok(None) };
        let outline = self.segmentation.map_or(Ok(None), |segmentation| segmentation.into_outline(image))?;
        Ok(Some(Object { category, bbox, crowd: self.iscrowd != 0, outline }))
    }
}

/// The part of a box that is inside its image; none if that has no pixels.
fn inside(bbox: [f32; 4], image: &Picture) -> Result<Option<[f32; 4]>, Fault> {
    if bbox.iter().any(|number| !number.is_finite()) {
        return Err(Fault::Box(bbox));
    }
    let [left, top, width, height] = bbox;
    let spans = span_inside(left, width, image.width).zip(span_inside(top, height, image.height));
    Ok(spans.map(|((left, width), (top, height))| [left, top, width, height]))
}

/// The start and the length of what is inside `0..end`, if there is something.
fn span_inside(start: f32, len: f32, end: usize) -> Option<(f32, f32)> {
    let end = end as f64;
    let last = f64::from(start) + f64::from(len);
    let (first, len) = match start >= 0.0 && last <= end {
        true => (start, len),
        false => (start.max(0.0), (last.min(end) - f64::from(start.max(0.0))) as f32),
    };
    (len > 0.0).then_some((first, len))
}

fn check_size(width: usize, height: usize, image: &Picture) -> Result<(), Fault> {
    let (found, expected) = ((width, height), (image.width, image.height));
    if found == expected { Ok(()) } else { Err(Fault::MaskSize { found, expected }) }
}

impl Segmentation {
    /// An outline as it is written.
    fn of(outline: &Outline, image: &Picture) -> Result<Self, Fault> {
        let (width, height) = outline.size();
        check_size(width, height, image)?;
        Ok(match &outline.shape {
            Shape::Polygons(polygons) => Self::Polygons(polygons.clone()),
            Shape::RunLengths(counts) => {
                Self::RunLengths { counts: Counts::Plain(counts.clone()), size: [height, width] }
            }
        })
    }

    /// None for an empty list.
    fn into_outline(self, image: &Picture) -> Result<Option<Outline>, Fault> {
        match self {
            Self::Polygons(polygons) => of_polygons(polygons, image),
            Self::Polygon(polygon) => of_polygons(vec![polygon], image),
            Self::RunLengths { counts, size: [height, width] } => {
                check_size(width, height, image)?;
                let counts = match counts {
                    Counts::Plain(counts) => counts,
                    Counts::Compressed(text) => decompress(&text)?,
                };
                Ok(Some(Outline::of_rle_counts(counts, width, height)?))
            }
            Self::Other(_) => Err(Fault::Segmentation),
        }
    }
}

fn of_polygons(polygons: Vec<Vec<f64>>, image: &Picture) -> Result<Option<Outline>, Fault> {
    let is_wrong = |polygon: &Vec<f64>| polygon.len() < 6 || polygon.len() % 2 == 1;
    if let Some(index) = polygons.iter().position(is_wrong) {
        return Err(Fault::Polygon { index, found: polygons[index].len() });
    }
    Ok((!polygons.is_empty()).then(|| Outline::of_polygons(polygons, image.width, image.height)))
}

#[cfg(test)]
mod tests {
    use super::super::{Mask, RunLengthError};
    use super::*;
    use serde_json::{Value, json};

    /// Two images, two categories, an annotation.
    fn sound() -> Value {
        json!({
            "info": {"year": 2026}, "licenses": [],
            "images": [
                {"id": 4, "file_name": "b.png", "width": 6, "height": 4, "license": 1},
                {"id": 2, "file_name": "sub/a.png", "width": 3, "height": 5},
            ],
            "categories": [{"id": 9, "name": "cat", "supercategory": "animal"}, {"id": 1, "name": "dog"}],
            "annotations": [{"id": 7, "image_id": 4, "category_id": 9, "bbox": [2, 1, 3, 2], "area": "large"}],
        })
    }

    fn parse(value: Value) -> Result<Coco, Problem> {
        serde_json::from_value::<File>(value).unwrap().into_coco()
    }

    /// What comes of the sound file with one value changed.
    fn with(pointer: &str, value: Value) -> Result<Coco, Problem> {
        let mut file = sound();
        *file.pointer_mut(pointer).unwrap() = value;
        parse(file)
    }

    fn with_annotation(key: &str, value: Value) -> Result<Coco, Problem> {
        let mut file = sound();
        file["annotations"][0][key] = value;
        parse(file)
    }

    fn fault(result: Result<Coco, Problem>) -> Fault {
        match result {
            Err(Problem::Annotation { id: 7, fault }) => fault,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn images_and_categories_are_sorted() {
        let coco = parse(sound()).unwrap();
        assert_eq!(coco.categories.iter().map(|category| category.id).collect::<Vec<_>>(), [1, 9]);
        assert_eq!(coco.images.iter().map(|image| image.id).collect::<Vec<_>>(), [2, 4]);
        assert_eq!(coco.images[0].objects, []);
        let object = Object { category: 1, bbox: [2.0, 1.0, 3.0, 2.0], crowd: false, outline: None };
        assert_eq!(coco.images[1].objects, [object]);
    }

    #[test]
    fn there_may_be_no_images() {
        let mut file = sound();
        (file["images"], file["annotations"]) = (json!([]), json!([]));
        let coco = parse(file).unwrap();
        assert_eq!((coco.images.len(), coco.categories.len()), (0, 2));
        assert_eq!(File::new(&coco).unwrap().into_coco(), Ok(coco));
    }

    #[test]
    fn every_kind_of_segmentation_gives_the_same_mask() {
        let plain = json!({"counts": [9, 2, 2, 2, 2, 2, 5], "size": [4, 6]});
        let mask = |value| {
            let object = with_annotation("segmentation", value).unwrap().images.remove(1).objects.remove(0);
            object.outline.map(|outline| outline.mask())
        };
        let expected = Mask::from_rle_counts(&[9, 2, 2, 2, 2, 2, 5], 6, 4).unwrap();
        assert_eq!(mask(plain), Some(expected.clone()));
        assert_eq!(mask(json!({"counts": "9220003", "size": [4, 6]})), Some(expected.clone()));
        assert_eq!(mask(json!([[2, 1, 5.0, 1, 5, 3, 2, 3]])), Some(expected.clone()));
        assert_eq!(mask(json!([2, 1, 5.0, 1, 5, 3, 2, 3])), Some(expected.clone()));
        assert_eq!(mask(json!([[2, 1, 3, 1, 3, 3, 2, 3], [3, 1, 5, 1, 5, 3, 3, 3]])), Some(expected));
        assert_eq!(mask(json!([])), None);
        assert_eq!(mask(json!(null)), None);
    }

    #[test]
    fn crowds_are_known() {
        for (written, crowd) in [
            (json!(1), true),
            (json!(true), true),
            (json!(1.0), true),
            (json!("1"), true),
            (json!(0), false),
            (json!(false), false),
            (json!(null), false),
        ] {
            let found = with_annotation("iscrowd", written.clone()).unwrap().images[1].objects[0].crowd;
            assert_eq!(found, crowd, "{written}");
        }
    }

    #[test]
    fn numbers_are_read_however_they_are_written() {
        let expected = parse(sound()).unwrap();
        for (pointer, values) in [
            ("/images/0/id", [json!("4"), json!(4.0)]),
            ("/images/0/width", [json!("6"), json!(6.0)]),
            ("/categories/0/id", [json!("9"), json!(9.0)]),
            ("/annotations/0/id", [json!(null), json!("07")]),
            ("/annotations/0/image_id", [json!("000004"), json!(4.0)]),
            ("/annotations/0/category_id", [json!(" 9"), json!(9.0)]),
        ] {
            for value in values {
                assert_eq!(with(pointer, value.clone()).as_ref(), Ok(&expected), "{pointer} {value}");
            }
        }
        let mut file = sound();
        file["annotations"][0].as_object_mut().unwrap().remove("id");
        assert_eq!(parse(file).as_ref(), Ok(&expected));
        for value in [json!(4.5), json!("four"), json!(-4), json!(true), json!(1e300)] {
            let mut file = sound();
            file["images"][0]["id"] = value;
            let error = serde_json::from_value::<File>(file).err().map(|error| error.to_string());
            assert_eq!(error.as_deref(), Some("expected a whole number"));
        }
    }

    #[test]
    fn nothing_in_it_is_an_error() {
        assert_eq!(with("/categories", json!([])), Err(Problem::NoCategories));
        assert_eq!(fault(with("/images", json!([]))), Fault::Image(4));
        assert!(with("/annotations", json!([])).is_ok());
    }

    #[test]
    fn ids_differ() {
        assert_eq!(with("/images/0/id", json!(2)), Err(Problem::Duplicate { what: "image", id: 2 }));
        assert_eq!(with("/categories/0/id", json!(1)), Err(Problem::Duplicate { what: "category", id: 1 }));
        let mut file = sound();
        let copy = file["annotations"][0].clone();
        file["annotations"].as_array_mut().unwrap().push(copy);
        assert_eq!(parse(file), Err(Problem::Duplicate { what: "annotation", id: 7 }));
    }

    #[test]
    fn annotations_are_of_known_images_and_categories() {
        assert_eq!(fault(with_annotation("image_id", json!(5))), Fault::Image(5));
        assert_eq!(fault(with_annotation("category_id", json!(2))), Fault::Category(2));
    }

    #[test]
    fn images_have_a_sensible_size_and_name() {
        for side in [0, 32769, u64::MAX] {
            assert!(matches!(with("/images/0/width", json!(side)), Err(Problem::ImageSize { id: 4, .. })));
            assert!(matches!(with("/images/0/height", json!(side)), Err(Problem::ImageSize { id: 4, .. })));
        }
        assert!(with("/images/0/height", json!(32768)).is_ok());
        for found in ["", "/a.png", "../a.png", "a/../../b.png", "..", "\\a.png", "a\\..\\b.png", "C:a.png"] {
            let error = Err(Problem::FileName { id: 4, found: found.into() });
            assert_eq!(with("/images/0/file_name", json!(found)), error);
        }
        assert!(with("/images/0/file_name", json!("a/..b/c...png")).is_ok());
    }

    #[test]
    fn boxes_are_cut_off_at_the_border() {
        let bbox = |value| with_annotation("bbox", value).map(|coco| coco.images[1].objects[0].bbox);
        assert_eq!(bbox(json!([-1, -0.5, 8, 5.5])), Ok([0.0, 0.0, 6.0, 4.0]));
        assert_eq!(bbox(json!([5.25, 0.5, 1.5, 1.25])), Ok([5.25, 0.5, 0.75, 1.25]));
        assert_eq!(bbox(json!([0, 0, 6, 4])), Ok([0.0, 0.0, 6.0, 4.0]));
        assert_eq!(bbox(json!([-30, 2, 32, 50])), Ok([0.0, 2.0, 2.0, 2.0]));
    }

    #[test]
    fn boxes_without_pixels_are_left_out_and_counted() {
        for nothing in [
            json!([2, 1, 3, 0]),
            json!([2, 1, 0, 2]),
            json!([2, 1, 3, -1]),
            json!([6, 0, 1, 1]),
            json!([-9, 0, 9, 1]),
            json!([0, 99, 5, 5]),
        ] {
            let mut file = sound();
            let mut annotation = file["annotations"][0].clone();
            annotation["id"] = json!(8);
            annotation["bbox"] = nothing;
            file["annotations"].as_array_mut().unwrap().push(annotation);
            let coco = parse(file).unwrap();
            assert_eq!(coco.without_pixels, [8]);
            assert_eq!(coco.images, parse(sound()).unwrap().images);
        }
        for found in [[1e39, 0., 1., 1.], [0., 0., 1., 1e39]] {
            let bbox = found.map(|number: f64| number as f32);
            assert_eq!(fault(with_annotation("bbox", json!(found))), Fault::Box(bbox));
        }
    }

    #[test]
    fn wrong_masks_are_errors() {
        let segmentation = |value| fault(with_annotation("segmentation", value));
        let size = segmentation(json!({"counts": [24], "size": [6, 4]}));
        assert_eq!(size, Fault::MaskSize { found: (4, 6), expected: (6, 4) });
        let sum = segmentation(json!({"counts": [9, 2], "size": [4, 6]}));
        assert_eq!(sum, RunLengthError::Count { found: 11, width: 6, height: 4 }.into());
        let sum = segmentation(json!({"counts": [u64::MAX, 2, 23], "size": [4, 6]}));
        assert_eq!(sum, RunLengthError::Count { found: usize::MAX, width: 6, height: 4 }.into());
        let text = segmentation(json!({"counts": "9 20003", "size": [4, 6]}));
        assert_eq!(text, RunLengthError::Byte { at: 1, byte: b' ' }.into());
        let short = segmentation(json!([[0, 0, 6, 0, 6, 4], [1, 1, 2, 2]]));
        assert_eq!(short, Fault::Polygon { index: 1, found: 4 });
        let odd = segmentation(json!([[0, 0, 6, 0, 6, 4, 1]]));
        assert_eq!(odd, Fault::Polygon { index: 0, found: 7 });
        assert_eq!(segmentation(json!([1, 2])), Fault::Polygon { index: 0, found: 2 });
        for other in
            [json!("text"), json!([1, "2"]), json!({"counts": [-1], "size": [4, 6]}), json!({"size": [4, 6]})]
        {
            assert_eq!(segmentation(other), Fault::Segmentation);
        }
    }

    /// A mask of each of these objects is a gibibyte.
    #[test]
    fn outlines_take_no_memory_for_pixels() {
        let mut file = sound();
        file["images"][0]["width"] = json!(1 << 15);
        file["images"][0]["height"] = json!(1 << 15);
        for id in 8..1000 {
            let annotation = json!({
                "id": id, "image_id": 4, "category_id": 9, "bbox": [0, 0, 1, 1], "segmentation": [[0, 0, 1, 0, 1, 1]],
            });
            file["annotations"].as_array_mut().unwrap().push(annotation);
        }
        assert_eq!(parse(file).unwrap().images[1].objects.len(), 993);
    }

    #[test]
    fn polygons_are_written_as_polygons() {
        let coco = with_annotation("segmentation", json!([[2, 1, 5.5, 1, 5, 3, 2, 3]])).unwrap();
        let written = serde_json::to_value(File::new(&coco).unwrap()).unwrap();
        let expected = json!([[2.0, 1.0, 5.5, 1.0, 5.0, 3.0, 2.0, 3.0]]);
        assert_eq!(written["annotations"][0]["segmentation"], expected);
        assert_eq!(parse(written).unwrap(), coco);
    }

    #[test]
    fn what_would_not_load_is_not_written() {
        let coco = parse(sound()).unwrap();
        let problem = |change: &dyn Fn(&mut Object)| {
            let mut coco = coco.clone();
            change(&mut coco.images[1].objects[0]);
            match File::new(&coco).map(|_| ()) {
                Err(Problem::Annotation { id: 1, fault }) => fault,
                other => panic!("{other:?}"),
            }
        };
        let position = problem(&|object| object.category = 2);
        assert_eq!(position, Fault::Position { found: 2, categories: 2 });
        assert!(matches!(problem(&|object| object.bbox[2] = f32::NAN), Fault::Box(_)));
        assert!(matches!(problem(&|object| object.bbox[0] = 7.5), Fault::Box(_)));
        let size = problem(&|object| object.outline = Some((&Mask::empty(4, 6)).into()));
        assert_eq!(size, Fault::MaskSize { found: (4, 6), expected: (6, 4) });
        let mut large = coco;
        large.images[0].width = usize::MAX;
        assert!(matches!(File::new(&large).map(|_| ()), Err(Problem::ImageSize { id: 2, .. })));
    }
}
