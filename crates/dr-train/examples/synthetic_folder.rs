//! Writes a folder of JPEG files to try `--dataset folder` with: stripes of a direction for each class, in colours and
//! positions of their own, under noise.
//!
//! `cargo run --release -p dr-train --example synthetic_folder -- DIR [IMAGES] [CLASSES]`

use image::{Rgb, RgbImage};
use rand::{RngExt, SeedableRng};
use std::error::Error;
use std::f32::consts::PI;
use std::fs;
use std::path::Path;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let dir = arguments.first().ok_or("expected the folder to write to")?;
    let number =
        |position: usize, usual: usize| arguments.get(position).map_or(Ok(usual), |text| text.parse());
    let (images, classes) = (number(1, 2000)?, number(2, 10)?);
    for i in 0..images {
        let class = i % classes;
        // Every fifth image of a class is for testing.
        let part = if i / classes % 5 == 4 { "val" } else { "train" };
        let folder = Path::new(dir).join(part).join(format!("class{class:02}"));
        fs::create_dir_all(&folder)?;
        picture(class, classes, i as u64).save(folder.join(format!("{i:05}.jpg")))?;
    }
    println!("{images} images of {classes} classes in {dir}");
    Ok(())
}

/// About as large as photographs of ImageNet usually are.
fn picture(class: usize, classes: usize, seed: u64) -> RgbImage {
    let rng = &mut chacha20::ChaCha8Rng::seed_from_u64(seed);
    let (width, height) = (rng.random_range(400..=500), rng.random_range(330..=400));
    let angle = PI * (class as f32 + rng.random_range(-0.2..0.2)) / classes as f32;
    let (period, phase) = (rng.random_range(20.0..40.0), rng.random_range(0.0..2.0 * PI));
    let colors: [[f32; 3]; 2] =
        std::array::from_fn(|_| std::array::from_fn(|_| rng.random_range(40.0..215.0)));
    RgbImage::from_fn(width, height, |x, y| {
        let along = x as f32 * angle.cos() + y as f32 * angle.sin();
        let part = 0.5 + 0.5 * (2.0 * PI * along / period + phase).sin();
        let noise = rng.random_range(-30.0..30.0);
        Rgb(std::array::from_fn(|c| (colors[0][c] * part + colors[1][c] * (1.0 - part) + noise) as u8))
    })
}
