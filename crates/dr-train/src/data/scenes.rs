//! Scenes to learn detection and segmentation from: small grey pictures, in colour, on cluttered canvases.

use super::coco::{Category, Coco, CocoError, Mask, Object, Picture};
use crate::files::{at, write_atomically};
use chacha20::ChaCha8Rng;
use image::ImageError;
use rand::{RngExt, SeedableRng};
use std::fs::create_dir_all;
use std::io::Cursor;
use std::ops::RangeInclusive;
use std::path::Path;

/// The grey value, as a part of white, from which on a pixel belongs to the object.
const IN_MASK: f32 = 0.25;
/// The part of an object's pixels that must be visible.
const VISIBLE: f32 = 0.4;
/// How much noise changes a value, at most.
const NOISE: f32 = 8.0;
/// How many sprites without bright pixels are passed over.
const TRIES: usize = 20;

type Rgb = [f32; 3];

/// How scenes are made.
#[derive(Clone, Debug, PartialEq)]
pub struct SceneConfig {
    /// Rows and columns of the canvas.
    pub size: usize,
    /// How many objects are put on it. Those that later ones hide are taken away again.
    pub objects: RangeInclusive<usize>,
    /// The longer side of an object's picture, as a part of the canvas.
    pub scale: RangeInclusive<f32>,
    /// Decides everything that is random, together with the number of the scene.
    pub seed: u64,
}

impl Default for SceneConfig {
    fn default() -> Self {
        Self { size: 64, objects: 1..=3, scale: 0.3..=0.6, seed: 0 }
    }
}

/// A grey picture of an object, bright on black.
#[derive(Clone, Copy, Debug)]
pub struct Sprite<'a> {
    /// `[height, width]`; pixels that are missing are black.
    pub pixels: &'a [u8],
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// What it is a picture of.
    pub class: usize,
}

/// A picture with objects.
#[derive(Clone, Debug, PartialEq)]
pub struct Scene {
    /// `[size, size, 3]`: red, green and blue.
    pub pixels: Vec<u8>,
    /// Rows and columns.
    pub size: usize,
    /// Each with a mask of its visible pixels and the smallest box around them. No two share a pixel.
    pub objects: Vec<Object>,
}

/// The scene of a number: the same for the same seed, number and sprites. Later objects cover earlier ones; those of which less
/// than 40 % would be seen are left out. There is at least one object, unless there are no sprites with bright pixels.
#[must_use]
pub fn scene(config: &SceneConfig, number: u64, sprites: &[Sprite<'_>]) -> Scene {
    let mut rng = ChaCha8Rng::seed_from_u64(config.seed);
    rng.set_stream(number);
    let size = config.size;
    let mut canvas = Canvas::gradient(size, &mut rng);
    canvas.clutter(&mut rng);
    let count = match config.objects.is_empty() {
        true => *config.objects.start(),
        false => rng.random_range(config.objects.clone()),
    };
    let placed: Vec<Placed> =
        (0..count.max(1)).filter_map(|_| Placed::random(config, sprites, &mut rng)).collect();
    let mut objects = vec![];
    for (placed, mask) in visible(&placed, size) {
        placed.pixels().for_each(|(x, y, alpha)| canvas.blend(x, y, placed.colour, alpha));
        if let Some(bbox) = mask.bbox() {
            objects.push(Object {
                category: placed.class,
                bbox,
                crowd: false,
                outline: Some((&mask).into()),
            });
        }
    }
    Scene { pixels: canvas.into_bytes(&mut rng), size, objects }
}

/// Writes scenes as a dataset: for each part, such as `train`, so many pictures `DIR/PART/000001.png` and so on, and then
/// `DIR/annotations/PART.json`, whose file names are relative to `DIR/PART`. The categories are `names`, with ids from 1.
/// Scene `i` of part `p`, both from 0, has the number `p * 2^32 + i`.
///
/// # Errors
/// Those of the file system, and sprites of a class that has no name.
pub fn write_scenes<'s>(
    dir: &Path, parts: &[(&str, usize)], config: &SceneConfig, sprites_of: impl Fn(&str) -> Vec<Sprite<'s>>,
    names: &[String],
) -> Result<(), CocoError> {
    let annotations = dir.join("annotations");
    create_dir_all(&annotations).map_err(at(&annotations))?;
    let categories: Vec<Category> =
        names.iter().zip(1..).map(|(name, id)| Category { id, name: name.clone() }).collect();
    for (&(part, count), index) in parts.iter().zip(0u64..) {
        let folder = dir.join(part);
        create_dir_all(&folder).map_err(at(&folder))?;
        let sprites = sprites_of(part);
        let numbers = (index << 32..).take(count);
        let images = numbers.zip(1..).map(|(number, id)| {
            let scene = scene(config, number, &sprites);
            write_scene(&folder, id, scene)
        });
        let images = images.collect::<Result<_, _>>()?;
        let coco = Coco { categories: categories.clone(), images, ..Coco::default() };
        coco.save(&annotations.join(format!("{part}.json")))?;
    }
    Ok(())
}

fn write_scene(folder: &Path, id: u64, Scene { pixels, size, objects }: Scene) -> Result<Picture, CocoError> {
    let file_name = format!("{id:06}.png");
    let path = folder.join(&file_name);
    let side = size as u32; // pictures have at most 2^15 pixels a side, which `Coco::save` checks
    let mut file = Cursor::new(vec![]);
    let (colours, format) = (image::ExtendedColorType::Rgb8, image::ImageFormat::Png);
    let written = image::write_buffer_with_format(&mut file, &pixels, side, side, colours, format);
    let written = written.and_then(|()| write_atomically(&path, file.get_ref()).map_err(ImageError::IoError));
    written.map_err(|source| CocoError::Picture { path, source })?;
    Ok(Picture { id, file_name, width: size, height: size, objects })
}

/// A number of a range, its end excluded; whatever the numbers are.
fn part(rng: &mut ChaCha8Rng, from: f32, to: f32) -> f32 {
    from + (to - from) * rng.random::<f32>()
}

/// A colour with each value in the range.
fn random_colour(rng: &mut ChaCha8Rng, from: f32, to: f32) -> Rgb {
    [(); 3].map(|()| part(rng, from, to))
}

/// A colour of a brightness that the background seldom has.
fn bright_colour(rng: &mut ChaCha8Rng) -> Rgb {
    let colour = random_colour(rng, 40.0, 255.0);
    let brightness = 0.3 * colour[0] + 0.6 * colour[1] + 0.1 * colour[2];
    let missing = ((160.0 - brightness) / (255.0 - brightness)).max(0.0);
    mix(colour, [255.0; 3], missing)
}

fn mix(from: Rgb, to: Rgb, part: f32) -> Rgb {
    std::array::from_fn(|channel| from[channel] + part * (to[channel] - from[channel]))
}

/// Which of the objects are seen enough, each with the mask of what is seen, in their order.
fn visible(placed: &[Placed], size: usize) -> Vec<(&Placed, Mask)> {
    let mut covered = vec![false; size * size];
    let mut kept = vec![];
    for placed in placed.iter().rev() {
        let whole = placed.mask(size);
        let seen = whole.pixels.iter().zip(&covered).map(|(&inside, &covered)| inside && !covered);
        let seen = Mask { pixels: seen.collect(), ..whole };
        if seen.area() as f32 >= VISIBLE * whole_area(placed) as f32 {
            covered.iter_mut().zip(&seen.pixels).for_each(|(covered, &seen)| *covered |= seen);
            kept.push((placed, seen));
        }
    }
    kept.reverse();
    kept
}

fn whole_area(placed: &Placed) -> usize {
    placed.alpha.iter().filter(|&&alpha| alpha > IN_MASK).count()
}

/// A sprite in its size and at its place.
struct Placed {
    class: usize,
    colour: Rgb,
    left: usize,
    top: usize,
    width: usize,
    /// `[height, width]`, 0 to 1.
    alpha: Vec<f32>,
}

impl Placed {
    /// One that has pixels, unless too many have none.
    fn random(config: &SceneConfig, sprites: &[Sprite<'_>], rng: &mut ChaCha8Rng) -> Option<Self> {
        if sprites.is_empty() || config.size == 0 {
            return None;
        }
        let tries = (0..TRIES).map(|_| {
            let sprite = sprites[rng.random_range(0..sprites.len())];
            let part = part(rng, *config.scale.start(), *config.scale.end());
            // What is no number becomes 0.
            let side = ((part * config.size as f32).round() as usize).clamp(1, config.size);
            let longest = sprite.width.max(sprite.height).max(1);
            let [width, height] =
                [sprite.width, sprite.height].map(|len| (len.saturating_mul(side) / longest).max(1));
            Self {
                class: sprite.class,
                colour: bright_colour(rng),
                left: rng.random_range(0..=config.size - width),
                top: rng.random_range(0..=config.size - height),
                width,
                alpha: resized(sprite, width, height),
            }
        });
        tries.into_iter().find(|placed| whole_area(placed) > 0)
    }

    /// Its pixels with their places on the canvas, and alpha.
    fn pixels(&self) -> impl Iterator<Item = (usize, usize, f32)> + '_ {
        let place = |at: usize| (self.left + at % self.width, self.top + at / self.width);
        self.alpha.iter().enumerate().map(move |(at, &alpha)| (place(at).0, place(at).1, alpha))
    }

    fn mask(&self, size: usize) -> Mask {
        let mut mask = Mask::empty(size, size);
        self.pixels().for_each(|(x, y, alpha)| mask.pixels[y * size + x] = alpha > IN_MASK);
        mask
    }
}

/// A sprite in another size, `[height, width]`, 0 to 1: bilinear between the centres of its pixels.
fn resized(sprite: Sprite<'_>, width: usize, height: usize) -> Vec<f32> {
    let grey =
        |x: usize, y: usize| f32::from(sprite.pixels.get(y * sprite.width + x).copied().unwrap_or(0)) / 255.0;
    let columns: Vec<_> = (0..width).map(|x| neighbours(x, width, sprite.width)).collect();
    let mut alpha = Vec::with_capacity(width * height);
    for y in 0..height {
        let (top, bottom, down) = neighbours(y, height, sprite.height);
        alpha.extend(columns.iter().map(|&(left, right, along)| {
            let row = |y| grey(left, y) + along * (grey(right, y) - grey(left, y));
            row(top) + down * (row(bottom) - row(top))
        }));
    }
    alpha
}

/// The two of `from` pixels that pixel `at` of `to` is between, and how near it is to the second.
fn neighbours(at: usize, to: usize, from: usize) -> (usize, usize, f32) {
    let last = from.saturating_sub(1);
    let position = ((at as f32 + 0.5) * from as f32 / to as f32 - 0.5).clamp(0.0, last as f32);
    let first = position as usize;
    (first, (first + 1).min(last), position - first as f32)
}

/// A picture in the making, 0 to 255.
struct Canvas {
    size: usize,
    /// `[size, size]`
    pixels: Vec<Rgb>,
}

impl Canvas {
    /// Two colours that go over into each other in some direction.
    fn gradient(size: usize, rng: &mut ChaCha8Rng) -> Self {
        let [from, to] = [(); 2].map(|()| random_colour(rng, 0.0, 150.0));
        let [right, down] = [(); 2].map(|()| part(rng, -1.0, 1.0));
        let (lowest, highest) = (right.min(0.0) + down.min(0.0), right.max(0.0) + down.max(0.0));
        let pixel = |at: usize| {
            let [x, y] = [at % size, at / size].map(|at| (at as f32 + 0.5) / size as f32);
            let along = (right * x + down * y - lowest) / (highest - lowest).max(f32::MIN_POSITIVE);
            mix(from, to, along * along * (3.0 - 2.0 * along))
        };
        Self { size, pixels: (0..size * size).map(pixel).collect() }
    }

    fn blend(&mut self, x: usize, y: usize, colour: Rgb, alpha: f32) {
        if let Some(pixel) = self.pixels.get_mut(y * self.size + x) {
            *pixel = mix(*pixel, colour, alpha);
        }
    }

    /// Some shapes, more or less transparent.
    fn clutter(&mut self, rng: &mut ChaCha8Rng) {
        for _ in 0..rng.random_range(4..=10) {
            let (shape, colour) = (Shape::random(rng), random_colour(rng, 0.0, 200.0));
            let alpha = part(rng, 0.3, 0.8);
            for y in 0..self.size {
                for x in 0..self.size {
                    let centre = [x, y].map(|at| (at as f32 + 0.5) / self.size as f32);
                    if shape.has(centre) {
                        self.blend(x, y, colour, alpha);
                    }
                }
            }
        }
    }

    /// The picture with noise.
    fn into_bytes(self, rng: &mut ChaCha8Rng) -> Vec<u8> {
        let noisy =
            self.pixels.into_iter().flatten().map(|value| (value + part(rng, -NOISE, NOISE)).round() as u8);
        noisy.collect()
    }
}

/// A shape in places from 0 to 1.
enum Shape {
    /// Half of each side, and of the hole in it.
    Rectangle { centre: [f32; 2], half: [f32; 2], hole: [f32; 2] },
    /// The radius, and that of the hole in it.
    Circle { centre: [f32; 2], radius: f32, hole: f32 },
    /// Half its width.
    Line { from: [f32; 2], to: [f32; 2], half: f32 },
}

impl Shape {
    fn random(rng: &mut ChaCha8Rng) -> Self {
        let [centre, other] = [(); 2].map(|()| [(); 2].map(|()| rng.random::<f32>()));
        let border = part(rng, 0.01, 0.04);
        let hollow = rng.random_bool(0.5);
        match rng.random_range(0..3) {
            0 => {
                let half = [(); 2].map(|()| part(rng, 0.03, 0.25));
                let hole = half.map(|half| if hollow { half - border } else { 0.0 });
                Self::Rectangle { centre, half, hole }
            }
            1 => {
                let radius = part(rng, 0.03, 0.2);
                Self::Circle { centre, radius, hole: if hollow { radius - border } else { 0.0 } }
            }
            _ => Self::Line { from: centre, to: other, half: border / 2.0 },
        }
    }

    fn has(&self, [x, y]: [f32; 2]) -> bool {
        match *self {
            Self::Rectangle { centre, half, hole } => {
                let away = [(x - centre[0]).abs(), (y - centre[1]).abs()];
                let within = |half: [f32; 2]| away[0] < half[0] && away[1] < half[1];
                within(half) && !within(hole)
            }
            Self::Circle { centre, radius, hole } => {
                let away = distance([x, y], centre);
                away < radius && away >= hole
            }
            Self::Line { from, to, half } => {
                let along = [to[0] - from[0], to[1] - from[1]];
                let squared = along[0] * along[0] + along[1] * along[1];
                let part =
                    ((x - from[0]) * along[0] + (y - from[1]) * along[1]) / squared.max(f32::MIN_POSITIVE);
                let part = part.clamp(0.0, 1.0);
                distance([x, y], [from[0] + part * along[0], from[1] + part * along[1]]) < half
            }
        }
    }
}

fn distance(a: [f32; 2], b: [f32; 2]) -> f32 {
    let [x, y] = [a[0] - b[0], a[1] - b[1]];
    (x * x + y * y).sqrt()
}

#[cfg(test)]
mod tests {
    use super::super::coco::Outline;
    use super::*;
    use std::collections::BTreeSet;

    /// A filled square and a ring.
    fn pictures() -> [Vec<u8>; 2] {
        let square =
            (0..64).map(|at| if (1..7).contains(&(at % 8)) && (1..7).contains(&(at / 8)) { 255 } else { 0 });
        let ring = (0..28 * 28).map(|at| {
            let away = distance([(at % 28) as f32, (at / 28) as f32], [13.5, 13.5]);
            if (6.0..11.0).contains(&away) { 200 } else { 0 }
        });
        [square.collect(), ring.collect()]
    }

    fn sprites(pictures: &[Vec<u8>; 2]) -> Vec<Sprite<'_>> {
        let sprite =
            |class: usize, side| Sprite { pixels: &pictures[class], width: side, height: side, class };
        vec![sprite(0, 8), sprite(1, 28)]
    }

    fn scenes(config: &SceneConfig, count: u64) -> Vec<Scene> {
        let pictures = pictures();
        (0..count).map(|number| scene(config, number, &sprites(&pictures))).collect()
    }

    #[test]
    fn seed_and_number_decide() {
        let config = SceneConfig::default();
        let first = scenes(&config, 5);
        assert_eq!(first, scenes(&config, 5));
        let other = scenes(&SceneConfig { seed: 1, ..config }, 5);
        let distinct: BTreeSet<_> = first.into_iter().chain(other).map(|scene| scene.pixels).collect();
        assert_eq!(distinct.len(), 10);
    }

    #[test]
    fn boxes_are_tight_and_inside() {
        for scene in scenes(&SceneConfig::default(), 200) {
            assert_eq!(scene.pixels.len(), 64 * 64 * 3);
            for object in &scene.objects {
                let mask = object.outline.as_ref().unwrap().mask();
                assert_eq!((mask.width, mask.height, mask.pixels.len()), (64, 64, 64 * 64));
                assert_eq!(mask.bbox(), Some(object.bbox));
                let [left, top, width, height] = object.bbox;
                assert!(left >= 0.0 && top >= 0.0 && left + width <= 64.0 && top + height <= 64.0);
                assert!((4.0..=39.0).contains(&width) && object.category < 2 && !object.crowd);
            }
        }
    }

    #[test]
    fn masks_share_no_pixel() {
        let config = SceneConfig { objects: 4..=6, ..SceneConfig::default() };
        for scene in scenes(&config, 200) {
            let mut owners = vec![0; 64 * 64];
            for mask in scene.objects.iter().filter_map(|object| object.outline.as_ref()).map(Outline::mask) {
                owners
                    .iter_mut()
                    .zip(&mask.pixels)
                    .for_each(|(owners, &inside)| *owners += u32::from(inside));
            }
            assert!(owners.iter().all(|&owners| owners <= 1));
        }
    }

    #[test]
    fn every_number_of_objects_occurs() {
        let counts = |objects| {
            let config = SceneConfig { objects, ..SceneConfig::default() };
            scenes(&config, 200).iter().map(|scene| scene.objects.len()).collect::<BTreeSet<_>>()
        };
        assert_eq!(counts(1..=3), BTreeSet::from([1, 2, 3]));
        assert_eq!(counts(1..=1), BTreeSet::from([1]));
        assert_eq!(counts(0..=0), BTreeSet::from([1]));
        #[expect(clippy::reversed_empty_ranges, reason = "what a user may give")]
        let reversed = counts(2..=1);
        assert!(reversed.contains(&2) && reversed.last() == Some(&2));
    }

    #[test]
    fn hidden_objects_are_left_out_and_others_covered() {
        let placed = |left, width| Placed {
            class: left,
            colour: [0.0; 3],
            left,
            top: 0,
            width,
            alpha: vec![1.0; width],
        };
        let seen = |placed: &[Placed]| {
            let kept = visible(placed, 20);
            kept.iter().map(|(placed, mask)| (placed.left, mask.bbox().unwrap())).collect::<Vec<_>>()
        };
        let row = |left, width| [left, 0.0, width, 1.0];
        assert_eq!(seen(&[placed(0, 10), placed(6, 8)]), [(0, row(0., 6.)), (6, row(6., 8.))]);
        assert_eq!(seen(&[placed(0, 10), placed(4, 8)]), [(0, row(0., 4.)), (4, row(4., 8.))]);
        assert_eq!(seen(&[placed(0, 10), placed(3, 8)]), [(3, row(3., 8.))]);
        // The one in the middle is hidden itself, and so it hides nothing.
        let three = [placed(0, 8), placed(2, 10), placed(5, 12)];
        assert_eq!(seen(&three), [(0, row(0., 5.)), (5, row(5., 12.))]);
    }

    #[test]
    fn objects_are_brighter_than_their_surroundings() {
        let brightness = |pixels: &[u8]| pixels.iter().map(|&value| f32::from(value)).sum::<f32>();
        let (mut inside, mut outside) = ((0.0, 0), (0.0, 0));
        for scene in scenes(&SceneConfig::default(), 50) {
            let masks: Vec<Mask> =
                scene.objects.iter().flat_map(|object| &object.outline).map(Outline::mask).collect();
            for (at, pixel) in scene.pixels.chunks(3).enumerate() {
                let is_object = masks.iter().any(|mask| mask.pixels[at]);
                let (sum, count) = if is_object { &mut inside } else { &mut outside };
                *sum += brightness(pixel) / 3.0;
                *count += 1;
            }
        }
        let [inside, outside] = [inside, outside].map(|(sum, count)| sum / count as f32);
        assert!(inside > outside + 30.0, "{inside} {outside}");
    }

    #[test]
    fn resizing_is_bilinear() {
        let sprite = Sprite { pixels: &[0, 255, 255, 0], width: 2, height: 2, class: 0 };
        assert_eq!(resized(sprite, 2, 2), [0.0, 1.0, 1.0, 0.0]);
        assert_eq!(resized(sprite, 1, 1), [0.5]);
        assert_eq!(resized(sprite, 4, 1), [0.5; 4]);
        let top = [0.0, 0.25, 0.75, 1.0];
        assert_eq!(resized(sprite, 4, 4)[..4], top);
    }

    #[test]
    fn strange_input_does_no_harm() {
        let config = SceneConfig::default();
        let count = |config: &SceneConfig, sprites: &[Sprite<'_>]| scene(config, 0, sprites).objects.len();
        assert_eq!(count(&config, &[]), 0);
        let sprite = |pixels, width, height| Sprite { pixels, width, height, class: 0 };
        assert_eq!(count(&config, &[sprite(&[0; 9], 3, 3), sprite(&[], 0, 0), sprite(&[], 5, 0)]), 0);
        assert_eq!(count(&config, &[sprite(&[], 3, 3), sprite(&[255; 2], 2, 1)]).min(1), 1);
        assert_eq!(count(&SceneConfig { size: 0, ..config.clone() }, &[sprite(&[255], 1, 1)]), 0);
        assert_eq!(count(&SceneConfig { size: 1, ..config.clone() }, &[sprite(&[255], 1, 1)]), 1);
        for scale in [f32::NAN..=f32::NAN, -1.0..=0.0, 0.5..=f32::INFINITY, 3.0..=2.0] {
            let config = SceneConfig { scale, ..config.clone() };
            assert!(count(&config, &[sprite(&[255; 6], 2, 3)]) > 0);
        }
    }

    #[test]
    fn written_scenes_are_loaded_again() {
        let dir = tempfile::tempdir().unwrap();
        let (config, pictures) = (SceneConfig { size: 24, ..SceneConfig::default() }, pictures());
        let names = ["square", "ring"].map(String::from);
        let sprites_of = |part: &str| {
            let sprites = sprites(&pictures);
            if part == "val" { sprites[..1].to_vec() } else { sprites }
        };
        write_scenes(dir.path(), &[("train", 3), ("val", 2)], &config, sprites_of, &names).unwrap();
        for (part, count, first) in [("train", 3, 0), ("val", 2, 1 << 32)] {
            let coco = Coco::load(&dir.path().join(format!("annotations/{part}.json"))).unwrap();
            let categories: Vec<_> =
                coco.categories.iter().map(|category| (category.id, &category.name)).collect();
            assert_eq!(categories, [(1, &names[0]), (2, &names[1])]);
            assert_eq!(coco.images.len(), count);
            for (picture, number) in coco.images.into_iter().zip(first..) {
                let expected = scene(&config, number, &sprites_of(part));
                let pixels = image::open(dir.path().join(part).join(&picture.file_name)).unwrap().into_rgb8();
                assert_eq!(pixels.into_raw(), expected.pixels);
                assert_eq!(picture.objects, expected.objects);
                assert_eq!((picture.width, picture.height), (24, 24));
            }
        }
        assert!(dir.path().join("train/000003.png").is_file());
    }

    #[test]
    fn what_cannot_be_written_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let (config, pictures) = (SceneConfig::default(), pictures());
        let write = |dir: &Path, count, names: &[String]| {
            write_scenes(dir, &[("test", count)], &config, |_| sprites(&pictures), names)
        };
        let names = ["square", "ring"].map(String::from);
        assert!(matches!(write(dir.path(), 9, &[]), Err(CocoError::Content { .. })));
        assert!(matches!(write(dir.path(), 9, &names[..1]), Err(CocoError::Content { .. })));
        std::fs::write(dir.path().join("file"), "").unwrap();
        assert!(matches!(write(&dir.path().join("file"), 1, &names), Err(CocoError::Io { .. })));
    }
}
