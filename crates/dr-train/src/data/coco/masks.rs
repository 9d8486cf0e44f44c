//! [`Mask`]: which pixels of a picture an object has; and [`Outline`]: the same as files say it, by run lengths and polygons.

use std::cmp::Ordering;

/// Which pixels of a picture belong to an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mask {
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `[height, width]`, row by row.
    pub pixels: Vec<bool>,
}

/// Which pixels of a picture belong to an object, as files say it: of some hundred numbers a [`Mask`] is made when it is wanted.
#[derive(Clone, Debug, PartialEq)]
pub struct Outline {
    width: usize,
    height: usize,
    pub(super) shape: Shape,
}

/// What an outline is given by.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Shape {
    /// The corners of polygons, as [`Mask::add_polygon`] takes them.
    Polygons(Vec<Vec<f64>>),
    /// As [`Mask::from_rle_counts`] takes them.
    RunLengths(Vec<usize>),
}

impl Outline {
    /// The pixels of a picture that are inside of a polygon with corners at x, y, x, y and so on, or of one of several.
    #[must_use]
    pub const fn of_polygons(polygons: Vec<Vec<f64>>, width: usize, height: usize) -> Self {
        Self { width, height, shape: Shape::Polygons(polygons) }
    }

    /// The pixels that run lengths say, as [`Mask::from_rle_counts`] reads them.
    ///
    /// # Errors
    /// Run lengths of another number of pixels than `width * height`.
    pub fn of_rle_counts(counts: Vec<usize>, width: usize, height: usize) -> Result<Self, RunLengthError> {
        check_counts(&counts, width, height)?;
        Ok(Self { width, height, shape: Shape::RunLengths(counts) })
    }

    /// Columns and rows of the picture.
    #[must_use]
    pub const fn size(&self) -> (usize, usize) {
        (self.width, self.height)
    }

    /// The pixels.
    #[must_use]
    pub fn mask(&self) -> Mask {
        let mut mask = Mask::empty(self.width, self.height);
        match &self.shape {
            Shape::Polygons(polygons) => polygons.iter().for_each(|polygon| mask.add_polygon(polygon)),
            Shape::RunLengths(counts) => mask.add_rle_counts(counts),
        }
        mask
    }
}

/// The run lengths of a mask.
///
/// # Panics
/// If `pixels` has another number of elements than `width * height`.
impl From<&Mask> for Outline {
    fn from(mask: &Mask) -> Self {
        let &Mask { width, height, ref pixels } = mask;
        assert_eq!(pixels.len(), width * height, "a mask of {width} x {height} pixels");
        Self { width, height, shape: Shape::RunLengths(mask.to_rle_counts()) }
    }
}

/// Why run lengths are no mask.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RunLengthError {
    /// They end too early or too late.
    #[error("run lengths of {found} pixels: expected {width}x{height} = {} pixels", width.saturating_mul(*height))]
    Count {
        /// How many pixels they have; at most `usize::MAX`.
        found: usize,
        /// Columns of the mask.
        width: usize,
        /// Rows of the mask.
        height: usize,
    },
    /// A compressed string with another character.
    #[error("byte {byte:#04x} at {at} of the compressed run lengths: expected `0` (0x30) to `o` (0x6f)")]
    Byte {
        /// Where.
        at: usize,
        /// What it is.
        byte: u8,
    },
    /// A compressed string that ends within a number.
    #[error("end of the compressed run lengths within a number: expected more characters")]
    End,
    /// A compressed string with a number below 0 or too large.
    #[error("compressed run length {0}: expected a number from 0 to {max}", max = u32::MAX)]
    Number(usize),
}

impl Mask {
    /// A mask without pixels of the object.
    #[must_use]
    pub fn empty(width: usize, height: usize) -> Self {
        Self { width, height, pixels: vec![false; width * height] }
    }

    /// How many pixels the object has.
    #[must_use]
    pub fn area(&self) -> usize {
        self.pixels.iter().filter(|&&inside| inside).count()
    }

    /// The smallest box around the object: left, top, width and height in pixels; none if the object has no pixels.
    #[must_use]
    pub fn bbox(&self) -> Option<[f32; 4]> {
        let (mut left, mut right, mut top, mut bottom) = (usize::MAX, 0, usize::MAX, 0);
        for (y, row) in self.pixels.chunks(self.width.max(1)).enumerate() {
            let first = row.iter().position(|&inside| inside);
            if let (Some(first), Some(last)) = (first, row.iter().rposition(|&inside| inside)) {
                (left, right) = (left.min(first), right.max(last + 1));
                (top, bottom) = (top.min(y), y + 1);
            }
        }
        (left < right).then(|| [left, top, right - left, bottom - top].map(|pixels| pixels as f32))
    }

    /// Reads run lengths as COCO has them: column by column, first of pixels outside the object, then inside, and so on.
    ///
    /// # Errors
    /// Run lengths of another number of pixels than `width * height`.
    pub fn from_rle_counts(counts: &[usize], width: usize, height: usize) -> Result<Self, RunLengthError> {
        check_counts(counts, width, height)?;
        let mut mask = Self::empty(width, height);
        mask.add_rle_counts(counts);
        Ok(mask)
    }

    /// Adds the pixels of run lengths that are of as many pixels as there are.
    fn add_rle_counts(&mut self, counts: &[usize]) {
        let mut start = 0;
        for (index, &count) in counts.iter().enumerate() {
            if index % 2 == 1 {
                for at in start..start + count {
                    self.pixels[at % self.height * self.width + at / self.height] = true;
                }
            }
            start += count;
        }
    }

    /// The run lengths that [`from_rle_counts`](Self::from_rle_counts) reads. The first may be 0, none of the others is.
    ///
    /// # Panics
    /// If `pixels` has fewer than `width * height` elements.
    #[must_use]
    pub fn to_rle_counts(&self) -> Vec<usize> {
        let (mut counts, mut inside) = (vec![0], false);
        for x in 0..self.width {
            for y in 0..self.height {
                if self.pixels[y * self.width + x] != inside {
                    inside = !inside;
                    counts.push(0);
                }
                if let Some(count) = counts.last_mut() {
                    *count += 1;
                }
            }
        }
        counts
    }

    /// Adds the pixels whose centres are inside a polygon with corners at x, y, x, y and so on, by the even-odd rule. What is
    /// outside the picture, and a number without partner at the end, is left out.
    pub fn add_polygon(&mut self, polygon: &[f64]) {
        let corners: Vec<[f64; 2]> = polygon.as_chunks().0.to_vec();
        let top = corners.iter().fold(f64::INFINITY, |top, corner| top.min(corner[1]));
        let bottom = corners.iter().fold(f64::NEG_INFINITY, |bottom, corner| bottom.max(corner[1]));
        let rows = first_centre(top, self.height)..first_centre(bottom, self.height);
        let mut crossings = vec![];
        for y in rows {
            crossings.clear();
            crossings.extend(edges(&corners).filter_map(|edge| crossing(edge, y as f64 + 0.5)));
            crossings.sort_unstable_by(|a: &f64, b| a.partial_cmp(b).unwrap_or(Ordering::Equal));
            for pair in crossings.as_chunks::<2>().0 {
                let [from, to] = pair.map(|x| first_centre(x, self.width));
                self.pixels[y * self.width..][from..to.max(from)].fill(true);
            }
        }
    }
}

/// Whether run lengths are of as many pixels as a mask has.
fn check_counts(counts: &[usize], width: usize, height: usize) -> Result<(), RunLengthError> {
    let found = counts.iter().fold(0usize, |sum, &count| sum.saturating_add(count));
    match width.checked_mul(height) == Some(found) {
        true => Ok(()),
        false => Err(RunLengthError::Count { found, width, height }),
    }
}

/// Each corner with the next one, and the last with the first.
fn edges(corners: &[[f64; 2]]) -> impl Iterator<Item = [[f64; 2]; 2]> + '_ {
    let next = corners.iter().cycle().skip(1);
    corners.iter().zip(next).map(|(&from, &to)| [from, to])
}

/// Where an edge goes through the line at `y`; an end that lies on it counts as below it.
fn crossing([from, to]: [[f64; 2]; 2], y: f64) -> Option<f64> {
    let part = (y - from[1]) / (to[1] - from[1]);
    ((from[1] <= y) != (to[1] <= y)).then(|| from[0] + part * (to[0] - from[0]))
}

/// The first of `len` pixels whose centre is not before `position`; `len` if there is none.
fn first_centre(position: f64, len: usize) -> usize {
    // A negative number becomes 0, as does one that is none.
    ((position - 0.5).ceil() as usize).min(len)
}

/// The run lengths in a compressed string: each number in groups of five bits, lowest first, with its sign in the last one,
/// and from the fourth number on as the difference to the one two before.
///
/// # Errors
/// A character that never occurs, an unfinished number, and one that is negative or too large.
pub(super) fn decompress(text: &str) -> Result<Vec<usize>, RunLengthError> {
    const DIGIT: i64 = 0x1f;
    const MORE: i64 = 0x20;
    const SIGN: i64 = 0x10;
    let mut counts: Vec<i64> = vec![];
    let (mut number, mut shift) = (0i64, 0);
    for (at, byte) in text.bytes().enumerate() {
        let index = counts.len();
        let group = match byte {
            b'0'..=b'o' => i64::from(byte - b'0'),
            _ => return Err(RunLengthError::Byte { at, byte }),
        };
        number |= (group & DIGIT) << shift;
        shift += 5;
        if group & MORE != 0 {
            // Eight groups hold more than the largest difference.
            if shift > 35 {
                return Err(RunLengthError::Number(index));
            }
            continue;
        }
        if group & SIGN != 0 {
            number -= 1 << shift;
        }
        number += if index > 2 { counts[index - 2] } else { 0 };
        if !(0..=i64::from(u32::MAX)).contains(&number) {
            return Err(RunLengthError::Number(index));
        }
        counts.push(number);
        (number, shift) = (0, 0);
    }
    if shift != 0 {
        return Err(RunLengthError::End);
    }
    Ok(counts.into_iter().map(|count| count as usize).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use chacha20::ChaCha8Rng;
    use rand::{RngExt, SeedableRng};

    /// Rows of text, `#` inside the object.
    fn mask(rows: &[&str]) -> Mask {
        let pixels = rows.iter().flat_map(|row| row.bytes().map(|byte| byte == b'#')).collect();
        Mask { width: rows.first().map_or(0, |row| row.len()), height: rows.len(), pixels }
    }

    fn polygon(width: usize, height: usize, corners: &[f64]) -> Mask {
        let mut mask = Mask::empty(width, height);
        mask.add_polygon(corners);
        mask
    }

    /// What `pycocotools.mask.encode`, `area` and `toBbox` 2.0 give.
    fn check(mask: &Mask, compressed: &str, area: usize, bbox: Option<[f32; 4]>) {
        let counts = decompress(compressed).unwrap();
        assert_eq!(mask.to_rle_counts(), counts);
        assert_eq!(&Mask::from_rle_counts(&counts, mask.width, mask.height).unwrap(), mask);
        assert_eq!((mask.area(), mask.bbox()), (area, bbox));
    }

    #[test]
    fn small_masks_are_those_of_pycocotools() {
        let rectangle = mask(&["......", "..###.", "..###.", "......"]);
        assert_eq!(rectangle.to_rle_counts(), [9, 2, 2, 2, 2, 2, 5]);
        check(&rectangle, "9220003", 6, Some([2.0, 1.0, 3.0, 2.0]));
        check(&Mask::empty(3, 5), "?", 0, None);
        check(&mask(&["###"; 5]), "0?", 15, Some([0.0, 0.0, 3.0, 5.0]));
        check(&mask(&["#.....#"]), "0150", 2, Some([0.0, 0.0, 7.0, 1.0]));
        let random = mask(&[".###...", "....#.#", ".#..###", "#...#..", "...##..", "##..#.#"]);
        check(&random, "31110O113ON0O40L21NO", 17, Some([0.0, 0.0, 7.0, 6.0]));
    }

    #[test]
    fn large_masks_are_those_of_pycocotools() {
        let fill = |width, height, inside: &dyn Fn(usize, usize) -> bool| {
            let pixels = (0..width * height).map(|at| inside(at % width, at / width)).collect();
            Mask { width, height, pixels }
        };
        let ellipse = fill(50, 40, &|x, y| {
            let (x, y) = (x as f64 - 24.5, y as f64 - 18.0);
            x * x / 400.0 + y * y / 250.0 < 1.0
        });
        let text = "g67n06L2N2N2N2N2N2O0O2O0O2O000O2O0000000000000000000001N10001N101N101N2N2N2N2N2N4Jl5";
        check(&ellipse, text, 984, Some([5.0, 3.0, 40.0, 31.0]));
        let long = fill(3, 1000, &|x, y| (x, y) == (0, 0) || (x == 2 && y >= 700));
        check(&long, "01[d2[9", 301, Some([0.0, 0.0, 3.0, 1000.0]));
        let huge = fill(2000, 2000, &|x, y| (x == 1000 && (999..1001).contains(&y)) || (x, y) == (1999, 0));
        check(&huge, "WSRm12WVnl1OXhSSN", 3, Some([1000.0, 0.0, 1000.0, 1001.0]));
    }

    #[test]
    fn wrong_run_lengths_are_errors() {
        let count = |found| Err(RunLengthError::Count { found, width: 3, height: 2 });
        assert_eq!(Mask::from_rle_counts(&[2, 3], 3, 2), count(5));
        assert_eq!(Mask::from_rle_counts(&[], 3, 2), count(0));
        assert_eq!(Mask::from_rle_counts(&[usize::MAX, 7], 3, 2), count(usize::MAX));
        let huge = Mask::from_rle_counts(&[usize::MAX], usize::MAX, 2);
        assert!(matches!(huge, Err(RunLengthError::Count { .. })));
        assert_eq!(Mask::from_rle_counts(&[], 0, 0), Ok(Mask::empty(0, 0)));
        assert_eq!(Mask::from_rle_counts(&[2, 1, 0, 1, 2], 3, 2), Ok(mask(&[".#.", ".#."])));
    }

    #[test]
    fn wrong_compressed_run_lengths_are_errors() {
        assert_eq!(decompress(""), Ok(vec![]));
        assert_eq!(decompress("92 "), Err(RunLengthError::Byte { at: 2, byte: b' ' }));
        assert_eq!(decompress("9p"), Err(RunLengthError::Byte { at: 1, byte: b'p' }));
        assert_eq!(decompress("é"), Err(RunLengthError::Byte { at: 0, byte: 0xc3 }));
        assert_eq!(decompress("9o"), Err(RunLengthError::End));
        assert_eq!(decompress("9O"), Err(RunLengthError::Number(1)));
        assert_eq!(decompress("0000O"), Ok(vec![0, 0, 0, 0]).and(Err(RunLengthError::Number(4))));
        assert_eq!(decompress("oooooooooooooooo"), Err(RunLengthError::Number(0)));
        assert_eq!(decompress("PPPPPPP8"), Err(RunLengthError::Number(0)));
    }

    #[test]
    fn random_text_does_no_harm() {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        for _ in 0..10_000 {
            let len = rng.random_range(0..20);
            let text: String = (0..len).map(|_| char::from(rng.random_range(b'0'..=b'o'))).collect();
            if let Ok(counts) = decompress(&text) {
                let _ = Mask::from_rle_counts(&counts, 5, counts.iter().sum::<usize>().min(999) / 5);
            }
        }
    }

    #[test]
    fn polygons_have_the_pixels_with_centres_inside() {
        let rectangle = polygon(6, 4, &[2.0, 1.0, 5.0, 1.0, 5.0, 3.0, 2.0, 3.0]);
        assert_eq!(rectangle, mask(&["......", "..###.", "..###.", "......"]));
        let shifted = polygon(6, 4, &[2.6, 1.4, 4.6, 1.4, 4.6, 2.6, 2.6, 2.6]);
        assert_eq!(shifted, mask(&["......", "...##.", "...##.", "......"]));
        let triangle = polygon(4, 4, &[0.0, 0.0, 4.0, 4.0, 0.0, 4.0]);
        assert_eq!(triangle, mask(&["....", "#...", "##..", "###."]));
        let beyond = polygon(3, 2, &[-9.0, 1.0, 9.0, 1.0, 9.0, 99.0, -9.0, 99.0]);
        assert_eq!(beyond, mask(&["...", "###"]));
    }

    #[test]
    fn neighbours_share_no_pixel() {
        // Both have a side through the centres of pixels.
        let mut left = polygon(5, 5, &[0.0, 0.0, 2.5, 0.0, 2.5, 2.5, 0.0, 2.5]);
        let right = polygon(5, 5, &[2.5, 0.0, 5.0, 0.0, 5.0, 2.5, 2.5, 2.5]);
        assert!(left.pixels.iter().zip(&right.pixels).all(|(&a, &b)| !(a && b)));
        left.add_polygon(&[2.5, 0.0, 5.0, 0.0, 5.0, 2.5, 2.5, 2.5]);
        assert_eq!(left, mask(&["#####", "#####", ".....", ".....", "....."]));
    }

    #[test]
    fn polygons_are_even_odd_each_and_united() {
        // A square that goes around a smaller one in the same direction: the even-odd rule leaves a hole.
        let ring = [0., 0., 5., 0., 5., 5., 0., 5., 0., 0., 1., 1., 4., 1., 4., 4., 1., 4., 1., 1.];
        let mut ring = polygon(5, 5, &ring);
        assert_eq!(ring, mask(&["#####", "#...#", "#...#", "#...#", "#####"]));
        ring.add_polygon(&[0.0, 0.0, 3.0, 0.0, 3.0, 3.0, 0.0, 3.0]);
        assert_eq!(ring, mask(&["#####", "###.#", "###.#", "#...#", "#####"]));
    }

    #[test]
    fn strange_polygons_do_no_harm() {
        let nan = f64::NAN;
        for corners in
            [&[][..], &[1.0], &[1.0, 1.0], &[0.0, 0.0, 9.0, 9.0], &[nan; 6], &[1e300, -1e300, 0.0, 1e300]]
        {
            assert_eq!(polygon(3, 3, corners).area(), 0);
        }
        for far in [f64::MAX, f64::INFINITY, nan] {
            let _ = polygon(3, 3, &[-far, -far, far, -far, far, far, 1.0, nan, -far, far]);
        }
        let _ = polygon(0, 0, &[-1.0, -1.0, 1.0, -1.0, 1.0, 1.0]);
    }
}
